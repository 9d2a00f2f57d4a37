"""Cells and answers in messages show no client's words."""

import json

import pytest

from psyco_ray.data import rate, splits
from psyco_ray.evaluate import expert_csv, verdicts
from psyco_ray.evaluate.pairwise_ranker import read_choice
from psyco_ray.files.cells import described, label_of, quoted
from psyco_ray.judge.ask import UnreadableAnswerError

WORDS = "I have not slept since she left"


def test_short_values_are_shown() -> None:
    assert [quoted(value) for value in ("both", "", 7, None, True)] == ["'both'", "''", "7", "None", "True"]
    assert [quoted(value) for value in (WORDS, [WORDS], {"a": WORDS})] == [
        f"a text of {len(WORDS)} characters",
        "a list",
        "an object",
    ]


def test_cells_are_told_by_their_length() -> None:
    for words in ("anna.meier@gmx.de", "suicidal"):
        assert described(words) == f"a text of {len(words)} characters"
        with pytest.raises(ValueError, match="the split is a text of") as found:
            splits.split_of({"split": words}, "x", 0.1)
        assert words not in str(found.value)
    assert [described(value) for value in ("B", 7, None, [WORDS])] == ["a text of 1 character", "7", "None", "a list"]
    assert [label_of(value) for value in ("Grief", 7, "", None, ["a"], WORDS)] == ["Grief", "7", None, None, None, None]


@pytest.mark.parametrize(
    "read",
    [
        lambda path: rate.read_ratings(json.dumps({"response_1_rating": WORDS}), 1),
        lambda path: verdicts.read_verdict(json.dumps({"better": WORDS})),
        lambda path: read_choice(json.dumps({"better": [WORDS]})),
        lambda path: read_choice(json.dumps({"better": 1})[:-1] + f', "{WORDS}": 1, "{WORDS}": 2}}'),
        lambda path: splits.split_of({"split": WORDS}, "x", 0.1),
        lambda path: expert_csv.read_verdicts(str(path)),
    ],
)
def test_what_is_invalid_is_told_by_its_kind(read, tmp_path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps({"key": "a", "better": WORDS}) + "\n")
    with pytest.raises((ValueError, UnreadableAnswerError), match=r"a text of \d+ characters|a list") as found:
        read(path)
    assert WORDS not in str(found.value)
