"""Pairs ordered by the ratings of one principle, for reward models of a principle."""

import json
from pathlib import Path

import pytest

from psyco_ray.config import job_file
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.config.training import Data, Job, Part
from psyco_ray.data.mixture import mix
from psyco_ray.data.principle_pairs import ALIKE, NOT_RATED

RATINGS = {  # of empathy and of all other principles: chosen, rejected
    "higher": ((5, 1), (4, 2)),
    "lower": ((2, 4), (5, 3)),
    "alike": ((3, 3), (5, 2)),
    "none": None,
}


def write(path: Path, kinds: list[str]) -> str:
    """Pairs of these kinds, in the train split, with a dev pair of the kind lower."""
    rows = []
    for number, kind in enumerate([*kinds, "lower"]):
        speech = f"It is {kind}. Please hear my story number {number}, for nobody else has yet heard it."
        row = {"question": speech, "chosen": f"Chosen {kind}.", "rejected": f"Rejected {kind}."}
        row |= {"prefID": f"p{number}", "split": "train" if number < len(kinds) else "dev"}
        row |= {"chosen_finished": True, "rejected_finished": kind != "higher"}
        if (rated := RATINGS[kind]) is not None:
            for name in PRINCIPLES:
                of = rated[0] if name == "empathy" else rated[1]
                row |= {f"chosen_{name}_rating": of[0], f"rejected_{name}_rating": of[1]}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_principle_orders_the_responses_of_training_and_held_out_pairs(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", ["higher", "lower", "alike", "none"])
    mixture = mix([Part(pairs=file, principle="empathy")], Data(), seed=0)
    by_text = {row["chosen"]: row for row in mixture.train.to_pylist()}
    assert by_text.keys() == {"Chosen higher.", "Rejected lower."}
    higher, lower = by_text["Chosen higher."], by_text["Rejected lower."]
    assert (higher["rejected"], higher["gap"], higher["empathy_gap"], higher["clarity_gap"]) == (
        "Rejected higher.", 4, 4, 2
    )  # fmt: skip
    assert (lower["rejected"], lower["gap"], lower["empathy_gap"], lower["clarity_gap"]) == ("Chosen lower.", 2, 2, -2)
    assert (higher["chosen_finished"], higher["rejected_finished"]) == (True, False)
    [dev] = mixture.dev.to_pylist()
    assert (dev["chosen"], dev["gap"]) == ("Rejected lower.", 2)
    [origin] = mixture.parts
    assert (origin["principle"], origin["left_out"]) == ("empathy", {ALIKE: 1, NOT_RATED: 1})
    whole = mix([Part(pairs=file)], Data(), seed=0)
    assert {row["chosen"] for row in whole.train.to_pylist()} == {f"Chosen {kind}." for kind in RATINGS}
    assert "principle" not in whole.parts[0]


def test_a_response_that_was_cut_is_not_chosen_by_a_principle_either(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "pairs.jsonl", ["higher", "lower"]))
    rows = [json.loads(line) | {"rejected_finished": False} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = mix([Part(pairs=str(path), principle="empathy")], Data(), seed=0)
    assert [row["chosen"] for row in mixture.train.to_pylist()] == ["Chosen higher."]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["none", "none"], r"pairs\.jsonl has no pair with ratings .* leave out principle: clarity"),
        (["alike", "alike"], r"pairs\.jsonl has no pair whose responses differ by clarity; name another principle"),
    ],
)
def test_a_file_without_such_pairs_is_refused_in_one_sentence(tmp_path: Path, kinds, message, monkeypatch) -> None:
    monkeypatch.setitem(RATINGS, "lower", None)
    monkeypatch.setitem(RATINGS, "alike", ((3, 3), (3, 3)))
    file = write(tmp_path / "pairs.jsonl", kinds)
    with pytest.raises(ValueError, match=message) as caught:
        mix([Part(pairs=file, principle="clarity")], Data(), seed=0)
    assert "\n" not in str(caught.value)


def test_a_principle_that_does_not_exist_is_refused_by_its_key() -> None:
    values = {"reward": {"mixture": [{"pairs": "sample", "principle": "warmth"}]}}
    with pytest.raises(ValueError, match=r"reward\.mixture\.0\.principle: .*'empathy', 'relevance'"):
        job_file.parse(Job, values, "job.yaml")


@pytest.mark.parametrize("principle", PRINCIPLES)
def test_the_packaged_pairs_make_pairs_of_each_principle(principle: str) -> None:
    mixture = mix([Part(pairs="sample", principle=principle)], Data(), seed=0)
    assert mixture.train.num_rows + mixture.parts[0]["left_out"].get(ALIKE, 0) > 100
    assert all(row["gap"] == row[f"{principle}_gap"] >= 1 for row in mixture.train.to_pylist())
