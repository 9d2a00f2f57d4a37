import re
from pathlib import Path

import pytest
from support.paths import JOBS

from psyco_ray.config import job_file, resources
from psyco_ray.config.data import DataJob, Respond
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.config.training import Job
from psyco_ray.data import respond


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers() -> None:
    job = Job()
    assert (job.iterations, job.speeches_per_iteration, job.sampling.responses, job.sampling.temperature) == (
        16,
        6400,
        8,
        1.0,
    )
    assert (job.dpo.beta, job.dpo.optimizer.batch_size, job.dpo.optimizer.learning_rate) == (0.1, 64, 5e-7)
    assert (job.dpo.optimizer.betas, job.dpo.optimizer.warmup_ratio) == ((0.9, 0.95), 0.03)
    reward = job.reward.optimizer
    assert (reward.epochs, reward.batch_size, reward.learning_rate) == (2, 128, 9e-6)
    assert (job.data.min_chars, job.data.max_chars, job.data.dev_share) == (100, 1000, 0.1)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_jobs_are_valid_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    if path.name.startswith("pool"):
        assert len(respond.load_pool(Respond(pool=str(path)))) >= 4
        return
    kinds = {"data": DataJob, "evaluate-reward": EvaluateRewardJob, "evaluate-policy": PolicyEvaluationJob}
    kind = next((kinds[start] for start in kinds if path.name.startswith(start)), Job)
    job = job_file.load_as(kind, path)
    assert job_file.load_as(kind, write(tmp_path, job_file.dump(job))) == job


def test_the_runs_of_figure_4_differ_in_the_source_of_their_pairs_alone() -> None:
    """One epoch of the train speeches, and a judge for every checkpoint, all of which are kept (paper §4.3)."""
    sources = {"offline": "file", "online": "base", "iterative": "policy"}
    jobs = {
        name: job_file.load_as(Job, JOBS / "figure4-3b.yaml", [f"pairs_from={source}"])
        for name, source in sources.items()
    }
    for job in jobs.values():
        assert (job.applied_dpo.schedule_over, job.applied_dpo.keep_optimizer) == ("run", True)
        assert job.evaluation.judge is not None
        assert job.evaluation.judged == 500
        assert job.checkpoints.keep_last is None
        train_speeches = 0.9 * 23_192
        assert 0.99 * train_speeches < job.iterations * job.speeches_per_iteration <= train_speeches
        assert job.speeches_per_iteration % job.dpo.optimizer.batch_size == 0
    evaluation = job_file.load_as(PolicyEvaluationJob, JOBS / "evaluate-policy-figure4.yaml")
    assert {policy.model: policy.iteration for policy in evaluation.policies} == {
        f"runs/figure4-3b/{name}": "all" for name in sources
    }
    assert evaluation.speeches.split == "test"


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "sampling: {responses: 4}\n")
    job = job_file.load_as(
        Job,
        path,
        ["sampling.temperature=0.5", "seed=7", "scorers.reward_model=/a/b", "dpo.optimizer.betas=[0.5, 0.6]"],
    )
    assert (job.sampling.responses, job.sampling.temperature, job.seed) == (4, 0.5, 7)
    assert job.scorers.reward_model == "/a/b"
    assert job.dpo.optimizer.betas == (0.5, 0.6)


SHARED = "colocated: true\nrollouts: {actors: 2, gpus: 0.5}\nlearners: {actors: 2, gpus: 0.5}"


