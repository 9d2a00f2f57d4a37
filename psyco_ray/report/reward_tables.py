"""The paper's tables of reward models (1, 2 and 7) with our models beside its own.

Figures of our models are those on the first test that the results name. Cells are texts, with as many digits as the
paper prints; a dash stands where there is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.evaluate import rewardbench
from psyco_ray.run.types import Row

GROUPS = {
    "external": "State-of-the-art reward models",
    "ranker": "Generative LLMs",
    "ours": "Our reward models",
}
"""Titles of the groups of table 1, by the name that results give them."""

DASH = "–"

_PAPER: dict[str, Any] = job_file.read_yaml(Path(__file__).with_name("paper.yaml"), "the paper's tables")
_MARKS = ("group", "paper")  # of a row, not cells
_WORDS = ("Model", "Training Data")  # columns that hold no figures
_SUBSETS = sum(len(subsets) for subsets in rewardbench.SECTIONS.values())


def table1(results: Mapping[str, Any]) -> list[Row]:
    """All models on the test, by group.

    Returns:
        Rows of `group` (its title), `paper` (whether the row is the paper's) and the cells by their column's title.
    """
    return [
        _row1(title, name, figures, paper)
        for group, title in GROUPS.items()
        for name, figures, paper in [
            *((m["name"], _on_test(results, m), False) for m in results["models"] if m["group"] == group),
            *((row["model"], row, True) for row in _PAPER["table1"][group]),
        ]
    ]


def table2(results: Mapping[str, Any]) -> list[Row]:
    """Reward models by base model and by what they were trained on; rows as in `table1`, without groups."""
    ours = [
        (model["base"], model["trained_on"], _on_test(results, model), _on_bench(model), False)
        for model in results["models"]
        if model["group"] == "ours" and model["base"] and model["trained_on"]
    ]
    theirs = [(row["base"], row["trained_on"], row["test"], row["rewardbench"], True) for row in _PAPER["table2"]]
    return [
        {
            "paper": paper,
            "Model": _marked(base, paper),
            "Training Data": trained_on,
            "Acc.": _per_cent(test, "accuracy"),
            "AUC (↑)": _decimal(test, "auc"),
            "Brier (↓)": _decimal(test, "brier"),
            "ECE (↓)": _decimal(test, "ece"),
            "Acc. (RewardBench)": _per_cent(bench, "accuracy"),
        }
        for base, trained_on, test, bench, paper in [*ours, *theirs]
    ]


def table7(results: Mapping[str, Any]) -> list[Row]:
    """Our reward models on the test and on RewardBench; rows as in `table1`, without groups."""
    ours = [
        (model["name"], test, bench, {"average": _average(test, bench)}, False)
        for model in results["models"]
        if model["group"] == "ours"
        for test, bench in [(_on_test(results, model), _on_bench(model))]
    ]
    theirs = [(row["model"], row["test"], row["rewardbench"], row, True) for row in _PAPER["table7"]]
    return [
        {
            "paper": paper,
            "Model": _marked(name, paper),
            **_columns7("Test", test),
            **_columns7("RewardBench", bench),
            "Avg. Acc.": _decimal(average, "average"),
        }
        for name, test, bench, average, paper in [*ours, *theirs]
    ]


def layout(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three tables, ready to be printed: `title`, `columns`, `words` (columns without figures), `rows` as above."""
    made = {
        "Table 1: reward models and rankers on the test": table1(results),
        "Table 2: what training data adds": table2(results),
        "Table 7: mixtures of training data": table7(results),
    }
    return [
        {"title": title, "columns": [key for key in rows[0] if key not in _MARKS], "words": _WORDS, "rows": rows}
        for title, rows in made.items()
    ]


def note(results: Mapping[str, Any]) -> str:
    """What a reader of the tables has to know."""
    tests = results["tests"]
    sentences = [
        f"Our models are tested on {tests[0]['name']}."
        if tests
        else "Our models were tested on no pairs of their own.",
        "Rows marked (paper) are the paper's, on its own test set.",
        "AUC, ECE (10 bins) and Brier score are of both orders of every pair.",
        "A RewardBench accuracy of ours is the mean over the benchmark's sections.",
    ]
    for model in results["models"]:
        bench = model["rewardbench"]
        if bench and not bench["official"]:
            sentences.append(f"{model['name']} ran on a benchmark of other subsets, not on RewardBench's own.")
        elif bench and bench["missing"]:
            sentences.append(
                f"{model['name']} ran on RewardBench without {len(bench['missing'])} of its {_SUBSETS} subsets."
            )
    return " ".join(sentences)


def markdown(results: Mapping[str, Any]) -> str:
    """The three tables as Markdown."""
    parts = [_plain(note(results))]
    for table in layout(results):
        columns = table["columns"]
        rules = ["---" if column in table["words"] else "---:" for column in columns]
        lines = [f"## {table['title']}", "", _line(columns), _line(rules)]
        group = None
        for row in table["rows"]:
            if row.get("group") != group:
                group = row["group"]
                lines.append(_line([f"**{group}**", *[""] * (len(columns) - 1)]))
            lines.append(_line([_plain(row[column]) for column in columns]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _row1(group: str, name: str, figures: Mapping[str, float], paper: bool) -> Row:
    return {
        "group": group,
        "paper": paper,
        "Model": _marked(name, paper),
        "Acc.": _per_cent(figures, "accuracy"),
        "AUC (↑)": _decimal(figures, "auc"),
        "ECE (↓)": _decimal(figures, "ece"),
        "Brier (↓)": _decimal(figures, "brier"),
    }


def _columns7(title: str, figures: Mapping[str, float]) -> Row:
    names = {"Acc.": "accuracy", "ECE": "ece", "AUROC": "auc", "Brier": "brier"}
    return {f"{title} {name}": _decimal(figures, key) for name, key in names.items()}


def _on_test(results: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, float]:
    """A model's figures on the first test, under the names of the paper's file; empty if it was not tested there."""
    found = model["tests"].get(results["tests"][0]["name"]) if results["tests"] else None
    return _renamed(found, {"accuracy": "accuracy"}) if found else {}


def _on_bench(model: Mapping[str, Any]) -> dict[str, float]:
    return _renamed(model["rewardbench"], {"accuracy": "mean"}) if model["rewardbench"] else {}


def _renamed(figures: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """Figures under the names of the paper's file; a ranker has an accuracy only."""
    wanted = {"auc": "auc", "ece": "ece10", "brier": "brier", **names}
    return {ours: figures[theirs] for ours, theirs in wanted.items() if theirs in figures}


def _average(test: Mapping[str, float], bench: Mapping[str, float]) -> float | None:
    return (test["accuracy"] + bench["accuracy"]) / 2 if test and bench else None


def _marked(name: str, paper: bool) -> str:
    return f"{name} (paper)" if paper else name


def _per_cent(figures: Mapping[str, float | None], key: str) -> str:
    value = figures.get(key)
    return DASH if value is None else f"{100 * value:.1f}"


def _decimal(figures: Mapping[str, float | None], key: str) -> str:
    value = figures.get(key)
    return DASH if value is None else f"{value:.3f}"


def _plain(text: str) -> str:
    """A text that neither ends a cell nor is taken for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
