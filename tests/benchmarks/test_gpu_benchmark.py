"""`benchmarks/gpu.py`: its arithmetic, its random models, and its errors."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.paths import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from psyco_ray.cli.plan import memory_report
from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.learner import memory
from psyco_ray.models import branches, loading
from psyco_ray.models.packing import ResponseLogprobs, pack
from psyco_ray.models.shape import SHAPES
from psyco_ray.models.stop_tokens import stop_tokens

SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))

import gpu  # noqa: E402 - a script beside the package
import gpu_suite  # noqa: E402
import shapes  # noqa: E402
from gpu_suite import Outcome, Part  # noqa: E402

PAIRS = [(30, 25, 20), (7, 1, 12)]
H100 = gpu.Gpu("NVIDIA H100 80GB HBM3", 85_000_000_000)


def shape(name: str) -> SimpleNamespace:
    return SimpleNamespace(**shapes.LLAMAS[name])


def options(model: str) -> argparse.Namespace:
    return argparse.Namespace(model=model, zero=2, micro=None, checkpointing=False)


def part(name: str, code: str, limit_s: float = 20) -> Part:
    return Part(name, (sys.executable, "-c", code), limit_s)


@pytest.mark.parametrize(("name", "layer"), [("tiny", 36_864), ("3b", 100_663_296), ("8b", 218_103_808)])
def test_parameters_of_a_layer_by_hand(name: str, layer: int) -> None:
    assert shapes.layer_parameters(shape(name)) == layer


@pytest.mark.parametrize(("name", "known"), [("3b", "llama-3.2-3b"), ("8b", "llama-3.1-8b")])
def test_the_shapes_have_the_parameters_that_plan_knows(name: str, known: str) -> None:
    config = shape(name)
    matrices = config.num_hidden_layers * shapes.layer_parameters(config)
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert matrices + ends + norms == SHAPES[known].parameters


def test_flops_by_hand() -> None:
    # a prompt of 3 attends to 1 + 2 + 3 tokens, a response of 2 to 4 + 5, a response of 1 to 4
    layers, head, attention = 2 * 2 * 36_864 * 6, 2 * 64 * 50_048 * 3, 4 * 2 * 2 * 32 * (6 + 9 + 4)
    assert shapes.forward_flops(shape("tiny"), [(3, 2, 1)]) == layers + head + attention == 20_112_896
    assert shapes.training_flops(shape("tiny"), [(3, 2, 1)] * 5) == 15 * 20_112_896
    # short responses without prompts: little more than 6 FLOPs per parameter and token
    tokens = 6 * SHAPES["llama-3.2-3b"].parameters * 2000
    assert shapes.training_flops(shape("3b"), [(0, 1000, 1000)]) == pytest.approx(tokens, rel=0.06)


@pytest.mark.parametrize("training", [False, True])
def test_flops_equal_those_that_torch_counts(tiny_model, training: bool) -> None:
    policy = ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32"))
    packed = pack(
        [([n] * prompt, [[6] * chosen, [7] * rejected]) for n, (prompt, chosen, rejected) in enumerate(PAIRS)]
    )
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logprobs = policy(packed)
        if training:
            logprobs.sum().backward()
    # torch also counts the masked part of each block of queries
    config = policy.model.config
    assert max(map(max, PAIRS)) <= branches.BLOCK
    masked = sum(p * (p - 1) // 2 + sum(r * (r - 1) // 2 for r in responses) for p, *responses in PAIRS)
    masked *= 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    counted = counter.get_total_flops() - (3 if training else 1) * masked
    assert counted == (shapes.training_flops if training else shapes.forward_flops)(config, PAIRS)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_peaks_by_name(name: str, peak: float) -> None:
    assert gpu.peak_of(gpu.Gpu(name, 1), None) == peak
    assert gpu.peak_of(gpu.Gpu(name, 1), 5e12) == 5e12


def test_an_unknown_peak_is_an_error() -> None:
    with pytest.raises(InputError, match="the peak of Radeon is unknown; pass --peak"):
        gpu.peak_of(gpu.Gpu("Radeon", 1), None)
    assert gpu.peak_of(gpu.Gpu("Radeon", 1), 5e12) == 5e12


def test_a_memory_shortage_is_explained() -> None:
    def shortage(name: str, device: gpu.Gpu | None) -> str | None:
        return gpu.memory_shortage(gpu.job_of(name, options(name), on_gpu=True), name, device)

    assert shortage("135m", H100) is shortage("3b", H100) is shortage("8b", None) is None
    assert shortage("8b", gpu.Gpu("NVIDIA B200", 192_000_000_000)) is None
    reason = shortage("8b", H100)
    assert reason is not None
    assert reason.startswith("learner and sync of 8b are left out: ")
    assert reason.endswith("and NVIDIA H100 80GB HBM3 has 76")


def test_mfu_of_the_median_round(monkeypatch) -> None:
    monkeypatch.setattr(gpu.Gpu, "here", lambda: H100)
    namespace = argparse.Namespace(model="3b", peak=1e15)
    line = gpu.mfu_line("learner", namespace, flop_count=10**15, seconds=[99.0, 2.0, 4.0, 2.5])
    assert (line["ratio"], line["bar"], line["pass"]) == (0.4, 0.4, True)
    assert line["ours"] / line["peer"] == pytest.approx(0.4, rel=1e-3)
    assert gpu.mfu_line("learner", namespace, flop_count=10**15, seconds=[1.0, 3.0])["pass"] is False
    assert gpu.mfu_line("forward", namespace, flop_count=10**15, seconds=[1.0, 3.0])["bar"] is None


def test_random_models_are_complete_and_reproducible(tmp_path) -> None:
    for name in ("one", "two"):
        shapes.write("tiny", str(tmp_path / name))
    one, two = (loading.load_causal_lm(loading.resolve(str(tmp_path / name)), "float32") for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight, norm = one.model.layers[1].mlp.up_proj.weight, one.model.norm.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert norm.eq(1).all()
    assert one.lm_head.weight is one.model.embed_tokens.weight
    tokenizer = loading.load_tokenizer(tmp_path / "one")
    assert tokenizer.eos_token_id == one.config.eos_token_id
    ends = stop_tokens(tokenizer)
    assert len(ends) == shapes.ENDS + 1, "random answers end too"
    assert min(set(ends) - {tokenizer.eos_token_id}) > len(tokenizer)
    rows = one.get_output_embeddings().weight.detach()
    assert (rows[-shapes.ENDS :].std() / rows[: -shapes.ENDS].std()).item() == pytest.approx(shapes.END_SCALE, rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_ends_with_an_explanation() -> None:
    command = [sys.executable, str(SCRIPT), "--model", "8b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    expected = "--model 8b needs an NVIDIA GPU; --model tiny runs on the CPU\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


MEMORY = {
    "planned_gb": {"train": 78.4, "sync": 38.8, "sample": 78.1},
    "peak_gb": {"train": 70.5, "sample": 77.1},  # an update may be over before the memory is read
}
RESULT = {"name": "gpu sync ipc 3b", "ours": 0.5, "peer": 0.25, "ratio": 2.0, "bar": 3.0, "pass": True}


def test_a_failed_or_late_part_does_not_stop_the_others(capsys) -> None:
    parts = [
        part("failed", "print('why it failed'); raise SystemExit(3)"),
        part("late", f"import time; print('{json.dumps(RESULT)}', flush=True); time.sleep(60)", limit_s=3),
        part("good", f"print('{json.dumps(RESULT)}')"),
    ]
    began = time.monotonic()
    failed, late, good = gpu_suite.run_all(parts, limit_s=60)
    assert time.monotonic() - began < 30
    assert (failed.problem, late.problem, good.problem) == ("exit code 3", "not done within 3 s", "")
    assert late.lines == good.lines == [RESULT], "what was measured before the limit counts"
    assert "why it failed" in capsys.readouterr().out


def test_parts_get_no_more_than_what_is_left_of_the_time_of_all() -> None:
    late, never = gpu_suite.run_all([part("late", "import time; time.sleep(60)"), part("never", "")], limit_s=2)
    assert (late.problem, never.problem) == ("not done within 2 s", "no time was left")


def test_a_late_part_leaves_no_process(tmp_path) -> None:
    child = "import sys, time; open(sys.argv[1], 'w').write('x'); time.sleep(4); open(sys.argv[1] + '-late', 'w')"
    file = str(tmp_path / "child")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, {file!r}])"
    gpu_suite.run_all([part("late", code, limit_s=2)])
    assert Path(file).exists()
    time.sleep(3)
    assert not Path(file + "-late").exists()


def test_the_parts_fit_eight_minutes_and_the_iteration_has_a_valid_job(tmp_path) -> None:
    for on_gpu in (True, False):
        parts = gpu_suite.parts("tiny", str(tmp_path), on_gpu)
        job = job_file.load_as(Job, tmp_path / "iteration.yaml")
        assert (job.colocated, job.rollouts.gpus > 0) == (on_gpu, on_gpu)
        assert job.scorers.reward_model == job.scorers.heldout_model == f"{tmp_path}/reward"
        assert [p.name for p in parts if "--checkpointing" in p.command] == ["learner checkpointing"]
        assert all(part.limit_s <= 150 for part in parts) == on_gpu
    assert gpu_suite.LIMIT_S == 480


def iteration_on_a_gpu(directory: Path, monkeypatch, gpu_bytes: float) -> Path:
    """Writes the iteration's job and the configurations of its models, for a GPU of this size; returns the job file."""
    for name in ("model", "reward"):
        LlamaConfig(**shapes.LLAMAS["3b"]).save_pretrained(directory / name)
    monkeypatch.setattr(memory_report, "gpu_here", lambda: (gpu_bytes, "a GPU"))
    path = directory / "iteration.yaml"
    path.write_text(gpu_suite.iteration_job(str(directory), on_gpu=True))
    return path


