"""The page and the tables of reward models."""

import re
from pathlib import Path

import pytest
from support.pages import Page, self_contained
from support.reward_results import ODD, VERSIONS, bare_reward_results, reward_results

from psyco_ray.report import reward_models, reward_tables


def small_results() -> dict:
    """One reward model of each kind, with figures that are easy to recognise."""
    test = {"accuracy": 0.9764, "auc": 0.99749, "ece10": 0.0449, "brier": 0.0166}
    bench = {"official": True, "missing": [], "mean": 0.8611, "micro": 0.5, "auc": 0.9, "ece10": 0.038, "brier": 0.09}
    models = [
        {"name": "rm-a", "group": "ours", "base": "smol", "trained_on": "Psy", "tests": {"psy": test, "other": {}}}
        | {"rewardbench": bench},
        {"name": "rm-b", "group": "ours", "base": None, "trained_on": None, "tests": {}, "rewardbench": None},
        {"name": "sky", "group": "external", "base": None, "trained_on": None, "tests": {"psy": test | {"auc": 0.5}}}
        | {"rewardbench": None},
        {"name": ODD, "group": "ranker", "base": None, "trained_on": None, "tests": {"psy": {"accuracy": 0.8}}}
        | {"rewardbench": {"official": False, "missing": [], "mean": 0.7, "micro": 0.7}},
    ]
    models = [{"tables": [1, 2, 7], "training_pairs": None, **model} for model in models]
    return {"name": "demo", "seed": 3, "versions": VERSIONS, "tests": [{"name": "psy"}, {"name": "other"}]} | {
        "models": models
    }


def write_and_read(results: dict, out: Path) -> tuple[Page, str, str]:
    """The parsed page, its text, and the Markdown tables."""
    reward_models.write_report(results, out)
    assert {path.name for path in out.iterdir()} == {"report.html", "tables.md"}
    page = (out / "report.html").read_text("utf-8")
    return self_contained(page), page, (out / "tables.md").read_text("utf-8")


def test_table_1_cell_by_cell() -> None:
    table = reward_tables.table1(small_results())
    assert table.columns == ["Model", "Acc.", "AUC (↑)", "ECE (↓)", "Brier (↓)"]
    kinds = [row.kind for row in table.rows]
    assert kinds == [
        "group",
        "ours",
        *["paper"] * 3,
        "group",
        "ours",
        *["paper"] * 4,
        "group",
        *["ours"] * 2,
        *["paper"] * 2,
    ]
    assert [row.cells[0] for row in table.rows if row.kind != "paper"] == [
        "State-of-the-art reward models",
        "sky",
        "Generative LLMs",
        ODD,
        "Our reward models",
        "rm-a",
        "rm-b",
    ]
    cells = {row.cells[0]: row.cells[1:] for row in table.rows}
    assert len(cells) == len(table.rows)
    assert cells["rm-a"] == ["97.6", "0.997", "0.045", "0.017"]
    assert cells["rm-b"] == ["–"] * 4
    assert cells["sky"] == ["97.6", "0.500", "0.045", "0.017"]
    assert cells[ODD] == ["80.0", "–", "–", "–"]
    assert cells["Skywork-Reward-Gemma-2-27B (paper)"] == ["69.2", "0.740", "0.123", "0.229"]
    assert cells["Llama-3.1-70B-Instruct (paper)"] == ["88.2", "–", "–", "–"]
    assert cells["PsyCo-Llama3-8B-Reward (paper)"] == ["97.8", "0.998", "0.045", "0.016"]
    assert all((row.kind == "paper") == row.cells[0].endswith(" (paper)") for row in table.rows)


def test_table_2_cell_by_cell() -> None:
    rows = reward_tables.table2(small_results()).rows
    assert [row.kind for row in rows] == ["ours", *["paper"] * 4], "rm-b names no training data"
    assert rows[0].cells == ["smol", "Psy", "97.6", "0.997", "0.017", "0.045", "86.1"]
    assert rows[1].cells == ["Llama-3B (paper)", "HelpSteer2", "81.6", "0.916", "0.120", "0.044", "83.6"]
    assert rows[4].cells == ["Llama-8B (paper)", "HelpSteer2 + PsyCoPref", "97.5", "0.998", "0.018", "0.040", "87.2"]


def test_table_7_cell_by_cell() -> None:
    rows = reward_tables.table7(small_results()).rows
    ours = ["0.976", "0.045", "0.997", "0.017", "0.861", "0.038", "0.900", "0.090", "0.919"]
    assert rows[0].cells == ["rm-a", *ours]
    assert rows[1].cells == ["rm-b", *["–"] * 9]
    first = ["0.963", "0.042", "0.996", "0.020", "0.745", "0.127", "0.849", "0.177", "0.854"]
    assert rows[2].cells == ["Llama-8b-Psy10k (paper)", *first]
    assert [row.cells[0] for row in rows[3:]] == ["Llama-8b-Psy5kHelp5k (paper)", "Llama-8b-Help10k (paper)"]
    for row in rows[2:]:  # the paper's file agrees with itself
        _, test, _, _, _, bench, _, _, _, average = row.cells
        assert float(average) == pytest.approx((float(test) + float(bench)) / 2, abs=0.0011)


