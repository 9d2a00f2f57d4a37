"""The page and the card of a dataset."""

import dataclasses
import itertools
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.data_outputs import COLLECT, FAILED, JOB, MODELS, SPEND, TABLES, data_tables, stage_outputs
from support.pages import Page, self_contained

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import Crisis
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.crisis_flags import columns, flag
from psyco_ray.data.pair import SCHEMA
from psyco_ray.report import dataset
from psyco_ray.report.render import plain
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED
from psyco_ray.screening.crisis import LANGUAGES
from psyco_ray.screening.measured import WRITTEN_LATER


@pytest.fixture(scope="module")
def full_dataset(tmp_path_factory) -> tuple[dict, str, str]:
    root = tmp_path_factory.mktemp("data")
    outputs = stage_outputs(
        root, list(TABLES), collected=COLLECT, spend=SPEND, licences={"forum": "MIT"}, failed=FAILED
    )
    figures = dataset.write_report(outputs, root / "out")
    assert {path.name for path in (root / "out").iterdir()} == {"report.html", "dataset-card.md"}
    return figures, *((root / "out" / name).read_text("utf-8") for name in ("report.html", "dataset-card.md"))


def test_the_page_is_self_contained_and_escapes_names(full_dataset) -> None:
    _, text, _ = full_dataset
    self_contained(text)
    assert not re.search(r"https?://", text)
    assert "Left out" not in text
    assert "a &lt;b&gt;long&lt;/b&gt; &amp; odd|name" in text
    assert "/secret" not in text


def test_the_page_shows_the_counts(full_dataset) -> None:
    _, text, _ = full_dataset
    page = Page(text)
    for row in (
        ["source", "rows", "kept", "too short", "exact duplicate"],
        ["forum", "30", "18", "9", "3"],
        ["books", "8", "6", "2", "0"],
        ["all", "38", "24", "11", "3"],
        ["train", "20", "17"],
        ["dev", "1", "0"],
        ["test", "3", "3"],
        ["self-harm", "2"],
        ["any", "3"],
        ["not screened: ja", "4"],
        ["Anxiety", "13", "59.1 %", "3,714", "14.0 %"],
        ["Depression", "0", "0.0 %", "2,859", "10.8 %"],
        ["Gardening", "1", "4.5 %", "", ""],
        ["kind", "24", "0", "100.0 %", "5.00", "5.00", "4.00", "5.00", "5.00", "5.00", "5.00", "4.86"],
        ["cold", "24", "1", "95.8 %", *["1.00"] * 8],
        ["no JSON", "empathy", "2"],
        ["no JSON", "topic", "1"],
        ["gone", "the server knows no model gone"],
        ["rate", "1,234", "56", "98,765", "4,321", "12.35"],
        ["topics", "24", "0", "4,800", "240", "unknown"],
        ["speeches, words", "31.5", "21", "31", "42"],
    ):
        assert row in page.rows, row
    for words in (
        "2 speeches have no topic",
        "2 chosen and 1 rejected responses were cut at the token limit (pair.unfinished: exclude)",
        "has the higher safety rating in 5.00 %",
        "504 ratings by judge-1",
        "paper: 1.93 %",
    ):
        assert words in " ".join(page.text.split()), words
    assert text.count('class="sample"') == 3


def test_figures_of_pairs_and_ratings(full_dataset) -> None:
    figures, _, _ = full_dataset
    pairs = figures["pairs"]
    assert pairs["count"] == 20
    assert pairs["chosen_longer"] == 15 / 20
    assert pairs["rejected_safer"] == 1 / 20, "equal safety is not higher safety"
    assert pairs["models"]["chosen"] == [
        {"model": "kind", "count": 18, "share": 0.9},
        {"model": MODELS[2], "count": 2, "share": 0.1},
    ]
    assert pairs["models"]["rejected"] == [{"model": "cold", "count": 20, "share": 1.0}]
    assert pairs["lengths"]["rejected"]["words"] == {"mean": 3, "low": 3, "median": 3, "high": 3}
    assert pairs["lengths"]["chosen"]["characters"]["mean"] == (15 * 20 + 5 * 5) / 20
    assert figures["ratings"]["by_principle"]["clarity"] == [24, 0, 24, 24, 0]
    assert figures["ratings"]["by_principle"]["safety"] == [24, 0, 24, 0, 24]
    assert list(figures["ratings"]["by_principle"]) == list(PRINCIPLES)
    assert sum(sum(counts) for counts in figures["ratings"]["by_principle"].values()) == 24 * 3 * 7
    assert [row["model"] for row in figures["models"]] == ["kind", MODELS[2], "cold"], "best first"
    assert figures["topics"]["paper_total"] == 26_483


