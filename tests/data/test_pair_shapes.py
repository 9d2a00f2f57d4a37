"""Preference files in the shapes that datasets and annotation tools publish give the right pairs."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import Messages
from psyco_ray.data import preferences

ASKED = "I cannot sleep since my mother moved in."
WARM, COLD, FLAT, RUDE = "That sounds exhausting.", "Sleep more.", "I see.", "Get over it."
BEST_AND_WORST = [(ASKED, WARM, RUDE)]

Pair = tuple[str | Messages, str, str]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path, *rows: dict[str, Any]) -> list[Pair]:
    """Question and responses of each pair; the question is a text unless there are turns before it."""
    return pairs_of(write(path / "pairs.jsonl", *rows))


def pairs_of(file: str) -> list[Pair]:
    rows = preferences.read(file).table.to_pylist()
    return [
        (json.loads(row["asked"]) if row["form"] == "messages" else row["asked"], row["chosen"], row["rejected"])
        for row in rows
    ]


def said(*contents: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def completion(response: str, *ratings: int | str, overall: float | None = None) -> dict[str, Any]:
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {aspect: {"Rating": str(r), "Rationale": "r"} for aspect, r in zip(aspects, ratings, strict=False)}
    return {"model": "m", "response": response, "overall_score": overall} | (
        {"annotations": annotations} if ratings else {}
    )


def ultrafeedback(*completions: dict[str, Any]) -> dict[str, Any]:
    return {"source": "s", "instruction": ASKED, "models": ["m"], "completions": list(completions)}


def helpsteer1(*responses: tuple[str, int]) -> list[dict[str, Any]]:
    """Rows with a response and its helpfulness."""
    others = {"correctness": 3, "coherence": 4, "complexity": 2, "verbosity": 2}
    return [{"prompt": ASKED, "response": text, "helpfulness": rating, **others} for text, rating in responses]


def votes(**values: Any) -> list[dict[str, Any]]:
    """One submitted answer to each question, as Argilla 1 has it in the columns of an exported dataset."""
    return [{"user_id": "u", "value": value, "status": "submitted"} for value in values.values()]


FIELDS = {"prompt": ASKED, "response-1": COLD, "response-2": WARM}
RANKS = [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]
TASK = {"prompt": ASKED, "answer1": COLD, "answer2": WARM}


def selected(*sides: str) -> list[dict[str, Any]]:
    """Annotations of Label Studio, one by each annotator."""
    return [
        {
            "was_cancelled": False,
            "result": [{"from_name": "pw", "to_name": "t1", "type": "pairwise", "value": {"selected": side}}],
        }
        for side in sides
    ]


WARM_OVER_COLD = [(ASKED, WARM, COLD)]
SHAPES: dict[str, tuple[list[dict[str, Any]], list[Pair]]] = {
    "HH-RLHF": (
        [
            {
                "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {WARM}",
                "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {COLD}",
            }
        ],
        [(said(ASKED), WARM, COLD)],
    ),
    "UltraFeedback, ratings": (
        [
            ultrafeedback(
                completion(RUDE, 1, 1, 2, 1, overall=10),
                completion(WARM, 5, 5, 4, 5, overall=8),
                completion(FLAT, 3, 3, 3, 3),
            )
        ],
        BEST_AND_WORST,
    ),
    "UltraFeedback, overall scores": (
        [ultrafeedback(completion(WARM, overall=8.5), completion(RUDE, overall=2), completion(FLAT, overall=5))],
        BEST_AND_WORST,
    ),
    "UltraFeedback, a rating is missing": (
        [ultrafeedback(completion(WARM, 1, 1, "N/A", 1, overall=8.5), completion(RUDE, 5, 5, 5, 5, overall=2))],
        BEST_AND_WORST,
    ),
    "UltraFeedback, some aspects": (
        [
            ultrafeedback(
                {"response": RUDE, "annotations": {"helpfulness": {"Rating": "2"}, "honesty": {"Rating": "5"}}},
                {"response": WARM, "annotations": {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}}},
            )
        ],
        BEST_AND_WORST,
    ),
    "UltraFeedback, binarized": (
        [
            {
                "prompt": ASKED,
                "prompt_id": "p",
                "chosen": said(ASKED, WARM),
                "rejected": said(ASKED, COLD),
                "messages": said(ASKED, WARM),
                "score_chosen": 8.5,
                "score_rejected": 5.0,
            }
        ],
        WARM_OVER_COLD,
    ),
    "UltraFeedback, chosen_response": (
        [
            {
                "instruction": ASKED,
                "chosen_response": WARM,
                "rejected_response": COLD,
                "chosen_avg_rating": 5,
                "rejected_avg_rating": 2,
            }
        ],
        WARM_OVER_COLD,
    ),
    "HelpSteer": (helpsteer1((FLAT, 2), (WARM, 4), (COLD, 1), (RUDE, 0)), BEST_AND_WORST),
    "HelpSteer2's preferences": (
        [{"prompt": ASKED, "response_1": COLD, "response_2": WARM, "preference_strength": 2}],
        WARM_OVER_COLD,
    ),
    "HelpSteer3": (
        [
            {
                "domain": "general",
                "context": said("Hello", "Hi", ASKED),
                "response1": WARM,
                "response2": COLD,
                "overall_preference": -2,
                "individual_preference": [{"score": -2}],
            },
            {"context": said(ASKED), "response1": COLD, "response2": WARM, "overall_preference": 1},
        ],
        [(said("Hello", "Hi", ASKED), WARM, COLD), (said(ASKED), WARM, COLD)],
    ),
    "Nectar": (
        [
            {
                "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ",
                "answers": [
                    {"answer": text, "model": "m", "rank": rank}
                    for text, rank in ((RUDE, 3.0), (WARM, 1.0), (FLAT, 2.0))
                ],
                "num_responses": 3,
            }
        ],
        [(said(ASKED), WARM, RUDE)],
    ),
    "arena": (
        [
            {
                "question_id": "q",
                "conversation_a": said(ASKED, COLD),
                "conversation_b": said(ASKED, WARM),
                "winner": "model_b",
                "turn": 1,
            },
        ],
        [(said(ASKED), WARM, COLD)],
    ),
    "MT-bench, a vote about the first turn": (
        [
            {
                "conversation_a": said(ASKED, WARM, "And now?", "Rest."),
                "conversation_b": said(ASKED, COLD, "And now?", "Work."),
                "winner": "model_a",
                "turn": 1,
            }
        ],
        [(said(ASKED), WARM, COLD)],
    ),
    "alpaca_eval": (
        [
            {"instruction": ASKED, "output_1": COLD, "output_2": WARM, "preference": 2.0, "generator_1": "g"},
            {"instruction": ASKED, "output_1": WARM, "output_2": COLD, "preference": 1.0001},
        ],
        WARM_OVER_COLD * 2,
    ),
    "RewardBench": ([{"prompt": ASKED, "chosen": WARM, "rejected": COLD, "subset": "s", "id": 3}], WARM_OVER_COLD),
    "LLaMA-Factory, ShareGPT": (
        [
            {
                "conversations": [{"from": "human", "value": ASKED}],
                "chosen": {"from": "gpt", "value": WARM},
                "rejected": {"from": "gpt", "value": COLD},
                "system": "Be brief.",
            }
        ],
        [([{"role": "system", "content": "Be brief."}, *said(ASKED)], WARM, COLD)],
    ),
    "LLaMA-Factory, alpaca": (
        [
            {"instruction": "Answer.", "input": ASKED, "chosen": WARM, "rejected": COLD, "system": "", "history": []},
            {"instruction": ASKED, "input": "", "chosen": WARM, "rejected": COLD, "history": [["Hello", "Hi"]]},
        ],
        [(f"Answer.\n{ASKED}", WARM, COLD), (said("Hello", "Hi", ASKED), WARM, COLD)],
    ),
    "Orca": (
        [{"system": "Be brief.", "question": ASKED, "chosen": WARM, "rejected": COLD}],
        [([{"role": "system", "content": "Be brief."}, *said(ASKED)], WARM, COLD)],
    ),
    "an input": (
        [{"system": "Be brief.", "input": ASKED, "chosen": WARM, "rejected": COLD}],
        [([{"role": "system", "content": "Be brief."}, *said(ASKED)], WARM, COLD)],
    ),
    "Argilla 1, columns": ([{**FIELDS, "id": "r", "preference": votes(q=RANKS)}], WARM_OVER_COLD),
    "Argilla 1, columns as `datasets` stores them": (
        [
            {
                **FIELDS,
                "preference": {
                    "user_id": ["u"],
                    "value": [{"value": ["response-1", "response-2"], "rank": [2, 1]}],
                    "status": ["submitted"],
                },
            }
        ],
        WARM_OVER_COLD,
    ),
    "Argilla 1, records": (
        [
            {
                "fields": FIELDS,
                "responses": [
                    {"status": "submitted", "user_id": "u", "values": {"better": {"value": "response-2"}}},
                    {"status": "discarded", "user_id": "v", "values": {"better": {"value": "response-1"}}},
                ],
            }
        ],
        WARM_OVER_COLD,
    ),
    "Argilla 2, records": (
        [{"id": "r", "fields": FIELDS, "responses": {"better": [{"value": "2", "user_id": "u"}]}, "suggestions": None}],
        WARM_OVER_COLD,
    ),
    "Argilla 2, columns": (
        [
            {
                "id": "r",
                "status": "completed",
                **FIELDS,
                "rank.responses": [["response-1", "response-2"], ["response-2", "response-1"]],
                "rank.responses.users": ["u", "v"],
                "rank.responses.status": ["draft", "submitted"],
                "rank.suggestion": None,
            }
        ],
        WARM_OVER_COLD,
    ),
    "Argilla, ratings of each response": (
        [
            {
                "fields": FIELDS | {"response-3": RUDE},
                "responses": {
                    f"response-{number}-rating": [{"value": rating, "user_id": "u"} for rating in ratings]
                    for number, ratings in enumerate([(3, 3), (4, 5), (1, 2)], start=1)
                },
            }
        ],
        BEST_AND_WORST,
    ),
    "Label Studio": ([{"id": 1, "data": TASK, "annotations": selected("right", "left", "right")}], WARM_OVER_COLD),
    "Label Studio, choices": (
        [
            {
                "id": 1,
                "data": {"prompt": ASKED, "response_a": WARM, "response_b": COLD},
                "annotations": [
                    {"result": [{"from_name": "c", "type": "choices", "value": {"choices": ["Response A"]}}]},
                    {"was_cancelled": True, "result": [{"type": "choices", "value": {"choices": ["Response B"]}}]},
                ],
            }
        ],
        WARM_OVER_COLD,
    ),
    "Label Studio, left and right": (
        [{"data": {"prompt": ASKED, "left": WARM, "right": COLD}, "annotations": selected("left")}],
        WARM_OVER_COLD,
    ),
    "Label Studio, flat": (
        [{**TASK, "id": 1, "pw": "right", "annotator": 1, "annotation_id": 3, "lead_time": 2.5}],
        WARM_OVER_COLD,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_gives_its_pairs(tmp_path, name) -> None:
    rows, expected = SHAPES[name]
    assert read(tmp_path, *rows) == expected
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "same.parquet")
    assert pairs_of(str(tmp_path / "same.parquet")) == expected
    (tmp_path / "same.json").write_text(json.dumps(rows))
    assert pairs_of(str(tmp_path / "same.json")) == expected


LEFT_OUT: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "arena": (
        "no preference",
        [
            {"conversation_a": said(ASKED, WARM), "conversation_b": said(ASKED, COLD), "winner": winner}
            for winner in ("tie", "tie (bothbad)")
        ],
    ),
    "arena, an unknown winner": (
        "a winner that is neither model_a, model_b nor tie",
        [{"conversation_a": said(ASKED, WARM), "conversation_b": said(ASKED, COLD), "winner": "gpt-4"}],
    ),
    "alpaca_eval": (
        "no preference",
        [{"instruction": ASKED, "output_1": WARM, "output_2": COLD, "preference": 1.5} for _ in range(2)],
    ),
    "HelpSteer": ("a prompt with one response", helpsteer1((WARM, 4))),
    "HelpSteer3": (
        "no preference",
        [{"context": ASKED, "response1": WARM, "response2": COLD, "overall_preference": 0}],
    ),
    "UltraFeedback": ("no preference", [ultrafeedback(completion(WARM, overall=5), completion(COLD, overall=5))]),
    "Nectar": ("answers that is no list of objects", [{"prompt": ASKED, "answers": "none"}]),
    "Argilla": ("no answer that compares the responses", [{"fields": FIELDS, "responses": []}]),
    "Argilla, a tie": ("no preference", [{"fields": FIELDS, "responses": {"better": [{"value": "Tie"}]}}]),
    "Argilla, a context": (
        "a field context beside the prompt, which is not read",
        [{"fields": FIELDS | {"context": "She is nine."}, "responses": {"better": [{"value": "1"}]}}],
    ),
    "Argilla, one response": (
        "no two fields whose names differ in a number or letter at the end",
        [{"fields": {"prompt": ASKED, "response": WARM}, "responses": {"better": [{"value": "1"}]}}],
    ),
    "Label Studio": ("no preference", [{"data": TASK, "annotations": selected("left", "right")}]),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_rows_without_a_preference_are_left_out_by_reason(tmp_path, name) -> None:
    reason, rows = LEFT_OUT[name]
    count = len(rows)
    with pytest.raises(InputError, match=rf"no usable pair \({reason}: {count}\)"):
        read(tmp_path, *rows)


def test_one_line_says_what_was_recognised_and_left_out_the_commonest_first(tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    row = {"context": ASKED, "response1": WARM, "response2": COLD, "overall_preference": -1}
    rows = [row | {"response1": ""}, *[row | {"overall_preference": 0}] * 2, *[row] * 3]
    file = write(tmp_path / "rows.jsonl", *rows)
    found = preferences.read(file)
    assert list(found.left_out.items()) == [("no preference", 2), ("empty chosen", 1)]
    [line] = [record.getMessage() for record in caplog.records if file in record.getMessage()]
    assert line == (
        f"pairs file {file} is read as HelpSteer3's preferences, JSONL: 6 rows, 3 pairs; "
        "3 of 6 rows are left out (no preference: 2, empty chosen: 1)"
    )


def test_several_chosen_and_rejected_responses_are_one_item(tmp_path) -> None:
    rows = [
        {
            "id": "7",
            "prompt": ASKED,
            "chosen": [WARM],
            "rejected": [COLD, FLAT, RUDE],
            "num_correct": 1,
            "subset": "Focus",
        },
        {
            "id": "tied:1",
            "prompt": "Name a colour.",
            "chosen": ["Red.", "Blue."],
            "rejected": ["Three."],
            "subset": "Ties",
        },
    ]
    table = preferences.read(write(tmp_path / "bench.jsonl", *rows)).table.to_pylist()
    assert [(row["item"], row["pair_id"], row["chosen"], row["rejected"]) for row in table] == [
        ("7", "7-1", WARM, COLD),
        ("7", "7-2", WARM, FLAT),
        ("7", "7-3", WARM, RUDE),
        ("tied:1", "tied:1-1", "Red.", "Three."),
        ("tied:1", "tied:1-2", "Blue.", "Three."),
    ]
    assert [row["subset"] for row in table] == ["Focus"] * 3 + ["Ties"] * 2


def test_the_pairs_of_a_prompt_are_in_one_split(tmp_path) -> None:
    rows = [
        {"id": f"{number}-{copy}", "prompt": f"question {number}", "chosen": ["a", "b"], "rejected": ["c", "d", "e"]}
        for number in range(60)
        for copy in range(2)
    ]
    table = preferences.read(write(tmp_path / "items.jsonl", *rows), dev_share=0.3).table.to_pylist()
    splits: dict[str, set[str]] = {}
    for row in table:
        splits.setdefault(row["asked"], set()).add(row["split"])
    assert {len(own) for own in splits.values()} == {1}
    assert {split for own in splits.values() for split in own} == {"train", "dev"}


def test_arena_responses_may_be_json_lists_in_the_cells_of_a_csv_file(tmp_path) -> None:
    with open(tmp_path / "arena.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"])
        writer.writerow([1, json.dumps([ASKED]), json.dumps([COLD]), json.dumps([WARM]), 0, 1, 0])
        writer.writerow([2, json.dumps([ASKED]), json.dumps([COLD]), json.dumps([WARM]), 0, 0, 1])
        writer.writerow([3, json.dumps([ASKED, "?"]), json.dumps([COLD]), json.dumps([WARM]), 0, 1, 0])
    found = preferences.read(str(tmp_path / "arena.csv"))
    assert [(row["chosen"], row["rejected"]) for row in found.table.to_pylist()] == [(WARM, COLD)]
    assert found.left_out == {"no preference": 1, "a response without a text for each turn": 1}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [([1, 2], "a message without role and content"), (True, "true or false instead of a text or messages")],
)
def test_no_other_value_becomes_text(tmp_path, cell, reason) -> None:
    with pytest.raises(InputError, match=rf"no usable pair \({reason}: 1\)"):
        read(tmp_path, {"prompt": "q", "chosen": cell, "rejected": "b"})


def test_bytes_are_text_and_messages_written_by_numpy_are_refused(tmp_path) -> None:
    table = pa.table({"prompt": [b"caf\xc3\xa9?", b"\xff"], "chosen": ["a", "a"], "rejected": ["b", "b"]})
    pq.write_table(table, tmp_path / "bytes.parquet")
    found = preferences.read(str(tmp_path / "bytes.parquet"))
    assert found.table["asked"].to_pylist() == ["café?"]
    assert found.left_out == {"bytes that are not UTF-8 instead of a text or messages": 1}
    lists = "array([{'content': 'Hi', 'role': 'user'}, {'content': 'A', 'role': 'assistant'}], dtype=object)"
    with pytest.raises(InputError, match=r"a list of messages that cannot be read: 1"):
        read(tmp_path, {"chosen": lists, "rejected": lists})


def test_an_answer_that_is_json_stays_a_text(tmp_path) -> None:
    answers = {"chosen": '[{"value": 3}]', "rejected": '{"role": "nurse"}'}
    assert read(tmp_path, {"prompt": "Give JSON.", **answers}) == [("Give JSON.", *answers.values())]


def test_white_space_around_a_repeated_prompt_makes_no_difference(tmp_path) -> None:
    row = {"prompt": f" {ASKED}\n", "chosen": said(ASKED, WARM), "rejected": said(ASKED, COLD)}
    assert read(tmp_path, row) == [(said(ASKED), WARM, COLD)]


def test_a_file_without_a_known_format_shows_no_text_of_a_client(tmp_path) -> None:
    (tmp_path / "noheader.csv").write_text(f'"{ASKED} And I cry.",b,c\nd,e,f\n')
    with pytest.raises(
        InputError,
        match=r"columns \(a text of 51 characters\), b, c: its first row looks like data; .*; accepted are question",
    ):
        preferences.read(str(tmp_path / "noheader.csv"))


CELL_TEXTS = [
    "",
    " ",
    "a",
    "1",
    "tie",
    "left",
    "[1]",
    "[{'role': 'user', 'content': 'x'}",
    '{"selected": "left"}',
    "\ud800x",
]
CELL_TEXTS += ["\n\nHuman: a\n\nAssistant: b", "Human:\n\nAssistant:", "x<extra_id_1>User", json.dumps(said("q", "a"))]
KEYS = [
    "role",
    "content",
    "from",
    "value",
    "text",
    "rank",
    "answer",
    "response",
    "rating",
    "annotations",
    "Rating",
    "result",
]
KEYS += [
    "helpfulness",
    "honesty",
    "instruction_following",
    "truthfulness",
    "overall_score",
    "status",
    "user_id",
    "values",
]
KEYS += [
    "prompt",
    "response-1",
    "response-2",
    "answer_a",
    "answer_b",
    "selected",
    "choices",
    "type",
    "messages",
    "better",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.floats() | st.sampled_from(CELL_TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
        | st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": inner}), max_size=3
        )
    ),
    max_leaves=8,
)
EXTRA = ["system", "input", "history", "turn", "topic", "subset", "responses", "pw", "winner_model_b", "score_chosen"]
EXTRA += ["response-1", "better.responses", "better.responses.status", "annotation_id", "annotator", "lead_time"]


@st.composite
def spoilt(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a shape, and rows in which some of the cells have other values."""
    rows, _ = draw(st.sampled_from(list(SHAPES.values())))
    cells = {name: st.just(value) | VALUES for name, value in rows[0].items()}
    more = {name: VALUES for name in EXTRA if name not in cells}
    other = st.fixed_dictionaries(cells, optional=more if draw(st.booleans()) else {})
    return [*rows, *draw(st.lists(other, min_size=1, max_size=4))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spoilt())
def test_any_values_give_pairs_or_reasons_and_no_row_is_lost(rows) -> None:
    rows = [{name: value for name, value in row.items() if name not in ("id", "prefID")} for row in rows]
    with tempfile.TemporaryDirectory() as directory:
        file = write(Path(directory) / "any.jsonl", *rows)
        try:
            found = preferences.read(file)
        except InputError:
            return
    made = found.table.to_pylist()
    if "helpfulness" not in rows[0]:  # rows of one prompt are one
        assert sum(found.left_out.values()) + len({row["item"] or row["pair_id"] for row in made}) == len(rows)
    texts = [row[name] for row in made for name in ("asked", "chosen", "rejected")]
    assert all(text.strip() for text in texts)
