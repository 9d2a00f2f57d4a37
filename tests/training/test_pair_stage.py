"""The PAIRS table of offline pairs: unique keys, dropped pairs, and what is read back."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.chat_templates import R1, with_template

from psyco_ray.config.training import DpoConfig, Job, Part, Prompts
from psyco_ray.data import mixture
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import PAIRS
from psyco_ray.run.types import PreferencePair
from psyco_ray.training.pair_stage import PairStage


def reference(name: str, batches: Iterable[Sequence[PreferencePair]]) -> dict[str, tuple[float, float]]:
    """A reference that differs from pair to pair."""
    return {pair.key: (-float(len(pair.chosen_ids)), -1.0) for batch in batches for pair in batch}


@pytest.fixture
def job(tmp_path, tiny_model) -> Job:
    return Job(
        run_dir=str(tmp_path / "run"),
        model=str(tiny_model),
        pairs_from="file",
        prompts=Prompts(respond="respond-small"),
    )


@pytest.fixture
def ledger(job) -> Iterator[Ledger]:
    ledger = Ledger(job, resume=False)
    yield ledger
    ledger.close()


def table_of(job: Job, *files: tuple[Path, list[dict]]) -> pa.Table:
    """The training pairs of files written for the test."""
    for path, rows in files:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return mixture.mix([Part(pairs=str(path)) for path, _ in files], job.data, seed=0).train


def test_pairs_of_two_files_with_the_same_ids_are_all_trained(local_ray, job, ledger, tmp_path) -> None:
    rows = [
        {"prompt": f"{name} {i}", "chosen": f"{name} yes {i}", "rejected": f"{name} no {i}", "split": "train"}
        for name in ("first", "second")
        for i in range(4)
    ]
    table = table_of(job, (tmp_path / "a.parquet", rows[:4]), (tmp_path / "b.parquet", rows[4:]))
    assert len(set(table["pair_id"].to_pylist())) < 8, "their ids are row numbers"
    stage = PairStage(job, ledger, Progress(), reference)
    facts = stage.make_offline(1, np.arange(8), table)
    assert (facts["rows"], facts["speeches"]) == (8, 8)
    pairs = stage.read(1)
    assert len({pair.key for pair in pairs}) == len({pair.chosen_ids for pair in pairs}) == 8
    stored = pq.read_table(ledger.path("iteration-001/pairs.parquet")).to_pylist()
    assert sorted(row["chosen"] for row in stored) == sorted(row["chosen"] for row in rows)
    for row, pair in zip(stored, pairs, strict=True):
        assert row["chosen"].split()[:2] == [*row["rejected"].split()[:1], "yes"]
        assert row["chosen_reference"] == -len(pair.chosen_ids), "the reference is that of its own pair"


def test_weights_of_a_file_reach_the_stored_pairs(local_ray, job, ledger, tmp_path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no", "split": "train"} for i in range(3)]
    weighted = [{**row, "weight": weight} for row, weight in zip(rows, (0.25, 1.0, None), strict=True)]
    stage = PairStage(job, ledger, Progress(), reference)
    stage.make_offline(1, np.arange(3), table_of(job, (tmp_path / "weighted.parquet", weighted)))
    stored = pq.read_table(ledger.path("iteration-001/pairs.parquet"))
    assert {row["chosen"]: row["weight"] for row in stored.to_pylist()} == {"yes 0": 0.25, "yes 1": 1.0, "yes 2": 1.0}
    assert [pair.weight for pair in stage.read(1)] == stored["weight"].to_pylist()
    stage.make_offline(2, np.arange(3), table_of(job, (tmp_path / "plain.parquet", rows)))
    assert pq.read_schema(ledger.path("iteration-002/pairs.parquet")).equals(PAIRS), (
        "its bytes are those without weights"
    )
    assert [pair.weight for pair in stage.read(2)] == [1.0] * 3


def test_a_quarantined_pair_is_left_out(local_ray, job, ledger, tmp_path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no", "split": "train"} for i in range(4)]
    table = table_of(job, (tmp_path / "pairs.parquet", rows))
    stage = PairStage(job, ledger, Progress(), lambda name, batches: reference(name, [next(iter(batches))[1:]]))
    assert stage.make_offline(1, np.arange(4), table)["rows"] == 3
    assert len(stage.read(1)) == 3


@pytest.mark.parametrize("trained", ["answer", "all"])
def test_offline_pairs_of_a_thinking_model_say_where_the_answers_begin(
    local_ray, job, tmp_path, tiny_model, tokenizer, trained
) -> None:
    thinker = with_template(tiny_model, R1, tmp_path / "thinker")
    job = job.model_copy(update={"model": str(thinker), "dpo": DpoConfig(reasoning=trained)})
    chosen = [f"<think>\nShe grieves {i}.\n</think>\n\nYes {i}." for i in range(3)]
    rows = [{"prompt": f"q{i}", "chosen": text, "rejected": "No.", "split": "train"} for i, text in enumerate(chosen)]
    table = table_of(job, (tmp_path / "pairs.parquet", rows))
    ledger = Ledger(job, resume=False)
    try:
        stage = PairStage(job, ledger, Progress(), reference)
        facts, pairs = stage.make_offline(1, np.arange(3), table), stage.read(1)
    finally:
        ledger.close()
    first = next(pair for pair in pairs if "grieves 0" in tokenizer.decode(pair.chosen_ids))
    lengths = [tokens for pair in pairs for tokens in pair.trained_tokens]
    assert facts["mean_tokens"] == sum(lengths) / len(lengths)
    sides = zip((first.chosen_ids, first.rejected_ids), first.context, strict=True)
    before = ["She grieves 0.\n</think>\n\n", "\n</think>\n\n"] if trained == "answer" else ["", ""]
    assert [tokenizer.decode(ids[:k]) for ids, k in sides] == before


def test_pairs_that_are_all_too_long_are_refused(local_ray, job, ledger, tmp_path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "word " * 5000, "rejected": "no", "split": "train"} for i in range(4)]
    table = table_of(job, (tmp_path / "long.parquet", rows))
    stage = PairStage(job, ledger, Progress(), reference)
    with pytest.raises(ValueError, match="none of 4 fits rollouts"):
        stage.make_offline(2, np.arange(4), table)