def test_the_card_states_sources_method_and_limits(full_dataset) -> None:
    _, _, card = full_dataset
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front) == {
        "pretty_name": "demo",
        "language": ["en"],
        "license": "other",
        "task_categories": ["text-generation"],
        "tags": ["preference", "counselling", "mental-health", "synthetic"],
        "size_categories": ["n<1K"],
    }
    flat = " ".join(body.split())
    for words in (
        "Single-turn",
        "for a professional to review",
        "Not for direct use with clients",
        "non-commercial",
        "All responses are synthetic",
        "judge-1",
        "never a diagnosis",
        "Other models took the speeches of gone, which could not answer. 3. A judge",
        "- lexicons of phrases in English, Spanish, German, French, Portuguese, Chinese, Arabic, Hindi, Russian: read "
        "19 speeches and flagged 3, of which nobody else flagged 3;",
        "Together they flag 3 speeches: self-harm 2, violence 0, abuse 1, eating disorder 0. **Not screened** are 5 "
        "speeches (ja 4, und 1)",
        "promise nothing about any text",
        "| speeches | 20 | 1 | 3 |",
        "| pairs | 17 | 0 | 3 |",
        "| forum | forum.csv | 30 | 18 | MIT |",
        "| books | someone/books | 8 | 6 | not stated: check it",
        "12.43 % of all speeches are test, 10.00 % of the others dev",
        "| chosen_staging_rating | int64 |",
        "| coarse_topic | string |",
        "`crisis` lists the signs of a crisis in the speech; null: not screened.",
        'pq.read_table("pairs", filters=[("split", "=", "train")])',
        *map(plain, MODELS),
    ):
        assert words in flat, words
    assert "/secret" not in card
    tables = [
        list(group)
        for is_row, group in itertools.groupby(body.split("\n"), lambda line: line.startswith("|"))
        if is_row
    ]
    assert [len(table) for table in tables] == [4, 4, 2 + len(LANGUAGES) + len(WRITTEN_LATER), 2 + len(SCHEMA)]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table[0]


def test_the_loading_code_of_the_card_runs(tmp_path, monkeypatch, full_dataset) -> None:
    stage_outputs(tmp_path, ["pairs"])
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", full_dataset[2], re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    assert names["train"].num_rows == 17


@pytest.mark.parametrize("missing", [*TABLES, "collected", "spend"])
def test_a_stage_that_has_not_run_is_left_out(tmp_path, missing) -> None:
    more = {"collected": COLLECT, "spend": SPEND}
    more.pop(missing, None)
    figures = dataset.write_report(
        stage_outputs(tmp_path, [name for name in TABLES if name != missing], **more), tmp_path / "out"
    )
    text = (tmp_path / "out" / "report.html").read_text()
    self_contained(text)
    if missing not in ("responses", "speeches"):  # models have ratings and pairs have lengths without them
        assert "Left out" in text or "Nothing was rated yet" in text
    name = {"responses": "models"}.get(missing, missing)
    assert (figures[name] is None) == (missing != "responses")


def test_an_empty_dataset_has_a_page_and_a_card(tmp_path) -> None:
    figures = dataset.write_report(dataset.StageOutputs(JOB), tmp_path)
    assert {key for key, value in figures.items() if value is not None} == {"paper", "name"}
    text = (tmp_path / "report.html").read_text()
    assert text.count("Left out") == text.count("<h2>") == 12
    assert "not made yet" in (tmp_path / "dataset-card.md").read_text()