@pytest.mark.parametrize("gpu_bytes", [84.9e9, 150e9])
def test_the_iteration_at_3b_fits_and_its_engine_takes_what_is_left(tmp_path, monkeypatch, gpu_bytes: float) -> None:
    path = iteration_on_a_gpu(tmp_path, monkeypatch, gpu_bytes)
    assert job_file.load_as(Job, path).rollouts.kv_cache_gb is None, "as in the jobs for 3B and 8B"
    planned = gpu_suite.planned_gb(path)
    assert list(planned) == ["train", "sync", "sample"]
    assert max(planned.values()) <= 0.95 * gpu_bytes / 1e9
    assert planned["sample"] > 0.9 * gpu_bytes / 1e9
    monkeypatch.setattr(memory_report, "gpu_here", lambda: None)
    assert gpu_suite.planned_gb(path) == {}


def test_the_memory_of_an_iteration_is_that_within_the_span_of_each_moment(tmp_path, monkeypatch) -> None:
    iteration_on_a_gpu(tmp_path, monkeypatch, 84.9e9)
    stage = tmp_path / "run" / "iteration-001"
    stage.mkdir(parents=True)
    spans = [
        ("sample", 0.0, 4.0),
        ("train", 4.5, 6.0),
        ("sync", 6.1, 6.5),
        ("sample", 7.0, 8.0),
        ("evaluate", 8.0, 9.0),
    ]
    (stage / "timeline.json").write_text(json.dumps({"parts": [{"seconds": 9.0, "driver": spans}]}))
    (stage / "sync.json").write_text(json.dumps({"gap": 0.01, "export_s": 1.5}))
    os.utime(stage / "timeline.json", (1009.0, 1009.0))
    used = [
        (999.0, 90.0),
        (1001.0, 76.0),
        (1004.2, 80.0),
        (1005.0, 61.0),
        (1005.9, 60.0),
        (1007.5, 75.0),
        (1008.5, 85.0),
    ]
    line = gpu_suite.iteration_line(tmp_path / "run", used)
    assert line["peak_gb"] == {"sample": 76.0, "train": 61.0}
    assert line["planned_gb"] == gpu_suite.planned_gb(tmp_path / "iteration.yaml")
    assert (line["gap"], line["seconds"]["train"]) == (0.01, 1.5)
    assert "planned_gb" not in gpu_suite.iteration_line(tmp_path / "run", []), (
        "without a GPU there is nothing to compare"
    )


