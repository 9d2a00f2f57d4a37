"""Cleaned rows of conversations, and which of them repeat others."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dialogue_files import dialogue

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import DataJob, Source
from psyco_ray.data import collect_rows, repeats
from psyco_ray.run.types import Row

WORDS = st.sampled_from(["I lie awake.", "<br>", "My sister calls.", "It is hard.", "Since May, I think.", "x" * 80])


def job_of(**changes) -> DataJob:
    reading = {"conversations": "contexts", **changes.pop("reading", {})}
    limits = {"min_chars": 20, "max_chars": 60, "test_share": 0.3, "dev_share": 0.3, **changes}
    return DataJob(sources=[Source(name="a", path="a.json", **reading)], collect=limits)


def cleaned(contexts: list[Context], job: DataJob, is_dialogue: bool = True) -> pa.Table:
    nothing = {"source": 0, "topic": None, "problem": None, "skipped": False}
    rows: list[Row] = [
        {**nothing, "row": n, "text": context.text, "dialogue": is_dialogue} for n, context in enumerate(contexts, 1)
    ]
    return collect_rows.clean_batch(pa.Table.from_pylist(rows, schema=collect_rows.RAW), job)


def contexts_of(words: list[list[str]]) -> list[Context]:
    return [Context(tuple(said if len(said) % 2 else said[:-1])) for said in words]


@settings(max_examples=60)
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=9).filter(lambda said: len(said) != 2), max_size=6), st.integers(1, 3)
)
def test_contexts_keep_to_the_limits_and_to_one_split(words, max_turns) -> None:
    contexts = contexts_of(words)
    table = cleaned(contexts, job_of(reading={"max_turns": max_turns}))
    found = defaultdict(list)
    for row in table.to_pylist():
        found[row["row"]].append(row)
    assert list(found) == list(range(1, len(contexts) + 1))
    for rows in found.values():
        kept = [row for row in rows if row["reason"] is None]
        assert [row["signed"] for row in kept] == [True] * bool(kept) + [False] * (len(kept) - 1)
        assert len({(row["split"], row["dialogue"]) for row in kept}) <= 1
        for row in kept:
            context = Context.of(row["speech"])
            assert context.turn <= min(max_turns, row["turn"])
            assert len("\n".join(context.client_turns)) >= 20
            assert all(0 < len(turn) <= 60 for turn in context.client_turns)
            assert all("<br>" not in turn for turn in context.turns)
        if rows[0]["reason"] not in ("empty", "too long") or len(rows) > 1:
            assert [row["turn"] for row in rows] == list(range(1, len(rows) + 1))


def test_dialogues_that_begin_alike_are_in_one_split_unless_they_only_greet() -> None:
    job = job_of(min_chars=100, max_chars=1000)
    began = dialogue(1, 2)
    alike = [Context((*began.turns[:1], "Go on.", *dialogue(n).turns)) for n in range(2, 14)]
    greeted = [Context(("Hello.", "Hi.", *dialogue(n).turns)) for n in range(2, 14)]
    splits = [
        {row["split"] for row in cleaned(contexts, job).to_pylist() if row["split"]} for contexts in (alike, greeted)
    ]
    assert (len(splits[0]), len(splits[1])) == (1, 3)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["same", "near", "part", "begun"])), min_size=1, max_size=10)
)
def test_a_dialogue_stays_or_goes_whole_but_for_equal_contexts(tmp_path_factory, made) -> None:
    contexts = []
    for seed, kind in made:
        whole = dialogue(seed, 3)
        contexts.append(
            {
                "same": whole,
                "near": whole.map(lambda turn: turn.replace("I miss", "I do miss")),
                "part": Context(whole.turns[:3]),
                "begun": Context((*whole.turns[:1], "And then?", *dialogue(seed + 50, 2).turns)),
            }[kind]
        )
    table = cleaned(contexts, job_of(min_chars=100, max_chars=1000))
    order = np.arange(len(table))
    path = tmp_path_factory.mktemp("signed") / "signatures"
    representative, _ = repeats.find(table, order, 0.6, path)
    rows = table.to_pylist()
    by_dialogue = defaultdict(list)
    for n, row in enumerate(rows):
        other = representative[n]
        assert representative[other] == other, "what represents stays"
        assert other <= n or rows[other]["dialogue"] != row["dialogue"]
        if other != n and rows[other]["dialogue"] == row["dialogue"]:
            assert rows[other]["key"] == row["key"], "contexts of one dialogue are no near duplicates"
        by_dialogue[row["dialogue"]].append(n)
    for members in by_dialogue.values():
        fates = {
            "goes" if representative[n] != n and rows[representative[n]]["key"] != rows[n]["key"] else "stays"
            for n in members
            if rows[representative[n]]["key"] != rows[n]["key"] or representative[n] == n
        }
        assert len(fates) <= 1
    assert len({rows[n]["key"] for n in order if representative[n] == n}) == int((representative == order).sum())


def test_without_near_duplicates_only_equal_contexts_go(tmp_path) -> None:
    contexts = [dialogue(1, 3), dialogue(1, 3), dialogue(1, 2)]
    table = cleaned(contexts, job_of(min_chars=100, max_chars=1000))
    representative, held = repeats.find(table, np.arange(len(table)), 1, tmp_path / "signatures")
    assert representative.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert held == set()
    representative, held = repeats.find(table, np.arange(len(table)), 0.6, tmp_path / "signatures")
    assert representative.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_stored_contexts_of_conversations_that_only_greet_alike_are_told_apart() -> None:
    wholes = [Context(("Hello.", "Hi.", *dialogue(n, 2).turns)) for n in range(2, 14)]
    contexts = [Context(whole.turns[:end]) for whole in wholes for end in (3, 5)]
    rows = cleaned(contexts, job_of(min_chars=100, max_chars=1000), is_dialogue=False).to_pylist()
    keys = [{(row["dialogue"], row["split"]) for row in rows[n : n + 2]} for n in range(0, len(rows), 2)]
    assert {len(found) for found in keys} == {1}
    assert len(set.union(*keys)) == len(wholes)
    assert len({row["split"] for row in rows}) == 3
