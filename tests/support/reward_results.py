"""Results of an evaluation of reward models, as `evaluate.reward_models` returns them."""

import numpy as np
import pyarrow as pa

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.evaluate import metrics, rewardbench
from psyco_ray.run.schemas import COMPARISONS

VERSIONS = {"psyco_ray": "0.1.0", "torch": "2.13.0"}
ODD = "odd <b>name</b> & | pipe"
_SUBSETS = ("alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm", "hep-go")


def comparison_table(count: int, random: np.random.Generator) -> pa.Table:
    rows = [
        {
            "chosen": "x" * int(random.integers(200, 900)),
            "rejected": "x" * int(random.integers(200, 900)),
            "topic": ("Mental Issues", "Relationships", "Youth")[i % 3],
            "gap": 1 + float(random.integers(0, 15)) / 7,
            **{f"{principle}_gap": int(random.integers(-1, 4)) for principle in PRINCIPLES},
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=COMPARISONS)


def reward_results(count: int = 400) -> dict:
    """Two reward models and a ranker on two tests and on a benchmark, with every optional part."""
    random = np.random.default_rng(0)
    models = []
    names = ("demo-3b-mixture", "Skywork-Reward-Llama-3.1-8B-v0.2")
    for name, group, skill in zip(names, ("ours", "external"), (2.5, 0.8), strict=True):
        by_test = {}
        for test in ("psy-test", "helpsteer2-dev"):
            table = comparison_table(count, random)
            rejected = random.normal(-skill / 2, 1.5, count)
            chosen = rejected + random.normal(skill, 1.5, count)
            temperature = metrics.fit_temperature(chosen, rejected)
            by_test[test] = {
                **metrics.measure(chosen, rejected),
                "cut": 4,
                "too_long": 2,
                "slices": metrics.slices(table, [float(a > b) for a, b in zip(chosen, rejected, strict=True)]),
                "temperature": temperature,
                "calibrated": metrics.calibrated(chosen, rejected, temperature),
            }
        subsets = [subset for subset in _SUBSETS for _ in range(40)]
        scores = random.normal(0.5, 1, (2, len(subsets)))
        models.append(
            {"name": name, "group": group, "base": "Llama-3B", "trained_on": "HelpSteer2 + demo", "tests": by_test}
            | {"rewardbench": rewardbench.bench(subsets, scores[0] + 1, scores[1]) | {"cut": 3, "too_long": 1}}
        )
    first, second = ([bool(x) for x in random.random(count) < 0.8] for _ in range(2))
    ranked = {
        **metrics.ranked([None, *first[1:]], second),
        "slices": metrics.slices(comparison_table(count, random), metrics.shares_right(first, second)),
    }
    models.append(
        {"name": ODD, "group": "ranker", "base": None, "trained_on": None, "tests": {"psy-test": ranked}}
        | {"rewardbench": rewardbench.bench_ranked(["hep-go"] * count, first, second)}
    )
    models = [{"tables": [1, 2, 7], "training_pairs": None, **model} for model in models]
    tests = [
        {"name": name, "pairs": f"/secret/place/{name}.parquet", "split": "test", "rows": count, "left_out": reasons}
        for name, reasons in (("psy-test", {"no preference": 1234}), ("helpsteer2-dev", {}))
    ]
    return {"name": "demo", "seed": 3, "versions": VERSIONS, "tests": tests, "models": models}


def bare_reward_results() -> dict:
    """The same without calibration, slices and benchmark."""
    results = reward_results(40)
    for model in results["models"]:
        model["rewardbench"] = None
        for measures in model["tests"].values():
            measures |= {"slices": {}, "temperature": None, "calibrated": None}
    return results
