"""Token ids in four bytes each, in memory, in pickles and in tables."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyco_ray.run import schemas
from psyco_ray.run.schemas import SAMPLES, SCORES, group_tables, groups_from_tables, rows_of, table_of
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Group, Prompt, PromptBatch, Response

IDS = tuple(range(99_000, 100_000))


@pytest.mark.parametrize("source", [IDS, list(IDS), np.array(IDS, np.int32), TokenIds(IDS), pa.array(IDS).to_pylist()])
def test_they_equal_a_tuple_of_the_same_ids(source) -> None:
    ids = TokenIds(source)
    assert ids == IDS
    assert {IDS: "found"}[ids] == "found"
    assert hash(ids) == hash(IDS)
    assert ids != IDS[1:]
    assert ids != TokenIds(IDS[1:])
    assert (len(ids), ids[0], ids[-1], 99_500 in ids) == (1000, 99_000, 99_999, True)
    assert ids[990:] == IDS[990:]
    assert [*ids] == [*IDS]
    assert np.asarray(ids, np.int32).tolist() == [*IDS]
    assert np.array(ids).dtype == np.int32
    assert not TokenIds()
    with pytest.raises(OverflowError):
        TokenIds([2**31])


def test_a_group_travels_without_a_python_number_for_each_token() -> None:
    ids = TokenIds(IDS)
    there = pickle.loads(pickle.dumps(ids))
    assert there == ids
    assert len(pickle.dumps(ids)) < 4 * len(ids) + 200
    group = Group(Prompt("s", (1,), 0), tuple(Response("text", TokenIds([n, *IDS]), True) for n in range(8)), 0)
    assert pickle.loads(pickle.dumps(group)) == group
    assert len(pickle.dumps(group)) < 8 * (4 * 1001 + 400)


def written(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", [TokenIds, tuple])
def test_tables_of_groups_have_the_bytes_of_their_rows(kind) -> None:
    groups = [
        Group(
            Prompt(f"s{number}", (1, 2), number + 2**40),
            (
                Response("Yes.", kind((5, 6, number)), True, -1.5, "<think>", 2),
                Response("", kind(()), False),
            ),
            3,
            {"reward": (0.1, -1.0), "heldout": (2.0, 0.3)},
        )
        for number in range(3)
    ]
    samples = [
        {
            "speech_id": group.prompt.speech_id,
            "index": index,
            "response": response.text,
            "reasoning": response.reasoning,
            "reasoning_tokens": response.reasoning_tokens,
            "token_ids": list(response.token_ids),
            "finished": response.finished,
            "logprob": response.logprob,
            "seed": group.prompt.seed,
            "policy_version": group.version,
        }
        for group in groups
        for index, response in enumerate(group.responses)
    ]
    scores = [
        {"speech_id": group.prompt.speech_id, "index": index, "model": model, "score": score}
        for group in groups
        for model, values in group.scores.items()
        for index, score in enumerate(values)
    ]
    tables = group_tables(groups)
    assert written(tables["samples"]) == written(pa.Table.from_pylist(samples, schema=SAMPLES))
    assert written(tables["scores"]) == written(pa.Table.from_pylist(scores, schema=SCORES))
    item = PromptBatch("item", tuple(group.prompt for group in groups))
    found = groups_from_tables(item, **{name: pq.read_table(io.BytesIO(written(t))) for name, t in tables.items()})
    assert [(g.prompt, g.responses, g.version) for g in found] == [(g.prompt, g.responses, g.version) for g in groups]
    assert [g.scores["reward"] for g in found] == [pytest.approx(g.scores["reward"]) for g in groups]
    assert group_tables([])["samples"].num_rows == 0


def test_rows_of_a_part_of_a_table_have_their_own_ids() -> None:
    table = pa.table({"a": [1, 2, 3], "ids": pa.array([[1], [2, 3], [4]], pa.list_(pa.int32()))})
    assert rows_of(table.slice(1, 1)) == [{"a": 2, "ids": (2, 3)}]
    both = pa.concat_tables([table, table.slice(2)])
    assert [row["ids"] for row in rows_of(both)] == [(1,), (2, 3), (4,), (4,)]


def test_a_table_of_rows_has_their_values_in_parts(monkeypatch) -> None:
    monkeypatch.setattr(schemas, "_PART_ROWS", 2)
    rows = [{"speech_id": f"s{n}", "token_ids": TokenIds([n, *IDS]), "finished": n > 1} for n in range(5)]
    table = table_of(rows, SAMPLES)
    assert table.equals(pa.Table.from_pylist(rows, schema=SAMPLES))
    assert table["token_ids"].num_chunks == 3
    assert table_of([], SAMPLES).equals(SAMPLES.empty_table())
