"""The PAIRS table of sampled groups: unfinished responses, and guards that measure within speeches."""

import contextlib
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.logs import messages

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run import records
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Group, PreferencePair, Prompt, Response
from psyco_ray.training import pairs
from psyco_ray.training.pair_stage import PairStage


def reference(name: str, batches: Iterable[Sequence[PreferencePair]]) -> dict[str, tuple[float, float]]:
    return {pair.key: (-1.0, -2.0) for batch in batches for pair in batch}


def group(
    number: int, lengths: Iterable[int], scores: Iterable[float], finished: Iterable[bool] | None = None
) -> Group:
    """A speech's group; the token ids of its responses are different and as many as the lengths say."""
    lengths = list(lengths)
    ends = [True] * len(lengths) if finished is None else list(finished)
    responses = tuple(
        Response(f"answer {number} {i}", tuple(range(1000 * i, 1000 * i + length)), ends[i])
        for i, length in enumerate(lengths)
    )
    return Group(Prompt(f"s{number:03d}", (5, number), 0), responses, 0, {"reward": tuple(map(float, scores))})


@pytest.fixture
def make(tmp_path):
    """Makes the pairs of groups that arrive in the given order; returns the record and the rows of the table."""

    def make(groups: list[Group], unfinished: str = "exclude", **guards) -> tuple[dict, list[dict]]:
        job = Job(
            run_dir=str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"),
            scorers={"reward_model": "a/b"},
            sampling={"max_tokens": 64, "unfinished": unfinished},
            guards=guards,
        )
        ledger = Ledger(job, resume=False)
        prompts = sorted((group.prompt.speech_id, group.prompt.token_ids) for group in groups)
        rows = [{"speech_id": key, "prompt_ids": ids} for key, ids in prompts]
        try:
            facts = PairStage(job, ledger, Progress(), reference).make_sampled(1, rows, iter(groups))
            return facts, pq.read_table(ledger.path("iteration-001/pairs.parquet")).to_pylist()
        finally:
            ledger.close()

    return make


def length_gap(rows: list[dict]) -> float:
    return float(np.mean([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows]))


def opposed(speeches: int = 60) -> list[Group]:
    """Within a speech a token is worth +0.004 of reward; between speeches longer answers have 0.011 less a token."""
    rng = np.random.default_rng(0)
    groups = []
    for number in range(speeches):
        mean = rng.integers(200, 800)
        deviations = rng.integers(-120, 121, 8)
        scores = 0.004 * deviations - 0.011 * (mean - 500) + rng.normal(0, 0.1, 8)
        groups.append(group(number, mean + deviations, scores))
    return groups


def test_debiasing_removes_the_length_that_wins_within_a_speech(make) -> None:
    plain, rows = make(opposed())
    debiased, debiased_rows = make(opposed(), length_debias=True)
    assert plain["length_slope"] == debiased["length_slope"] == pytest.approx(0.004, abs=3e-4)
    assert length_gap(rows) > 150, "longer responses win"
    assert abs(length_gap(debiased_rows)) < 20, "length decides no longer"


def test_the_smallest_margin_is_in_deviations_within_a_speech(make) -> None:
    """Between speeches rewards differ by 100, within them by 1 or 2: the deviation within is sqrt(1.25)."""
    groups = [group(k, [9, 9], [100.0 * k, 100.0 * k + 1 + k % 2]) for k in range(40)]
    facts, rows = make(groups, min_margin=1.0)
    assert facts["reward_deviation"] == pytest.approx(1.25**0.5)
    assert {row["chosen_score"] - row["rejected_score"] for row in rows} == {2.0}
    assert (facts["rows"], len(rows)) == (20, 20)


def test_groups_in_any_order_give_the_same_pairs(make) -> None:
    groups = opposed(20)
    assert make(groups, length_debias=True, min_margin=0.1) == make(groups[::-1], length_debias=True, min_margin=0.1)


def liking_cut(speeches: int, cut: int) -> list[Group]:
    """Groups of four with this many cut responses, which a planted reward likes best, the longest most."""
    rng = np.random.default_rng(1)
    groups = []
    for number in range(speeches):
        finished = [position >= cut for position in range(4)]
        lengths = [64 if not end else int(rng.integers(5, 60)) for end in finished]
        scores = [length + (0 if end else 100) + rng.normal() for length, end in zip(lengths, finished, strict=True)]
        groups.append(group(number, lengths, scores, finished))
    return groups


