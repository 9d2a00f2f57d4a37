"""The paper's tables of reward models (1, 2 and 7) with our models next to its own.

Figures of our models are those on the first test of the results, with as many digits as the paper prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psyco_ray.evaluate import rewardbench
from psyco_ray.report.render import decimal, percent, plain, thousands
from psyco_ray.report.tables import Row, Table, paper_tables

GROUPS = {
    "external": "State-of-the-art reward models",
    "ranker": "Generative LLMs",
    "ours": "Our reward models",
}
"""Titles of the groups of table 1, by their names in the results."""

_TEXT_COLUMNS = ("Model", "Training Data")
_SUBSETS = sum(len(subsets) for subsets in rewardbench.SECTIONS.values())

Measures = Mapping[str, float]
"""Measures of one model by the names of ``paper.yaml``: accuracy, auc, ece, brier."""


def table1(results: Mapping[str, Any]) -> Table:
    """All models on the test, by group."""
    rows = []
    for group, title in GROUPS.items():
        rows.append(Row([title], "group"))
        for model in results["models"]:
            if model["group"] == group and 1 in model["tables"]:
                rows.append(Row([model["name"], *_cells1(_on_test(results, model))]))
        for paper in paper_tables()["table1"][group]:
            rows.append(Row([f"{paper['model']} (paper)", *_cells1(paper)], "paper"))
    columns = ["Model", "Acc.", "AUC (↑)", "ECE (↓)", "Brier (↓)"]
    return Table("Table 1: reward models and rankers on the test", columns, rows, _TEXT_COLUMNS)


def table2(results: Mapping[str, Any]) -> Table:
    """Reward models by base model and training data."""
    rows = [
        Row([model["base"], model["trained_on"], *_cells2(_on_test(results, model), _on_bench(model))])
        for model in results["models"]
        if model["group"] == "ours" and 2 in model["tables"] and model["base"] and model["trained_on"]
    ]
    for paper in paper_tables()["table2"]:
        cells = [f"{paper['base']} (paper)", paper["trained_on"], *_cells2(paper["test"], paper["rewardbench"])]
        rows.append(Row(cells, "paper"))
    columns = ["Model", "Training Data", "Acc.", "AUC (↑)", "Brier (↓)", "ECE (↓)", "Acc. (RewardBench)"]
    return Table("Table 2: what training data adds", columns, rows, _TEXT_COLUMNS)


def table7(results: Mapping[str, Any]) -> Table:
    """Our reward models on the test and on RewardBench."""
    rows = []
    for model in results["models"]:
        if model["group"] == "ours" and 7 in model["tables"]:
            test, bench = _on_test(results, model), _on_bench(model)
            average = (test["accuracy"] + bench["accuracy"]) / 2 if test and bench else None
            rows.append(Row([model["name"], *_cells7(test, bench, average)]))
    for paper in paper_tables()["table7"]:
        cells = [f"{paper['model']} (paper)", *_cells7(paper["test"], paper["rewardbench"], paper["average"])]
        rows.append(Row(cells, "paper"))
    measures = [
        f"{data} {measure}" for data in ("Test", "RewardBench") for measure in ("Acc.", "ECE", "AUROC", "Brier")
    ]
    return Table("Table 7: mixtures of training data", ["Model", *measures, "Avg. Acc."], rows, _TEXT_COLUMNS)


def layout(results: Mapping[str, Any]) -> list[Table]:
    """The three tables."""
    return [table1(results), table2(results), table7(results)]


def note(results: Mapping[str, Any]) -> str:
    """How the figures of the tables came about."""
    tests = results["tests"]
    sentences = [
        f"Our models are tested on {tests[0]['name']}."
        if tests
        else "Our models were tested on no pairs of their own.",
        "Rows marked (paper) are the paper's, on its own test set.",
        "AUC, ECE (10 bins) and Brier score count both orders of every pair.",
        "The RewardBench accuracy of our models is the mean over the benchmark's sections.",
    ]
    trained = [model for model in results["models"] if model["training_pairs"] is not None]
    if trained:
        counts = ", ".join(f"{model['name']} {thousands(model['training_pairs'])}" for model in trained)
        sentences += [
            f"Pairs that our models were trained on: {counts}.",
            "Dev pairs chose their checkpoints; the paper's were trained on all of its 34,329 train pairs.",
        ]
    for model in results["models"]:
        bench = model["rewardbench"]
        if bench and not bench["official"]:
            sentences.append(f"{model['name']} ran on a benchmark of other subsets, not on RewardBench's own.")
        elif bench and bench["missing"]:
            missing = len(bench["missing"])
            sentences.append(f"{model['name']} ran on RewardBench without {missing} of its {_SUBSETS} subsets.")
    return " ".join(sentences)


def markdown(results: Mapping[str, Any]) -> str:
    """The three tables as Markdown."""
    tables = [f"## {plain(table.title)}\n\n{table.markdown()}" for table in layout(results)]
    return "\n\n".join([plain(note(results)), *tables]) + "\n"


def _cells1(test: Measures) -> list[str]:
    return [percent(test.get("accuracy")), *_decimals(test, "auc", "ece", "brier")]


def _cells2(test: Measures, bench: Measures) -> list[str]:
    return [percent(test.get("accuracy")), *_decimals(test, "auc", "brier", "ece"), percent(bench.get("accuracy"))]


def _cells7(test: Measures, bench: Measures, average: float | None) -> list[str]:
    keys = ("accuracy", "ece", "auc", "brier")
    return [*_decimals(test, *keys), *_decimals(bench, *keys), decimal(average)]


def _decimals(measures: Measures, *keys: str) -> list[str]:
    return [decimal(measures.get(key)) for key in keys]


def _on_test(results: Mapping[str, Any], model: Mapping[str, Any]) -> Measures:
    """A model's measures on the first test; empty if it was not tested there."""
    measures = model["tests"].get(results["tests"][0]["name"]) if results["tests"] else None
    return _by_paper_names(measures, "accuracy") if measures else {}


def _on_bench(model: Mapping[str, Any]) -> Measures:
    return _by_paper_names(model["rewardbench"], "mean") if model["rewardbench"] else {}


def _by_paper_names(measures: Mapping[str, Any], accuracy: str) -> Measures:
    """Measures by the names of ``paper.yaml``; a ranker has an accuracy only."""
    names = {"accuracy": accuracy, "auc": "auc", "ece": "ece10", "brier": "brier"}
    return {paper: measures[name] for paper, name in names.items() if name in measures}