def test_a_model_is_in_the_tables_that_its_job_names() -> None:
    results = small_results()
    for table in (1, 2, 7):
        results["models"][0]["tables"] = [table]
        shown = [
            any(row.cells[0] in ("rm-a", "smol") for row in laid_out.rows) for laid_out in reward_tables.layout(results)
        ]
        assert shown == [table == 1, table == 2, table == 7]


def test_markdown_has_the_same_cells() -> None:
    text = reward_tables.markdown(small_results())
    assert "on psy." in text
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.M)
    tables = reward_tables.layout(small_results())
    assert len(blocks) == len(tables) == 3
    for block, table in zip(blocks, tables, strict=True):
        lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert lines[0] == list(table.columns)
        assert {len(line) for line in lines} == {len(table.columns)}
        for line, row in zip(lines[2:], table.rows, strict=True):
            if row.kind == "group":
                assert line[0] == f"**{row.cells[0]}**"
            else:
                assert line == [cell.replace("|", "\\|").replace("<", "&lt;") for cell in row.cells]


def test_the_note_names_models_without_the_full_rewardbench() -> None:
    results = small_results()
    assert f"{ODD} ran on a benchmark of other subsets" in reward_tables.note(results)
    assert "rm-a ran" not in reward_tables.note(results)
    results["models"][0]["rewardbench"]["missing"] = ["hep-go", "math-prm"]
    assert "rm-a ran on RewardBench without 2 of its 23 subsets." in reward_tables.note(results)


def test_the_note_says_how_many_pairs_our_models_were_trained_on() -> None:
    results = small_results()
    assert "34,329" not in reward_tables.note(results)
    results["models"][0]["training_pairs"] = 9_480
    assert "Pairs that our models were trained on: rm-a 9,480." in reward_tables.note(results)
    assert "the paper's were trained on all of its 34,329 train pairs" in reward_tables.note(results)


def test_the_page_shows_every_part(tmp_path) -> None:
    results = reward_results()
    page, text, markdown = write_and_read(results, tmp_path)
    ours = results["models"][0]["tests"]["psy-test"]
    assert "demo-3b-mixture is the most accurate on psy-test" in " ".join(page.text.split())
    assert f"{100 * ours['accuracy']:.1f} % of 400 pairs" in " ".join(page.text.split())
    calibrated = [row for row in page.rows if row[0].startswith("calibrated, temperature")]
    assert len(calibrated) == 4  # two reward models on two tests
    keys = ("ece10", "ece15", "brier", "nll")
    assert calibrated[0][1:] == [f"{ours['calibrated'][key]:.3f}" for key in keys]
    assert ["uncalibrated", *[f"{ours[key]:.3f}" for key in keys]] in page.rows
    for row in ours["slices"]["length"] + ours["slices"]["safety_gap"]:
        low, high = row["ci95"]
        figures = [f"{100 * row['accuracy']:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %"]
        assert [row["slice"], str(row["pairs"]), *figures] in page.rows
    bench = [model["rewardbench"] for model in results["models"]]
    assert ["mean of the sections", "", *[f"{100 * of['mean']:.1f}" for of in bench]] in page.rows
    weighted = [f"{100 * of['sections']['Reasoning']['accuracy']:.1f}" for of in bench]
    assert ["Reasoning", "400", *weighted] in page.rows
    math = [f"{100 * of['subsets']['math-prm']['accuracy']:.1f}" for of in bench[:2]]
    assert ["math-prm", "40", *math, "–"] in page.rows
    assert ["pairs not scored because a response is too long", "", "1", "1", "–"] in page.rows
    assert text.count("<svg") == 8
    assert "no preference: 1,234" in page.text
    assert "Pairs with a truncated prompt: 4" in page.text
    for table in reward_tables.layout(results):
        for row in table.rows:
            assert row.cells in page.rows
    assert markdown == reward_tables.markdown(results)


@pytest.mark.parametrize("results", [reward_results(40), bare_reward_results()], ids=["all parts", "bare"])
def test_the_page_is_self_contained_and_reproducible(tmp_path, results) -> None:
    page, text, _ = write_and_read(results, tmp_path)
    assert "secret" not in text
    assert "<b>name</b>" not in text
    assert ODD in page.text
    reward_models.write_report(results, tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_text("utf-8") == text


def test_the_page_without_optional_parts(tmp_path) -> None:
    page, text, _ = write_and_read(bare_reward_results(), tmp_path)
    assert "calibrated, temperature" not in page.text
    assert "<details>" not in text
    assert "no model was run on it" in page.text
    assert text.count("<svg") == 8


def test_the_page_of_a_benchmark_alone(tmp_path) -> None:
    results = reward_results(40) | {"tests": []}
    for model in results["models"]:
        model["tests"] = {}
    page, text, _ = write_and_read(results, tmp_path)
    assert "most accurate" not in page.text
    assert "<svg" not in text
    assert "donotanswer" in page.text