@pytest.mark.parametrize(
    ("text", "overrides", "transport"),
    [
        ("", [], "object_store"),
        ("rollouts: {gpus: 1}\nlearners: {gpus: 1}", [], "object_store"),
        ("rollouts: {gpus: 1}\nlearners: {gpus: 1}", ["sync.transport=nccl"], "nccl"),
        ("rollouts: {gpus: 0.25}\nlearners: {gpus: 1}", [], "object_store"),
        (SHARED, [], "ipc"),
        (SHARED, ["sync.transport=object_store"], "object_store"),
        ("", ["sync.transport=gloo"], "gloo"),
    ],
)
def test_the_default_transport_follows_from_the_placement(
    tmp_path: Path, text: str, overrides: list[str], transport: str
) -> None:
    assert job_file.load_as(Job, write(tmp_path, text), overrides).transport == transport


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("sampling: {response: 4}", [], ["unknown key sampling.response", "did you mean sampling.responses"]),
        ("temperature: 1", [], ["unknown key temperature", "sampling.temperature"]),
        ("qqqq: 1", [], ["unknown key qqqq", "known here", "run_dir"]),
        ("seed: lots", [], ["seed", "'lots'", "integer"]),
        ("data: {dev_share: 1.2}", [], ["data.dev_share", "1.2", "less than 1"]),
        ("sampling: {responses: 1}", [], ["sampling.responses", "greater than or equal to 2"]),
        ("data: {min_chars: 50, max_chars: 20}", [], ["data", "min_chars 50 is above max_chars 20"]),
        ("evaluation: {responses: 3}", [], ["evaluation", "temperature 0"]),
        ("dpo: {optimizer: {batch_size: 2}}\nlearners: {actors: 4}", [], ["batch of 2", "4 ranks", "learners.actors"]),
        ("rollouts: {tensor_parallel: 2}", [], ["tensor_parallel 2", "rollouts.gpus"]),
        ("sampling: {max_tokens: 4096}", [], ["sampling.max_tokens 4096", "max_model_len 2048"]),
        ("pairs_from: base\ndpo: {reference: previous}", [], ["pairs_from base", "set dpo.reference base"]),
        ("learners: {zero_stage: 0, dtype: bfloat16}", [], ["learners.zero_stage 0", "set 1, 2 or 3"]),
        ("learners: {gpus: 0.5}", [], ["learners.gpus is 0.5", "whole GPUs", "unless it is colocated"]),
        ("reward: {learners: {gpus: 0.5}}", [], ["reward.learners.gpus is 0.5", "whole GPUs"]),
        ("sync: {transport: ipc}", [], ["sync.transport ipc", "colocated: true"]),
        ("sync: {transport: nccl}\nlearners: {gpus: 1}", [], ["sync.transport nccl", "rollouts.gpus 0 and"]),
        ("sync: {transport: gloo}\nlearners: {gpus: 1}", [], ["sync.transport gloo", "learners.gpus 1"]),
        (SHARED, ["sync.transport=shared_memory"], ["sync.transport shared_memory", "CPUs"]),
        ("sync: {deltas: true, transport: nccl}", [], ["sync.deltas needs sync.transport object_store"]),
        ("colocated: true", [], ["colocated needs rollouts.gpus and learners.gpus", "0.5 each", "not 0 and 0"]),
        (SHARED, ["rollouts.gpus=0.6"], ["at most one", "not 0.6 and 0.5"]),
        (SHARED, ["rollouts.gpus=0.2", "learners.gpus=0.3"], ["more than half a GPU", "not 0.2 and 0.3"]),
        (SHARED, ["learners.actors=3"], ["rollouts.actors (2)", "learners.actors (3)", "equal"]),
        (SHARED, ["rollouts.tensor_parallel=2"], ["colocated needs rollouts.tensor_parallel 1"]),
        (SHARED, ["rollouts.autoscale={max: 4}"], ["colocated needs rollouts.autoscale null"]),
        (SHARED, ["learners.zero_stage=0", "learners.dtype=float32"], ["learners.zero_stage 1, 2 or 3"]),
        (SHARED, ["sync.transport=nccl"], ["sync.transport nccl", "two processes on one GPU"]),
        ("", ["sampling.responses"], ["override 'sampling.responses'", "key=value"]),
        ("seed: 1", ["seed.x=1"], ["seed is a value, not a section"]),
        ("- a\n- b", [], ["must hold keys and values"]),
        ("a: [", [], ["cannot be read as YAML"]),
    ],
)
def test_invalid_settings_are_named_in_one_sentence(
    tmp_path: Path, text: str, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        job_file.load_as(Job, write(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_roles_compute_in_float32_on_a_cpu_without_bfloat16(monkeypatch) -> None:
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(resources, "cpu_has_bfloat16", lambda native=native: native)
        for kind in (Learners, Scorers, Rollouts):
            assert kind().dtype == expected
            assert kind(gpus=1).dtype == "bfloat16"
            assert kind(dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"gpus\n.*greater than or equal to 0"):
        Learners(gpus=-1)


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml does not exist"):
        job_file.load_as(Job, tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_job_is_not_quoted(tmp_path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text('speech: "I cannot sleep", "since she left": [\n')
    with pytest.raises(InputError, match="cannot be read as YAML: line 1: ") as found:
        job_file.load_as(Job, path)
    assert "sleep" not in str(found.value)
    path.write_text(f"seed: {'I cannot sleep. ' * 20}\n")
    with pytest.raises(InputError, match=r"seed: invalid value of 3\d\d characters") as found:
        job_file.load_as(Job, path)
    assert "sleep" not in str(found.value)
