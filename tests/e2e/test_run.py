"""Whole runs with a tiny model: the report, and a driver that is killed and goes on as if nothing had been."""

import json
import shutil
import signal
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.commands import ended, here
from support.pages import self_contained
from support.processes import children_of, no_segment_left, segments
from support.runs import JOB, finish, start
from support.trackers import tensorboard_scalars, wandb_sessions

from psyco_ray.cli.main import main
from psyco_ray.config.errors import InputError
from psyco_ray.data.traces import Traces
from psyco_ray.evaluate import checkpoints, compare_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_job(tmp_path_factory, tiny_model, tiny_reward_model, local_ray):
    def make(name: str) -> tuple[Path, Path, Path]:
        where = tmp_path_factory.mktemp(name)
        job = where / "job.yaml"
        job.write_text(JOB.format(run_dir=where / "run", model=tiny_model, reward_model=tiny_reward_model))
        return job, where / "run", where / "log"

    return make


@pytest.fixture(scope="module")
def undisturbed(make_job) -> Path:
    job, run, _ = make_job("undisturbed")
    done = here("iterate", job, "rollouts.actors=2")  # the other runs have one: it must not matter
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def test_a_run_leaves_what_it_promises(undisturbed) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["iterations"] == 2
    for judge in ("train", "heldout"):
        low, high = summary[judge]["ci95"]
        assert 0 <= low <= summary[judge]["win_rate_vs_base"] <= high <= 1
        assert summary[judge]["speeches"] == 10
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert {"loss", "train_reward", "sync_s", "rollout_tokens_per_s", "dev_heldout"} <= set(lines[0])
    now = json.loads((undisturbed / "status.json").read_text())["now"]
    assert now["sync_bytes"] > 1e6
    assert {"rollouts", "scorers", "learners"} == set(now["idle_share"])
    assert all(now[f"{name}_per_s"] > 0 for name in ("rollout_tokens", "groups", "learner_tokens"))
    pairs = pq.read_table(undisturbed / "iteration-002" / "pairs.parquet").to_pylist()
    assert all(pair["chosen_score"] > pair["rejected_score"] for pair in pairs)
    assert {pair["policy_version"] for pair in pairs} == {1}
    first = pq.read_table(undisturbed / "iteration-001" / "pairs.parquet").to_pylist()
    assert not {p["speech_id"] for p in first} & {p["speech_id"] for p in pairs}, "no speech comes again before all did"
    checkpoint = undisturbed / "iteration-002" / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    state = load_file(undisturbed / "iteration-002" / "state" / "state-00000.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name].to(parameter.dtype)), name
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template
    assert not (undisturbed / "iteration-001" / "state").exists(), "only the last state is kept"
    speeches = pq.read_table(undisturbed / "speeches.parquet").to_pylist()
    dev = {row["speech_id"] for row in speeches if row["split"] == "dev"}
    assert not dev & {p["speech_id"] for p in first + pairs}
    [line] = json.loads((undisturbed / "iteration-002" / "timeline.json").read_text())["parts"]
    spans = {what: (begin, end) for what, begin, end in line["driver"]}
    assert len(spans) == len(line["driver"]), "each stage once"
    save = spans.pop("save")
    assert list(spans) == ["sample", "train", "sync", "evaluate"]
    assert save[0] >= spans["train"][1], "the policy is saved beside what follows its training"
    assert line["actors"] == {"rollouts": 2, "scorers": 1, "learners": 1}
    assert all(sum(line["busy"][role]) * line["bin_s"] > 0 for role in line["actors"])


@pytest.mark.parametrize("iteration", [0, 2])
def test_held_out_answers_have_the_log_probabilities_of_transformers(undisturbed, tiny_model, iteration: int) -> None:
    from transformers import AutoModelForCausalLM

    def logprob(model, row: dict) -> float:
        ids = torch.tensor([[*prompts[row["speech_id"]], *row["token_ids"]]])
        with torch.no_grad():
            values = model(ids).logits[0, -len(row["token_ids"]) - 1 : -1].log_softmax(-1)
        return values.gather(1, torch.tensor(row["token_ids"])[:, None]).sum().item()

    checkpoint = undisturbed / f"iteration-{iteration:03d}" / "checkpoint" if iteration else tiny_model
    policy, base = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (checkpoint, tiny_model)
    )
    prompts = {row["speech_id"]: row["prompt_ids"] for row in rows_of(undisturbed / "speeches.parquet")}
    dev = undisturbed / f"iteration-{iteration:03d}" / "dev"
    answers = [row for file in dev.glob("*.samples.parquet") for row in rows_of(file)]
    expected = [logprob(policy, row) for row in answers]
    assert [row["logprob"] for row in answers] == pytest.approx(expected, rel=0.03, abs=0.5)
    kl = sum(ours - logprob(base, row) for ours, row in zip(expected, answers, strict=True)) / len(answers)
    measured = json.loads((dev.parent / "evaluate.json").read_text())["kl"]
    assert measured == pytest.approx(kl, abs=0.05 * abs(expected[0]) + 0.5)
    assert iteration == 0 or kl > 1, "training moved the policy"


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_the_report_is_self_contained(undisturbed) -> None:
    text = (undisturbed / "report.html").read_text()
    assert text.count("<svg") == 4
    assert "held-out client speeches" in self_contained(text).text
    assert "{{" not in text


