"""Speeches that hold most of another one."""

import random

import numpy as np
import pytest
from support.raw_speeches import speech

from psyco_ray.data import containment, duplicates


def held(texts: list[str], parts: int = 1) -> dict[int, int]:
    marks = [containment.marks(text) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(found) for found in marks])
    pieces = list(zip(np.array_split(np.concatenate(marks), parts), np.array_split(rows, parts), strict=True))
    return containment.held(lambda: iter(pieces), len(texts), texts.__getitem__)


def share(first: str, second: str) -> float:
    a, b = duplicates.grams(first), duplicates.grams(second)
    return len(a & b) / min(len(a), len(b))


@pytest.mark.parametrize("longer_first", [False, True])
def test_a_part_of_a_longer_speech_is_found_where_minhash_finds_none(longer_first) -> None:
    part, rest = speech(1), [speech(seed) for seed in range(2, 6)]
    whole = " ".join([*rest[:2], part.upper().replace(",", " - "), *rest[2:]])
    texts = [speech(9), *((whole, part) if longer_first else (part, whole)), speech(10)]
    assert duplicates.near(duplicates.signatures(texts), texts.__getitem__, 0.6) == {}
    assert held(texts) == {2: 1}
    assert held(texts, parts=3) == {2: 1}


def test_few_contained_speeches_are_missed_and_none_is_wrong(monkeypatch) -> None:
    draw = random.Random(0)
    texts = []
    for seed in range(80):
        words = speech(seed).split()
        texts.append(" ".join(words))
        for _ in range(draw.randrange(4)):  # changes that leave around 80 % of the grams
            words[draw.randrange(len(words))] = draw.choice(["perhaps", "sometimes", "really"])
        more = speech(1000 + seed).split() + speech(2000 + seed).split()
        texts.append(" ".join(more[:30] + words[: draw.randrange(20, len(words))] + more[30:]))
    order = list(range(len(texts)))
    draw.shuffle(order)
    texts = [texts[n] for n in order]
    found = held(texts)
    assert all(
        mate < row and mate not in found and share(texts[row], texts[mate]) >= 0.8 for row, mate in found.items()
    )
    stay = [n for n in range(len(texts)) if n not in found]
    grams = {n: duplicates.grams(texts[n]) for n in stay}
    pairs = ((grams[a], grams[b]) for a in stay for b in stay if b < a)
    missed = sum(len(one & other) >= 0.8 * min(len(one), len(other)) for one, other in pairs)
    assert len(found) >= 25
    assert missed <= 1
    monkeypatch.setattr(containment, "_PASS_MARKS", 100)  # in many passes
    assert held(texts) == found


def test_phrases_in_common_are_no_containment() -> None:
    phrase = "I've been feeling overwhelmed lately, and I don't know what to do about it any more."
    texts = [f"{phrase} {speech(seed)}" for seed in range(80)] + ["I feel so sad.", f"I feel so sad. {speech(99)}"]
    assert held(texts) == {}
