"""Job files of reward models: every command in their comments makes the model that other job files name."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import commands, job_comments
from support.paths import JOBS
from support.reward_evaluation import run

from psyco_ray.config import job_file
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.config.training import Job
from psyco_ray.files import records
from psyco_ray.report import reward_tables

HUB = "hub:nvidia/HelpSteer2/"
BASES = {"Llama-3B": "meta-llama/Llama-3.2-3B-Instruct", "Llama-8B": "meta-llama/Llama-3.1-8B-Instruct"}
TRAINING = [
    line for name in ("reward-3b.yaml", "reward-8b.yaml") for line in job_comments.commands(name, "train-reward")
]
TINY = (
    "data.speeches=runs/data/speeches.jsonl",
    "data.cpus=1",
    "prompts.respond=respond-small",
    "reward.optimizer={batch_size: 8, epochs: 1}",
    "reward.learners={actors: 1, cpus: 0.2, zero_stage: 1, micro_batch_tokens: 1000}",
    "reward.max_tokens=400",
    "reward.dev_pairs=4",
)


@pytest.fixture(scope="module")
def by_directory() -> dict[str, Job]:
    jobs = [job_comments.job(command) for command in TRAINING]
    by_directory = {job.run_dir: job for job in jobs}
    assert len(by_directory) == len(jobs), "no command writes into the run directory of another"
    return by_directory


@pytest.fixture(scope="module")
def evaluation() -> EvaluateRewardJob:
    return job_file.load_as(EvaluateRewardJob, JOBS / "evaluate-reward.yaml")


def test_a_command_trains_each_of_our_models_from_its_base_on_its_data(by_directory, evaluation) -> None:
    ours = [model for model in evaluation.models if model.table_group == "ours"]
    assert len(ours) == 9, "two of table 1, four of table 2, three of table 7"
    for model in ours:
        job = by_directory[model.model.removesuffix("/reward")]
        assert job.model == BASES[model.base], model.name
        files = [part.pairs for part in job.reward.mixture] or [job.data.pairs]
        general, psycho = (any(file.startswith(HUB) is of_hub for file in files) for of_hub in (True, False))
        assert ("HelpSteer2" in model.trained_on, "PsyCoPref" in model.trained_on) == (general, psycho), model.name
        assert job.reward.half is None, model.name
        assert (job.data.leakage == "drop") is general, "HelpSteer2's splits have near duplicates"
    drawn = {name: [part.count for part in by_directory[f"runs/reward-8b-{name}"].reward.mixture] for name in
             ("psy10k", "psy5k-help5k", "help10k")}  # fmt: skip
    assert drawn == {"psy10k": [10000], "psy5k-help5k": [5000, 5000], "help10k": [None, None]}


def test_the_evaluation_lists_all_models_of_the_paper_in_its_order(evaluation) -> None:
    results = {"tests": [], "models": [
        {"name": model.name, "group": model.table_group, "base": model.base, "trained_on": model.trained_on,
         "tables": model.tables, "tests": {}, "rewardbench": None} for model in evaluation.models
    ]}  # fmt: skip
    for table in reward_tables.layout(results):
        first = 2 if "Training Data" in table.columns else 1  # the cells that name a row
        named = {
            kind: [
                [cell.removesuffix(" (paper)") for cell in row.cells[:first]] for row in table.rows if row.kind == kind
            ]
            for kind in ("ours", "paper")
        }
        assert named["ours"] == named["paper"], table.title
    by_name = {model.name: model for model in evaluation.models}
    assert by_name["Llama-3.1-Nemotron-70B-Reward"].logit_token == 0


@pytest.mark.parametrize(
    "name", ["psyco-llama3-3b.yaml", "psyco-llama3-8b.yaml", "psyco-llama3-8b-32gpu.yaml", "smollm2.yaml"]
)
def test_a_policys_judge_is_trained_on_other_pairs_than_the_model_that_ranks(name) -> None:
    trained = [job_comments.job(command) for command in job_comments.commands(name, "train-reward")]
    halves = {f"{job.run_dir}/reward": (job.reward.half, job.seed, job.data.pairs) for job in trained}
    policy = job_file.load_as(Job, JOBS / name)
    ranks, judges = halves[policy.scorers.reward_model], halves[policy.scorers.heldout_model]
    assert (ranks[0], judges[0]) == ("a", "b")
    assert ranks[1] != judges[1]
    assert ranks[2] == judges[2] == policy.data.pairs
    assert policy.evaluation.speeches is None, "answers to all dev speeches are judged"


def write_pairs(where: Path) -> None:
    """A made-up dataset of rated pairs and its speeches, with the splits of the real one."""
    where.mkdir(parents=True)
    rows = [json.loads(line) for line in records.SAMPLE.read_text().splitlines()][:90]
    rows = [{**row, "split": "train" if i < 64 else "dev" if i < 74 else "test"} for i, row in enumerate(rows)]
    for split in ("train", "dev", "test"):
        own = [row for row in rows if row["split"] == split]
        pq.write_table(pa.Table.from_pylist(own), where / f"{split}.parquet")
    speeches = [json.dumps({key: row[key] for key in ("question", "split")}) + "\n" for row in rows]
    (where.parent / "speeches.jsonl").write_text("".join(speeches))


def write_gz(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_helpsteer(where: Path) -> None:
    """Made-up preferences and ratings in HelpSteer2's files."""
    write_gz(
        where / "preference" / "preference.jsonl.gz",
        [{"split": "val" if i % 8 == 0 else "train", "prompt": f"Tell me about {i}.", "response_1": f"It is {i}.",
          "response_2": "No idea.", "preference_strength": -1 - i % 3} for i in range(40)],
    )  # fmt: skip
    for name, start, count in (("train", 100, 40), ("validation", 200, 8)):
        rated = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1}
        rows = [
            {"prompt": f"Tell me about {i}.", "response": text, "helpfulness": helpful, **rated}
            for i in range(start, start + count)
            for text, helpful in ((f"It is {i}.", 4), ("No idea.", i % 4))
        ]
        write_gz(where / f"{name}.jsonl.gz", rows)