@pytest.mark.parametrize(("more", "least"), [({}, 18), ({"zero": 1}, 16), ({"checkpointing": True}, 18)])
def test_the_memory_of_the_learner_is_that_of_a_rank_and_its_context(more: dict, least: int) -> None:
    settings = argparse.Namespace(**{**vars(options("3b")), **more})
    job = gpu.job_of("3b", settings, on_gpu=True)
    states, shape = least * SHAPES["llama-3.2-3b"].parameters / 1e9, SHAPES["llama-3.2-3b"]
    beside = gpu.planned_gb(job, settings) - states - 0.6
    whole_pass = memory.pass_bytes(shape, job.learners, 3 * 256) / 1e9
    buckets = 2 * 2 * memory.REDUCE_BUCKET / 1e9
    assert beside == pytest.approx(whole_pass + buckets, abs=0.1)


def test_the_report_has_a_row_for_every_part(tmp_path) -> None:
    outcomes = [
        Outcome("tests", 70.0, lines=[{"name": "gpu tests", "summary": "5 passed, 1 skipped"}]),
        Outcome(
            "iteration", 91.2, lines=[{"name": "gpu iteration", "seconds": {"sample": 3.0}, **MEMORY}], peak_gb=77.1
        ),
        Outcome("sync", 50.0, lines=[RESULT]),
        Outcome("learner checkpointing", 9.0, lines=[{**RESULT, "name": "gpu learner 3b", "pass": False}]),
        Outcome(
            "learner", 9.0, lines=[{**RESULT, "name": "gpu learner 3b", "planned_gb": {"train": 58.0}}], peak_gb=61.5
        ),
        Outcome("rollout", 110.0, "not done within 110 s", output="a trace"),
    ]
    rows = gpu_suite.report(outcomes, "NVIDIA H200", tmp_path / "gpu.json").splitlines()
    columns = "| name | ours | peer | ratio | bar | device | date |"
    assert columns in (ROOT / "benchmarks" / "README.md").read_text()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert all(len(row) == columns.count("|") - 1 and row[5] == "NVIDIA H200" for row in cells)
    assert [row[:5] for row in cells] == [
        ["[gpu](#gpu) tests", "5 passed, 1 skipped in 70 s", "", "", ""],
        ["[gpu](#gpu) iteration", "done in 91 s, at most 77.1 GB", "", "", ""],
        ["[gpu](#gpu) iteration memory", "train 70.5, sample 77.1 GB", "train 78.4, sync 38.8, sample 78.1 GB", "", ""],
        ["[gpu](#gpu) sync ipc 3b", "0.5", "0.25", "2", "3"],
        ["[gpu](#gpu) learner 3b checkpointing", "0.5", "0.25", "2 n/r", "3"],
        ["[gpu](#gpu) learner 3b", "0.5", "0.25", "2", "3"],
        ["[gpu](#gpu) learner memory", "train 61.5 GB", "train 58 GB", "", ""],
        ["[gpu](#gpu) rollout", "not done within 110 s", "", "", ""],
    ]
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["device"] == "NVIDIA H200"
    assert facts["parts"][1]["lines"][0]["planned_gb"] == MEMORY["planned_gb"]
    assert [p["name"] for p in facts["parts"]] == [outcome.name for outcome in outcomes]
    assert {"python", "torch", "ray", "deepspeed"} <= facts["versions"].keys()


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_all_parts_run_on_a_cpu_with_a_tiny_model(tmp_path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--all", "--limit", "800", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    parts = {part["name"]: part for part in json.loads(file.read_text())["parts"]}
    assert {"sample", "train", "sync", "evaluate"} <= parts["iteration"]["lines"][-1]["seconds"].keys()
    for name in ("sync", "rollout", "learner", "learner checkpointing"):
        assert parts[name]["lines"][0]["ours"] > 0
    assert "skipped" in parts["tests"]["lines"][0]["summary"]
