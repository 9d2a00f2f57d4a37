"""Experts read conversations as transcripts, and what they fill in is joined by the items' ids."""

import csv
import io
import json
import re
from pathlib import Path

import openpyxl
import pytest
from support.dialogue_files import contexts_of, dialogue
from support.expert_files import fill, items, read

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate import annotation, experts
from psyco_ray.evaluate.expert_csv import EXPERTS, original

FORMULA = Context(('=HYPERLINK("http://example.org")', "-2+3;=1+1\n@SUM(A1)", "+cmd|' /C calc'!A0, again"))
CONTEXTS = [*(context for seed in (1, 2) for context in contexts_of(dialogue(seed, 3))), FORMULA]


def responses(path: Path, said: str) -> str:
    rows = [{"speech": context.text, "response": f"{said} {n}"} for n, context in enumerate(CONTEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def compared(tmp_path) -> Path:
    policy, opponent = (responses(tmp_path / f"{name}.jsonl", f"{name} says") for name in ("policy", "opponent"))
    experts.export({"free": policy}, opponent, tmp_path / "out", count=len(CONTEXTS), seed=1)
    return tmp_path / "out"


def test_a_comparison_shows_transcripts_and_counts_by_speech_id(compared, tmp_path) -> None:
    key = items(compared)
    by_id = {speech_id(context.text): context for context in CONTEXTS}
    for row in read(compared / "expert-1.csv"):
        context = by_id[key[row["item"]]["speech_id"]]
        assert original(row["client speech"]) == context.transcript
        assert row["client speech"].startswith("Client: " if context.is_conversation else context.opening[:20])
    for expert in EXPERTS:
        fill(compared, expert, lambda row, policy: {"overall preference": policy})
    verdicts = [{"key": speech_id(context.text), "better": "theirs"} for context in CONTEXTS]
    (tmp_path / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    scored = experts.score(compared, {"free": str(tmp_path / "verdicts.jsonl")})
    assert scored["comparisons"]["free"]["preferences"]["overall"]["wins"]["share"] == 1.0
    assert (scored["judge"]["items"], scored["judge"]["share"]) == (len(CONTEXTS), 0.0)


def pairs() -> list[dict]:
    ratings = {f"{side}_{p}_rating": points for side, points in (("chosen", 5), ("rejected", 2)) for p in PRINCIPLES}
    return [
        {"prefID": f"{n}-1", "ID": speech_id(context.text), "question": context.text, **ratings}
        | {"chosen": f"Good {n}", "rejected": f"Bad {n}"}
        for n, context in enumerate(CONTEXTS)
    ]


def test_annotation_of_pairs_shows_transcripts_and_survives_a_spreadsheet(tmp_path) -> None:
    annotation.export(pairs(), tmp_path, count=len(CONTEXTS), seed=2)
    key = items(tmp_path)
    for expert in EXPERTS:
        rows = read(tmp_path / f"{expert}.csv")
        book = openpyxl.Workbook()
        book.active.append(list(rows[0]))
        for row in rows:
            n = int(key[row["item"]]["prefID"].split("-")[0])
            assert original(row["client speech"]) == CONTEXTS[n].transcript
            side = next(side for side in "AB" if key[row["item"]][side] == "chosen")
            book.active.append(list((row | {"overall preference": side}).values()))
        book.save(tmp_path / f"{expert}.csv")  # some programs keep the name
    scored = annotation.score(tmp_path)
    assert scored["between_experts"]["overall"]["equal"] == len(CONTEXTS)
    assert scored["with_labels"]["expert-1"]["overall"]["share"] == 1.0


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_turn_is_a_formula_whatever_separates_cells(tmp_path, delimiter) -> None:
    annotation.export(pairs(), tmp_path, count=len(CONTEXTS))
    text = (tmp_path / "expert-1.csv").read_text("utf-8-sig")
    assert "HYPERLINK" in text
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    cells = [
        cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting) for cell in row
    ]
    starts = [line for cell in cells for line in cell.splitlines()]
    assert not [line for line in starts if re.match(r"[\s\"']*[=+@-]", line)]


LONG = [context for seed in range(4) for context in contexts_of(dialogue(seed, 6))]
PLACE = {context.transcript: number // 6 for number, context in enumerate(LONG)}


def widths(*intervals: tuple[float, float]) -> list[float]:
    return [high - low for low, high in intervals]


def without_conversations(directory: Path) -> None:
    """Let the key of an export know no conversations."""
    key = json.loads((directory / "key.json").read_text())
    for entry in key["items"].values():
        del entry["conversation"]
    (directory / "key.json").write_text(json.dumps(key))


def test_contexts_of_a_conversation_are_one_cluster_of_the_experts_intervals(tmp_path) -> None:
    """The experts, the judge and the scores agree on three of four conversations."""
    for name in ("policy", "opponent"):
        rows = [{"speech": context.text, "response": f"{name} {n}"} for n, context in enumerate(LONG)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    experts.export({"free": str(tmp_path / "policy.jsonl")}, str(tmp_path / "opponent.jsonl"), out, count=len(LONG))

    def first(row: dict[str, str], policy: str) -> dict[str, str]:
        better = PLACE[original(row["client speech"])] < 3
        return {
            "overall preference": policy if better else "BA"["AB".index(policy)],
            f"empathy {policy}": "5" if better else "1",
        }

    fill(out, EXPERTS[0], first)
    fill(out, EXPERTS[1], lambda row, policy: {"overall preference": policy})
    (tmp_path / "verdicts.jsonl").write_text(
        "".join(json.dumps({"key": speech_id(context.text), "better": "ours"}) + "\n" for context in LONG)
    )

    def found() -> list[float]:
        scored = experts.score(out, {"free": str(tmp_path / "verdicts.jsonl")})
        free, between = scored["comparisons"]["free"], scored["agreement"]["preferences"]["overall"]["percent"]
        wins, empathy = free["preferences"]["overall"]["wins"], free["scores"]["empathy"]["policy"]
        return widths(wins["wilson95"], empathy["ci95"], free["judge"]["ci95"], (between["low"], between["high"]))

    together = found()
    without_conversations(out)
    assert all(wide > 1.4 * narrow for wide, narrow in zip(together, found(), strict=True))


def test_contexts_of_a_conversation_are_one_cluster_of_annotations(tmp_path) -> None:
    """By the dialogue that a dataset names, as contexts with a limit do not tell."""
    rows = [
        {**pairs()[0], "prefID": f"{n}", "question": Context(context.turns[-3:]).text, "dialogue": f"{n // 6:016x}"}
        for n, context in enumerate(LONG)
    ]
    annotation.export(rows, tmp_path / "out", count=len(rows))
    key = items(tmp_path / "out")
    for expert in EXPERTS:

        def choice(row: dict[str, str], _: str) -> dict[str, str]:
            entry = key[row["item"]]
            wanted = "chosen" if int(entry["dialogue"], 16) < 3 else "rejected"
            return {"overall preference": "A" if entry["A"] == wanted else "B"}

        fill(tmp_path / "out", expert, choice)
    together = annotation.score(tmp_path / "out")["with_labels"]["expert-1"]["overall"]
    without_conversations(tmp_path / "out")
    alone = annotation.score(tmp_path / "out")["with_labels"]["expert-1"]["overall"]
    assert together["share"] == alone["share"] == 0.75
    wide, narrow = widths(together["wilson"], alone["wilson"])
    assert wide > 1.4 * narrow
