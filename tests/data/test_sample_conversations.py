"""The packaged conversations and the preference pairs over them."""

import fnmatch
import itertools
import json
import re
import statistics
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.data import duplicates
from psyco_ray.data.topics import coarse_of
from psyco_ray.files import records

CONVERSATIONS, PAIRS = (records.SAMPLE.with_name(name) for name in ("conversations.jsonl", "conversation-pairs.jsonl"))
NEAR = 0.6  # similarity of near duplicates, as `collect` takes it
LIKE = 0.3  # of two responses in one conversation that say nearly the same
STOCK = (
    r"that must (?:be|have)|sounds (?:like|as)|for sharing|i'm here for you|i'm (?:so )?sorry|i hear you|safe space|"
    r"it's (?:okay|completely normal|important)|you should|have you tried|many people|be kind to yourself"
)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


ROWS = read(CONVERSATIONS)
CONTEXTS = {row["id"]: Context.from_messages(row["messages"]) for row in ROWS}
"""By id; `from_messages` refuses turns that do not alternate or do not begin and end with the client."""
COMPARED = read(PAIRS)


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?…][\"'’”)]*(?=\s|$)", text))


@pytest.mark.parametrize("path", [CONVERSATIONS, PAIRS], ids=lambda path: path.name)
def test_the_wheel_holds_the_file(path: Path) -> None:
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["psyco_ray"]
    name = path.relative_to(root / "psyco_ray").as_posix()
    assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    assert path.stat().st_size < 400_000


def test_every_topic_has_a_conversation_and_lengths_vary() -> None:
    assert [row["id"] for row in ROWS] == [f"c{number:03}" for number in range(1, len(ROWS) + 1)]
    assert all(set(row) == {"id", "topic", "messages"} for row in ROWS)
    assert len(ROWS) >= 64
    assert {row["topic"] for row in ROWS} == set(coarse_of())
    turns = Counter(len(context.client_turns) for context in CONTEXTS.values())
    assert set(turns) == set(range(3, 9))
    assert max(turns.values()) < len(ROWS) / 2


def test_openings_tell_a_situation_and_later_turns_are_short_or_long() -> None:
    openings, later = [], []
    for context in CONTEXTS.values():
        openings.append(len(context.client_turns[0]))
        later += map(len, context.client_turns[1:])
    assert min(openings) >= 100
    assert max(openings) <= 600
    assert min(later) >= 20
    assert max(later) <= 400
    assert min(openings) < 150
    assert max(openings) > 500
    assert min(later) < 50
    assert max(later) > 250


def test_therapists_say_little_and_ask_one_thing() -> None:
    responses = [*itertools.chain(*(context.therapist_turns for context in CONTEXTS.values()))]
    responses += [pair["chosen"] for pair in COMPARED]
    for response in responses:
        assert sentences(response) <= 3, response
        assert response.count("?") <= 1, response
        assert 20 <= len(response) <= 360, response
        assert not re.search(STOCK, response, re.IGNORECASE), response
        assert not re.search(r"(?:^|\s)(?:\d[.)]|[-*•]) |\n", response), "no lists"
    asking = statistics.mean("?" in response for response in responses)
    assert 0.6 < asking < 0.85, "reflections without a question are good responses too"


def test_no_text_is_there_twice_and_no_therapist_repeats_a_response() -> None:
    texts = Counter(itertools.chain(*(context.turns for context in CONTEXTS.values())))
    assert texts.most_common(1)[0][1] == 1
    chosen = Counter(pair["chosen"] for pair in COMPARED)
    rejected = Counter(pair["rejected"] for pair in COMPARED)
    assert chosen.most_common(1)[0][1] == rejected.most_common(1)[0][1] == 1
    assert not set(rejected) & (set(texts) | set(chosen))
    for name, context in CONTEXTS.items():
        own = [pair["chosen"] for pair in COMPARED if pair["conversation"] == name]
        said = dict.fromkeys([*context.therapist_turns, *own])
        for first, second in itertools.combinations(said, 2):
            assert duplicates.similarity(first, second) < LIKE, (name, first, second)


def test_openings_are_no_near_duplicates_of_each_other_or_of_the_sample_speeches() -> None:
    speeches = list(dict.fromkeys(row["question"] for row in read(records.SAMPLE)))
    texts = speeches + [context.client_turns[0] for context in CONTEXTS.values()]
    signed = duplicates.signatures(texts)
    assert duplicates.resembling(signed, len(speeches), texts.__getitem__, NEAR) == {}
    openings = texts[len(speeches) :]
    assert duplicates.near(signed[len(speeches) :], openings.__getitem__, NEAR) == {}


def test_pairs_are_of_turns_that_exist_and_of_two_responses() -> None:
    assert len(COMPARED) >= 130
    assert len({(pair["conversation"], pair["turn"]) for pair in COMPARED}) == len(COMPARED)
    for pair in COMPARED:
        assert set(pair) == {"conversation", "turn", "chosen", "rejected"}
        assert 1 <= pair["turn"] <= len(CONTEXTS[pair["conversation"]].client_turns)
        assert duplicates.similarity(pair["chosen"], pair["rejected"]) < LIKE
    assert min(Counter(pair["conversation"] for pair in COMPARED).values()) >= 2
    assert {pair["conversation"] for pair in COMPARED} == set(CONTEXTS)
    assert {pair["turn"] for pair in COMPARED} == set(range(1, 9))
    middle = statistics.mean(2 <= pair["turn"] <= 4 for pair in COMPARED)
    assert middle > 0.5, "most pairs are of the turns 2 to 4"
    last = [pair for pair in COMPARED if pair["turn"] == len(CONTEXTS[pair["conversation"]].client_turns)]
    assert len(last) >= 20, "responses to a whole conversation too"


def test_lengths_do_not_tell_which_response_is_chosen() -> None:
    chosen, rejected = ([len(pair[key]) for pair in COMPARED] for key in ("chosen", "rejected"))
    assert statistics.mean(rejected) == pytest.approx(statistics.mean(chosen), rel=0.1)
    longer = statistics.mean(second > first for first, second in zip(chosen, rejected, strict=True))
    assert 0.4 < longer < 0.6