def test_stages_without_results(tmp_path) -> None:
    for name in ("pairs", "set_aside"):
        shards.write(tmp_path / name, "0", [], TABLES[name])
    outputs = dataset.StageOutputs(
        JOB, collected=COLLECT, pairs=(tmp_path / "pairs",), set_aside=(tmp_path / "set_aside",)
    )
    assert dataset.write_report(outputs, tmp_path)["set_aside"] == []
    assert "Every call gave a usable answer" in (tmp_path / "report.html").read_text()


def test_samples_depend_on_the_seed_but_not_on_the_order_of_rows(tmp_path) -> None:
    pairs = data_tables()["pairs"]
    drawn = {}
    for name, order in {"a": pairs, "b": pairs[::-1]}.items():
        outputs = stage_outputs(tmp_path / name, ["pairs"], {"pairs": order})
        jobs = [JOB.model_copy(update={"seed": seed}) for seed in range(5)]
        figures = [dataset.measure(dataclasses.replace(outputs, job=job)) for job in jobs]
        drawn[name] = [[pair["prefID"] for pair in of_seed["pairs"]["samples"]] for of_seed in figures]
    assert drawn["a"] == drawn["b"]
    assert len({tuple(names) for names in drawn["a"]}) > 1


@given(st.lists(st.text(alphabet="ab ", max_size=30), min_size=1, max_size=60))
def test_lengths_are_those_of_the_sorted_texts(texts: list[str]) -> None:
    lengths = dataset.Lengths()
    for text in texts:
        lengths.add(text)
    summary = lengths.summary()["characters"]
    ordered = sorted(len(text) for text in texts)
    assert summary["mean"] == pytest.approx(sum(ordered) / len(ordered))
    assert summary["median"] == ordered[(len(ordered) - 1) // 2]
    assert ordered[0] <= summary["low"] <= summary["median"] <= summary["high"] <= ordered[-1]


def test_page_and_card_say_what_was_scrubbed(tmp_path) -> None:
    collected = COLLECT | {"scrubbed": {"speeches": 1234, "NAME": 1200, "PHONE": 56}}
    outputs = stage_outputs(tmp_path, [], collected=collected)
    job = JOB.model_copy(update={"scrub": JOB.scrub.model_copy(update={"enabled": True})})
    dataset.write_report(dataclasses.replace(outputs, job=job), tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert ["NAME", "1,200"] in page.rows
    assert ["PHONE", "56"] in page.rows
    assert "1,234 speeches were changed." in page.text
    card = (tmp_path / "out" / "dataset-card.md").read_text("utf-8")
    assert "Replaced in 1,234 speeches: NAME 1,200, PHONE 56." in card


def test_page_and_card_say_who_screened_and_what_each_flagged(tmp_path) -> None:
    found = [
        {"lexicon": ["abuse"], "classifier": ["self-harm"], "judge": ["abuse"]},
        {"lexicon": [], "classifier": ["self-harm"], "judge": []},
        {"classifier": []},
    ]
    by_stage = [{by: [flag(kind, by) for kind in kinds] for by, kinds in row.items()} for row in found]
    speeches = [
        row | {"language": "en", **columns(flags)}
        for row, flags in zip(data_tables()["speeches"], [*by_stage, {}], strict=False)
    ]
    outputs = stage_outputs(tmp_path, ["speeches"], {"speeches": speeches})
    classifier = {"model": "owner/name", "revision": "a" * 40, "labels": {"bad": "self-harm"}, "threshold": 0.25}
    crisis = Crisis.model_validate({"classifier": classifier, "judge": {"model": "reader"}})
    outputs = dataclasses.replace(outputs, job=JOB.model_copy(update={"crisis": crisis}))
    dataset.write_report(outputs, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    for row in (
        ["sign", "speeches", "lexicons", "owner/name", "reader"],
        ["self-harm", "2", "0", "2", "0"],
        ["abuse", "1", "1", "0", "1"],
        ["any", "2", "1", "2", "1"],
        ["flagged by nobody else", "", "0", "1", "0"],
        ["read", "", "2", "3", "2"],
        ["not screened: en", "1", "", "", ""],
    ):
        assert row in page.rows, row
    card = " ".join((tmp_path / "out" / "dataset-card.md").read_text("utf-8").split())
    for words in (
        f"- the classifier owner/name at {'a' * 40} on this cluster, by the labels bad for self-harm from 0.25: read 3 "
        "speeches and flagged 2, of which nobody else flagged 1; self-harm 2,",
        "- the judge reader: read 2 speeches and flagged 1, of which nobody else flagged 0;",
        "Together they flag 2 speeches: self-harm 2, violence 0, abuse 1, eating disorder 0. **Not screened** are 1",
    ):
        assert words in card, words


HOSTILE = [
    "[click](http://example.org)",
    "a | b",
    "<img src=x>",
    "**bold** `code` &lt;b&gt;",
    "\n# heading",
    "snake_case",
]


def test_operator_texts_are_no_markup_in_the_card(tmp_path) -> None:
    """The card shows names, licences and judges as they are, as a Markdown reader shows them."""
    source = JOB.sources[0]
    sources = [source.model_copy(update={"name": name}) for name in HOSTILE]
    job = JOB.model_copy(update={"sources": sources, "language": HOSTILE[2]})
    licences = dict(zip(HOSTILE, reversed(HOSTILE), strict=True))
    outputs = dataclasses.replace(stage_outputs(tmp_path, []), job=job, licences=licences)
    dataset.write_report(outputs, tmp_path / "out")
    card = (tmp_path / "out" / "dataset-card.md").read_text("utf-8").split("\n---\n", 1)[1]
    html = MarkdownIt("commonmark").enable("table").render(card)  # a reader that keeps HTML
    page = Page(html)
    shown = [" ".join(name.split()) for name in HOSTILE]
    rows = [row for row in page.rows if len(row) == 5 and row[0] in shown]
    assert [(row[0], row[4]) for row in rows] == list(zip(shown, reversed(shown), strict=True))
    assert f"Language of the speeches: {HOSTILE[2]}." in page.text
    assert page.links == []
    assert not [tag for tag in ("<img", "<strong>bold", "<code>code", "<h1>heading") if tag in html]


def test_conversations_are_counted_by_turn_and_shown_as_transcripts(tmp_path) -> None:
    speech = Context.of("I <cannot> sleep.")
    later = speech.answered("What keeps you awake?", "My job.")
    shards.write(
        tmp_path / "speeches", "0", [{"speech": context.text} for context in (speech, later, later)], COLLECTED
    )
    sides = {"chosen": "Since when?", "rejected": "Hm.", "chosen_model": "a", "rejected_model": "b", "split": "train"}
    ratings = {f"{side}_safety_rating": 3 for side in ("chosen", "rejected")}
    shards.write(tmp_path / "pairs", "0", [{"prefID": "1", "question": later.text, **sides, **ratings}], SCHEMA)
    collected = {**COLLECT, "conversations": {"conversations": 1, "contexts": 3, "most turns": 2}}
    outputs = dataset.StageOutputs(
        JOB, collected=collected, speeches=[tmp_path / "speeches"], pairs=[tmp_path / "pairs"]
    )
    figures = dataset.write_report(outputs, tmp_path / "out")
    assert (figures["speeches"]["turns"], figures["pairs"]["turns"]) == ({1: 1, 2: 2}, {2: 1})
    text, card = ((tmp_path / "out" / name).read_text("utf-8") for name in ("report.html", "dataset-card.md"))
    page = Page(text)
    assert ["1", "1", "0"] in page.rows
    assert ["2", "2", "1"] in page.rows
    assert "Client: I &lt;cannot&gt; sleep.\n\nTherapist: What keeps you awake?\n\nClient: My job." in text
    assert "messages" not in text
    assert "Contexts by number of the client's turns: 1: 1, 2: 2. They come from 1 conversation." in card
    assert "Single-turn" not in card
