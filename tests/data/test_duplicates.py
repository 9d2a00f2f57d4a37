"""Near-duplicate speeches."""

import random

import numpy as np
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st
from support.raw_speeches import speech

from psyco_ray.data import duplicates


def near_of(texts: list[str], threshold: float = 0.6) -> dict[int, int]:
    return duplicates.near(duplicates.signatures(texts), texts.__getitem__, threshold)


@given(st.integers(0, 10**6), st.sampled_from(["Bob", "Alexandra", "Jo", "Kim Lee"]))
def test_a_speech_with_another_name_is_a_near_duplicate(seed: int, name: str) -> None:
    text = f"I argue with Maria. {speech(seed)[60:200]}, and Maria."
    other = text.replace("Maria", name).replace("I ", "i ").replace(".", " !")
    assert duplicates.similarity(text, other) >= 0.6
    assert near_of([speech(seed + 1), text, other]) == {2: 1}


def test_rows_that_resemble_a_known_one_are_those_of_all_comparisons() -> None:
    draw = random.Random(1)
    known = [speech(seed) for seed in range(60)]
    known += [text.replace("Maria", "Bob") for text in known[:20]]  # known rows may resemble each other
    others = [speech(seed) for seed in range(100, 160)]
    for text in known[::2]:
        words = text.split()
        for _ in range(draw.randrange(1, 9)):
            words[draw.randrange(len(words))] = draw.choice(["perhaps", "sometimes", "really"])
        others += [" ".join(words)] * 2  # others are not compared with each other
    texts = known + others
    found = duplicates.resembling(duplicates.signatures(texts), len(known), texts.__getitem__, 0.6)
    alike = {
        row: next((n for n, text in enumerate(known) if duplicates.similarity(text, texts[row]) >= 0.6), None)
        for row in range(len(known), len(texts))
    }
    assert len(found) >= 70
    assert found == {row: mate for row, mate in alike.items() if mate is not None}
    assert duplicates.resembling(duplicates.signatures(known), len(known), known.__getitem__, 0.6) == {}


def test_short_speeches_on_the_same_topic_are_kept() -> None:
    texts = [
        "I've been feeling overwhelmed lately with work and my family. I can't balance it all. What can I do?",
        "I've been feeling overwhelmed lately, and I find it hard to sleep. My mind keeps racing. What can I do?",
        "I've been feeling overwhelmed lately because of my exams. I am afraid to fail and to disappoint my parents.",
        "I've been feeling overwhelmed and anxious lately, and my partner doesn't understand why. How do I explain it?",
    ]
    assert near_of(texts) == {}


def test_kept_speeches_differ_pairwise_and_few_duplicates_are_missed() -> None:
    draw = random.Random(0)
    texts = [speech(seed) for seed in range(120)]
    for text in texts[:80]:
        words = text.split()
        for _ in range(draw.randrange(1, 6)):
            words[draw.randrange(len(words))] = draw.choice(["perhaps", "sometimes", "really"])
        texts.append(" ".join(words))
    draw.shuffle(texts)
    dropped = near_of(texts)
    stays = [n for n in range(len(texts)) if n not in dropped]
    assert all(mate < n and mate in stays for n, mate in dropped.items())
    grams = [duplicates.grams(text) for text in texts]
    close = [
        (a, b) for a in stays for b in stays if a < b and len(grams[a] & grams[b]) >= 0.6 * len(grams[a] | grams[b])
    ]
    assert len(dropped) >= 60
    assert len(close) <= 1


def test_signatures_are_the_same_everywhere() -> None:
    signed = duplicates.signatures(["I cannot sleep.", "i CANNOT   sleep", "Ok", ""])
    assert signed.shape == (4, duplicates.PERMUTATIONS)
    assert signed.dtype == np.uint32
    assert (signed[0] == signed[1]).all()
    assert signed[0, :3].tolist() == [637405928, 64659928, 15991927]  # frozen


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.text("abÄß 日_.\n"), max_size=12))
def test_signatures_are_those_of_datasketch(texts: list[str]) -> None:
    encoded = ([gram.encode() for gram in duplicates.grams(text)] for text in texts)
    peer = [minhash.hashvalues for minhash in MinHash.generator(encoded, num_perm=duplicates.PERMUTATIONS, seed=1)]
    assert duplicates.signatures(texts).tolist() == [signature.tolist() for signature in peer]


def test_duplicates_do_not_depend_on_block_sizes(monkeypatch) -> None:
    texts = [speech(seed % 60, name) for seed, name in enumerate(["Maria", "Bob", "Jo", "Alexandra"] * 60)]
    random.Random(0).shuffle(texts)
    signed = duplicates.signatures(texts)
    for rows in (1, 7, 100):
        pieces = [duplicates.signatures(texts[start : start + rows]) for start in range(0, len(texts), rows)]
        assert (np.concatenate(pieces) == signed).all()
    whole = near_of(texts)
    assert len(whole) > 100
    for pairs in (1, 10, 1000):
        monkeypatch.setattr(duplicates, "_BLOCK_PAIRS", pairs)
        assert near_of(texts) == whole