@pytest.mark.parametrize("robust", [False, True])
def test_a_reward_that_likes_cut_answers_teaches_none_of_them(make, robust: bool) -> None:
    guards = {"preset": "robust"} if robust else {}
    facts, rows = make(liking_cut(30, cut=1), "exclude", **guards)
    assert facts["finished_share"] == 0.75
    assert len(rows) >= 10
    assert all(row["chosen_finished"] for row in rows)
    _, penalised = make(liking_cut(30, cut=1), "penalise", **guards)
    assert all(row["chosen_finished"] and not row["rejected_finished"] for row in penalised)
    _, allowed = make(liking_cut(30, cut=1), "allow")
    assert not any(row["chosen_finished"] for row in allowed), "the planted reward works"


def test_speeches_with_unfinished_answers_only_make_no_pair_and_are_counted(make) -> None:
    logged = messages()
    groups = [*liking_cut(9, cut=0), group(9, [64] * 4, range(4), [False] * 4)]
    facts, rows = make(groups)
    assert (facts["rows"], len(rows), facts["unfinished_speeches"]) == (9, 9, 1)
    assert any("1 of 10 speeches make no pair, all answers are cut or empty" in text for text in logged)
    assert make(groups, "allow")[0]["rows"] == 10


def test_a_stage_with_mostly_cut_responses_ends_the_run_in_one_sentence(make) -> None:
    message = (
        r"^75% of iteration 1's sampled responses were cut at sampling\.max_tokens 64 or are empty; raise sampling"
    )
    with pytest.raises(ValueError, match=message):
        make(liking_cut(8, cut=3))
    assert make(liking_cut(8, cut=3), "allow")[0]["rows"] == 8
    assert make(liking_cut(8, cut=2))[0]["finished_share"] == 0.5, "half is enough"


@pytest.mark.parametrize(("guard", "limit"), [({}, 40), ({"length_debias": True}, 90)])
def test_memory_does_not_hold_the_responses_that_make_no_pair(make, tmp_path, guard, limit) -> None:
    """Kilobytes of the peak per group: eight responses of 1,024 tokens are 300 KB of Python numbers."""
    make([group(0, [4, 9, 2], [1, 0, 2])], **guard)  # imports
    job = Job(run_dir=str(tmp_path / "large"), scorers={"reward_model": "a/b"}, guards=guard)
    count = 100

    def arriving() -> Iterator[Group]:
        for number in range(count):
            lengths = [1024 - 5 * i % 8 for i in range(8)]
            made = group(number, lengths, range(8))
            responses = tuple(Response(r.text * 300, r.token_ids, True) for r in made.responses)
            yield Group(made.prompt, responses, 0, made.scores)

    ledger = Ledger(job, resume=False)
    rows = [{"speech_id": f"s{number:03d}", "prompt_ids": (5, number)} for number in range(count)]
    stage = PairStage(job, ledger, Progress(), reference)
    tracemalloc.start()
    try:
        stage.make_sampled(1, rows, arriving())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        ledger.close()
    assert peak / count < limit * 1000


@pytest.mark.parametrize(("speeches", "words"), [(2, "all of its 2 speeches were"), (0, "each of its dialogues was")])
def test_an_iteration_whose_speeches_are_all_set_aside_ends_with_a_sentence(
    tmp_path, speeches: int, words: str
) -> None:
    ledger = Ledger(job := Job(run_dir=str(tmp_path / "run"), scorers={"reward_model": "a/b"}), resume=False)
    rows = [{"speech_id": f"s{number}", "prompt_ids": (5, number)} for number in range(speeches)]
    with contextlib.closing(ledger), pytest.raises(InputError, match=f"no responses to compare: {words} set aside"):
        PairStage(job, ledger, Progress(), reference).make_sampled(1, rows, iter(()))


def test_the_ids_of_a_pair_are_not_copied_and_its_texts_not_read_for_training(tmp_path, monkeypatch) -> None:
    job = Job(run_dir=str(tmp_path / "run"), scorers={"reward_model": "a/b"})
    of_speech = group(1, [3, 4], [0, 1])
    kept = replace(of_speech, responses=tuple(replace(r, token_ids=TokenIds(r.token_ids)) for r in of_speech.responses))
    pair = pairs.pair_of(kept)
    assert pairs.row_of(pair, kept)["chosen_ids"].tobytes() is kept.responses[1].token_ids.tobytes()
    ledger, read = Ledger(job, resume=False), []
    stage = PairStage(job, ledger, Progress(), reference)
    stage.make_sampled(1, [{"speech_id": "s001", "prompt_ids": (5, 1)}], iter([kept]))
    columns_of = records.read_table
    monkeypatch.setattr(
        records, "read_table", lambda path, columns: read.append(columns) or columns_of(path, columns=columns)
    )
    assert stage.read(1) == [replace(pair, reference=(-1.0, -2.0))]
    assert "chosen_ids" in read[0]
    assert not {"chosen", "rejected"} & set(read[0])
    ledger.close()