def test_a_client_of_a_finished_run_can_be_forgotten(undisturbed, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    client = pq.read_table(run / "iteration-002" / "pairs.parquet")["speech_id"][0].as_py()
    texts = [row["speech"] for row in rows_of(run / "speeches.parquet") if row["speech_id"] == client]
    assert main(["forget", str(run), "--speech-id", client]) == 0
    assert "iteration-002/checkpoint" in capsys.readouterr().out
    traces = Traces({client})
    traces.add_text(texts[0])
    for path in (path for path in run.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
        rows = rows_of(path) if path.suffix == ".parquet" else []
        assert not traces.within([list(row.values()) for row in rows]), path
        assert not traces.within(path.read_bytes().decode("utf-8", "ignore")), path
    self_contained((run / "report.html").read_text())


def still_there(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(["sampling", "training", "training on", "saving"], marks=pytest.mark.long),
        ["training on"],
    ],
    ids=len,
)
def test_a_driver_stopped_and_killed_again_and_again_goes_on_to_the_same_result(
    undisturbed, make_job, moments, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    job, run, log = make_job("disturbed")
    settings = ("dpo.checkpoint_every=3", "checkpoints.keep_last=1", "checkpoints.keep_best=false")
    settings += ("telemetry.wandb_project=psyco", "telemetry.tensorboard=true")
    before = segments()
    training = run / "iteration-001" / "training" / "progress.json"
    for how, moment, there in (
        (signal.SIGTERM, "sampling", lambda: any(run.glob("iteration-001/samples/*.scores.parquet"))),
        (signal.SIGTERM, "training", lambda: "iteration 1: train step 2/" in log.read_text()),
        (signal.SIGKILL, "training on", lambda: "iteration 1: train step 8/" in log.read_text()),
        (signal.SIGKILL, "saving", (run / "iteration-002" / "checkpoint").exists),
    ):
        if moment not in moments:
            continue
        process = start(job, log, *settings)
        deadline = time.monotonic() + 300
        while not (log.exists() and there()):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.01)
        children = children_of(process.pid)
        assert children
        began = time.monotonic()
        process.send_signal(how)
        code = ended(process, 200, log.read_text)
        print(f"recovery: {how.name} while {moment}: ended after {time.monotonic() - began:.1f} s")
        if how is signal.SIGTERM:
            assert code == 75, log.read_text()[-3000:]
            ours = [line for line in log.read_text().splitlines() if "(raylet)" not in line]  # Ray may speak last
            assert ours[-1].startswith("psyco-ray: stopped; the same command with --resume")
            assert training.exists() == (moment == "training")
        assert not still_there(children, 20), "a process was left behind"
        assert no_segment_left(before)
        assert not (run / "iteration-002" / "train.json").exists(), "it came too late to show anything"
    done = here("iterate", job, "--resume", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (log.read_text() + done.stderr).count(" steps are done") == len({*moments} - {"sampling"}), (
        "training went on from its checkpoints"
    )
    for iteration in (1, 2):
        name = f"iteration-{iteration:03d}"
        assert pq.read_table(run / name / "pairs.parquet").equals(pq.read_table(undisturbed / name / "pairs.parquet"))
        ours, theirs = (json.loads((r / name / "train.json").read_text()) for r in (run, undisturbed))
        assert (ours["steps"], ours["tokens"]) == (theirs["steps"], theirs["tokens"])
        assert not (run / name / "training").exists()
    ours, theirs = (load_file(r / "iteration-002" / "state" / "state-00000.safetensors") for r in (run, undisturbed))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    same_curves(run)
    assert not (run / "iteration-001" / "checkpoint").exists(), "only the last one was to be kept"
    named = json.loads((run / "summary.json").read_text())["checkpoint"]
    assert Path(named).is_dir()
    assert "iteration-001" not in named


def same_curves(run: Path) -> None:
    """Checks that the trackers have every optimizer step and iteration of a run that several drivers made."""
    losses = [
        step["loss"]
        for k in (1, 2)
        for step in json.loads((run / f"iteration-00{k}" / "train.json").read_text())["steps"]
    ]
    assert tensorboard_scalars(run / "tensorboard" / "policy")["loss"] == [
        (number, pytest.approx(loss)) for number, loss in enumerate(losses, 1)
    ]
    sessions = wandb_sessions(run, killed=True)
    assert len(sessions) > 1
    assert len({session.id for session in sessions}) == 1
    logged = {row["policy/step"]: row["policy/loss"] for of in sessions for row in of.rows if "policy/loss" in row}
    # a driver that is killed takes with it what W&B has not written yet; all that it wrote is right
    of_steps = dict(enumerate(losses, 1))
    assert logged == {step: of_steps[step] for step in logged}, "repeated steps have the same numbers and losses"
    assert max(logged) == len(losses)
    iterations = [step for of in sessions for step in of.steps("iterations", "dev_heldout")]
    assert iterations in ([1, 2], [2]), "each iteration once"
    assert sessions[-1].summary["best.by"].startswith("mean reward")
    assert sessions[-1].summary["steps"] == len(losses)


def test_offline_dpo_learns_from_a_file_under_one_schedule_and_a_judge_chooses(make_job, serve) -> None:
    job, run, _ = make_job("offline")
    settings = ["speeches_per_iteration=18", "dpo.optimizer.batch_size=6", "dpo.loss=ipo", "dpo.sft=0.1"]
    settings += ["dpo.reference=previous"]
    judge = {"model": "judge", "base_url": serve(), "key_env": "null"}
    settings += [f"evaluation.judge.{key}={value}" for key, value in judge.items()]
    found = here("train-dpo", job, *settings)
    assert found.returncode == 0, found.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["pairs_from"], summary["iterations"], summary["steps"]) == ("file", 2, 6)
    [part] = json.loads((run / "mixture.json").read_text())["parts"]
    assert (part["pairs"], part["leaks"]["exact"], part["leaks"]["near"]) == ("sample", 0, 0)
    steps = [json.loads((run / f"iteration-{k:03d}" / "train.json").read_text())["steps"] for k in (1, 2)]
    assert [of[0]["margin"] for of in steps] == pytest.approx([0, 0], abs=1e-3), "the reference is the policy before"
    rates = [step["lr"] for of in steps for step in of]
    assert rates == sorted(rates, reverse=True), "the schedule does not begin anew"
    first, second = (pq.read_table(run / f"iteration-{k:03d}" / "pairs.parquet").to_pylist() for k in (1, 2))
    assert not {row["speech_id"] for row in first} & {row["speech_id"] for row in second}
    assert first[0]["chosen_ids"][-1] == 2, "a response ends with the end of turn and nothing behind it"
    assert (run / "report.html").read_text().count("Offline DPO") >= 1
    rates = [json.loads((run / f"iteration-{k:03d}" / "evaluate.json").read_text())["judge"] for k in (1, 2)]
    assert all(len(of["outcomes"]) == 10 for of in rates)
    best = summary["best"]
    assert best["value"] == max(0.5, *(of["win_rate_vs_base"] for of in rates))
    assert best["by"].startswith("win rate")
    assert summary["judge"]["win_rate_vs_base"] == rates[1]["win_rate_vs_base"]
    shown = compare_runs.compare([run])
    compared = shown["runs"][run.name]
    assert (shown["judge"], compared["best"]) == ("judge", compared["curve"][best["iteration"]])
    assert [point["win_rate"] for point in compared["curve"]] == [0.5, *(of["win_rate_vs_base"] for of in rates)]
    assert [point["finished_share"] for point in compared["curve"]].count(None) == 0
    if best["iteration"]:
        assert (Path(summary["checkpoint"]) / "README.md").exists()
        assert checkpoints.find(str(run)).path == str(Path(summary["checkpoint"]).absolute())
    else:
        with pytest.raises(InputError, match="has chosen its base model"):
            checkpoints.find(str(run))
    assert checkpoints.find(str(run), 2).steps == 6


@pytest.mark.long
def test_one_round_samples_everything_from_the_base_model(make_job, undisturbed) -> None:
    job, run, log = make_job("online")
    finish(job, log, "pairs_from=base")
    for k in (1, 2):
        pairs = pq.read_table(run / f"iteration-{k:03d}" / "pairs.parquet").to_pylist()
        assert {row["policy_version"] for row in pairs} == {0}
    ours, theirs = (pq.read_table(r / "iteration-001" / "pairs.parquet") for r in (run, undisturbed))
    assert ours.equals(theirs), "the first iteration samples from the base model either way"