def with_tiny_models(models: list[dict], language_model: Path) -> list[dict]:
    """Of the evaluation, our models of tables 2 and 7, and a tiny one in the place of Nemotron's."""
    ours = [model for model in models if model.get("tables") in ([2], [7])]
    return [*({**model, "model": str(language_model)} for model in models if "logit_token" in model), *ours]


@pytest.mark.long
def test_the_commands_and_the_evaluation_make_tables_2_and_7(local_ray, tmp_path, monkeypatch, tiny_model) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "runs/data/pairs")
    write_helpsteer(tmp_path / "help")
    settings = job_file.read_yaml(JOBS / "evaluate-reward.yaml", "job")
    models = with_tiny_models(settings["models"], tiny_model)
    named = {model["model"].removesuffix("/reward") for model in models}
    for path, *overrides in (command for command in TRAINING if job_comments.job(command).run_dir in named):
        own = [
            override.replace(HUB, f"{tmp_path}/help/").replace("count: 10000", "count: 24").replace("5000", "12")
            for override in overrides
        ]
        done = commands.here("train-reward", JOBS.parent / path, *own, f"model={tiny_model}", *TINY)
        assert done.returncode == 0, done.stderr[-3000:]
    bench = tmp_path / "bench.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": f"{i}.", "rejected": "No.", "subset": "hep-cpp", "id": i} for i in range(6)]
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {
        "models": models,
        "rewardbench": {"rows": str(bench)},
        "scorers": {"dtype": "float32", "cpus": 0.1},
        "prompts": {"respond": "respond-small"},
    }
    results = run(settings)
    table1, table2, table7 = reward_tables.layout(results)
    shown = [[row.cells for row in table.rows if row.kind == "ours"] for table in (table1, table2, table7)]
    assert [cells[0] for cells in shown[0]] == ["Llama-3.1-Nemotron-70B-Reward"]
    assert [cells[:2] for cells in shown[1]] == [
        ["Llama-3B", "HelpSteer2"],
        ["Llama-3B", "HelpSteer2 + PsyCoPref"],
        ["Llama-8B", "HelpSteer2"],
        ["Llama-8B", "HelpSteer2 + PsyCoPref"],
    ]
    assert [cells[0] for cells in shown[2]] == ["Llama-8b-Psy10k", "Llama-8b-Psy5kHelp5k", "Llama-8b-Help10k"]
    measured = [cells[1:] for cells in (*shown[0], *shown[2])] + [cells[2:] for cells in shown[1]]
    assert all(float(cell) >= 0 for cells in measured for cell in cells), "every cell has a figure"
    pairs = {model["name"]: model["training_pairs"] for model in results["models"]}
    assert pairs.pop("Llama-3.1-Nemotron-70B-Reward") is None
    assert (pairs["Llama-8b-Psy10k"], pairs["Llama-8b-Psy5kHelp5k"], pairs["Llama-3b-HelpPsy"]) == (24, 24, 35 + 64)
    note = f"Llama-8b-Help10k {pairs['Llama-8b-Help10k']}"
    assert note in (tmp_path / "runs/evaluate-reward/tables.md").read_text()
