"""What `plan` says about the memory of GPUs: that all shipped jobs fit, and what a job that does not fit is told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import job_comments
from support.paths import JOBS

from psyco_ray.cli.main import main
from psyco_ray.cli.plan import memory, memory_report
from psyco_ray.cli.plan.memory import Tenants
from psyco_ray.config import errors, gpu_sizes, job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Job
from psyco_ray.learner.memory import rank_memory
from psyco_ray.models.shape import SHAPES, shape_of
from psyco_ray.pool import fit

H100, SMALL = 84.9e9, 25.2e9  # bytes of a GPU of 80 and of 24 GB
EIGHT = SHAPES["llama-3.1-8b"]


def shipped() -> list:
    """Every training job on GPUs, as it is and with the overrides of the commands in its comments."""
    cases = []
    for path in sorted(JOBS.glob("*.yaml")):
        if "\nlearners" not in (text := path.read_text()) and "\nreward:" not in text:
            continue
        commands = [
            command
            for verb in ("iterate", "train-reward", "train-dpo")
            for command in job_comments.commands(path.name, verb)
        ]
        own = [command for command in commands if command[0] == f"jobs/{path.name}"]
        jobs = [("", job_file.load_as(Job, path)), *((" ".join(c[1:]), job_comments.job(c)) for c in own)]
        cases += [
            pytest.param(path.name, job, id=f"{path.stem} {id}") for id, job in jobs if memory_report.uses_gpus(job)
        ]
    return cases


@pytest.mark.parametrize(("name", "job"), shipped())
def test_shipped_jobs_fit_at_all_three_moments_with_a_twentieth_to_spare(name: str, job: Job) -> None:
    gpu_bytes = SMALL if name == "smollm2.yaml" else H100
    for use in memory.uses_of(job, shape_of(job.model), gpu_bytes):
        for moment in use.parts:
            assert use.total(moment) <= 0.95 * gpu_bytes, (use.tenants, moment, use.parts[moment])
    assert not gpu_sizes.too_small(job)


def colocated(**learners: object) -> Job:
    return Job.model_validate(
        {
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "colocated": True,
            "rollouts": {"actors": 4, "gpus": 0.4},
            "learners": {"actors": 4, "gpus": 0.4, "zero_stage": 3, "gradient_checkpointing": True, **learners},
            "scorers": {
                "gpus": 0.2,
                "reward_model": "runs/reward-8b-a/reward",
                "heldout_model": "runs/reward-3b-b/reward",
            },
        }
    )


def test_a_job_that_does_not_fit_is_refused_with_the_moment_its_parts_and_the_way_out() -> None:
    with pytest.raises(InputError) as refused:
        memory_report.describe(colocated(), EIGHT, H100, "H100")
    assert "a GPU with rollout + learner rank + scorer needs" in str(refused.value)
    assert "GB at the moment `train` (scorer models 38.5, learner states 36.1," in str(refused.value)
    assert str(refused.value).endswith("of its 84.9 GB 80.7 may be used; set scorers.gpus=1")
    apart = colocated().model_copy(update={"scorers": colocated().scorers.model_copy(update={"gpus": 1.0})})
    table = memory_report.describe(apart, EIGHT, H100, "H100").splitlines()
    assert table[0].split() == ["GB", "of", "84.9", "in", "use", "train", "sync", "sample"]
    assert [row[:22] for row in table[1:3]] == ["scorer                ", "rollout + learner rank"]


def test_the_way_out_of_a_learner_that_is_too_large_is_the_cheapest_change_that_helps() -> None:
    job = Job.model_validate({"learners": {"actors": 2, "gpus": 1, "zero_stage": 2}, "model": "llama-3.2-3b"})
    three = SHAPES["llama-3.2-3b"]
    with pytest.raises(InputError, match=r"set learners.gradient_checkpointing=true$"):
        memory_report.describe(job, three, 60e9, "a GPU")
    with pytest.raises(InputError, match="use more learner ranks"):
        memory_report.describe(job, three, 20e9, "a GPU")
    large = job.model_copy(update={"rollouts": job.rollouts.model_copy(update={"gpus": 1.0, "kv_cache_gb": 90.0})})
    with pytest.raises(InputError, match=r"at the moment `sync` .*KV cache 96.6.*set rollouts.kv_cache_gb=null$"):
        memory_report.describe(large, three, H100, "H100")


def test_a_rank_that_sends_its_weights_leaves_room_for_an_engines() -> None:
    """The sum of the scorer, all of a rank's states and an engine's weights would not fit."""
    [use] = memory.uses_of(colocated(), EIGHT, H100)
    sync = use.parts["sync"]
    assert sync["learner weights"] == pytest.approx(2 * EIGHT.parameters / 4)
    assert sync["engine weights"] == pytest.approx(2 * EIGHT.parameters)
    assert "learner states" not in sync
    states = rank_memory(EIGHT, colocated().learners, 1000).states
    assert use.total("sync") < 0.95 * H100 < use.total("sync") + states - sync["learner weights"]
    assert use.parts["sample"].keys() & {"learner weights", "learner states"} == set()


def test_states_by_zero_stage() -> None:
    shape = replace(EIGHT, parameters=10**6)
    sizes = []
    for stage, dtype in ((0, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")):
        settings = Learners(zero_stage=stage, dtype=dtype, gpus=1)
        sizes.append(rank_memory(shape, settings, 1000, ranks=4).states)
    # weights, gradients, and 12 bytes of optimizer; stages 2 and 3 sum gradients in float32
    assert sizes == [16e6, (2 + 2 + 3) * 1e6, (2 + 1 + 3) * 1e6, (0.5 + 1 + 3) * 1e6]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rollouts": {"gpus": 1}, "scorers": {"gpus": 1}, "learners": {"gpus": 1}}, [(1, 0, 0), (0, 0, 1), (0, 1, 0)]),
        ({"rollouts": {"gpus": 0.25, "actors": 2}, "scorers": {"gpus": 0.5}}, [(2, 0, 1)]),
        ({"rollouts": {"gpus": 0.5, "actors": 3}, "scorers": {"gpus": 0.5}}, [(1, 0, 1), (2, 0, 0)]),
        (
            {"rollouts": {"gpus": 0.4}, "learners": {"gpus": 0.4}, "scorers": {"gpus": 0.2}, "colocated": True},
            [(1, 1, 1)],
        ),
        (
            {"rollouts": {"gpus": 0.5}, "learners": {"gpus": 0.5}, "scorers": {"gpus": 1}, "colocated": True},
            [(1, 1, 0), (0, 0, 1)],
        ),
        ({}, []),
    ],
)
def test_actors_that_fit_together_may_share_a_gpu(settings: dict, expected: list) -> None:
    assert memory.shared_gpus(Job.model_validate(settings)) == [Tenants(*counts) for counts in expected]


CLIENT = {"model": "llama-3.2-3b", "rollouts": {"gpus": 1, "max_model_len": 2048}}


def test_simulated_clients_have_gpus_of_their_own_with_the_size_of_their_model() -> None:
    job = Job.model_validate({"rollouts": {"gpus": 1}, "simulate": {"client": CLIENT}})
    assert memory.shared_gpus(job) == [Tenants(1), Tenants(clients=1)]
    use = memory.uses_of(job, EIGHT, H100)[-1]
    assert use.tenants == "client"
    assert use.parts["train"]["client weights"] == pytest.approx(2 * SHAPES["llama-3.2-3b"].parameters, rel=0.01)
    assert use.parts["train"] == use.parts["sync"] == use.parts["sample"]
    assert memory_report.uses_gpus(Job.model_validate({"simulate": {"client": CLIENT}}))
    small = {**CLIENT, "rollouts": {"gpus": 0.5, "max_num_seqs": 8}}
    job = Job.model_validate({"scorers": {"gpus": 0.5}, "simulate": {"client": small}})
    assert memory.shared_gpus(job) == [Tenants(scorers=1, clients=1)]
    assert "simulate.client.rollouts.max_num_seqs 8 decodes few" in gpu_sizes.too_small(job)[0]


def test_the_job_of_conversations_fits_80_gb() -> None:
    job = job_file.load_as(Job, JOBS / "conversations-8b.yaml")
    uses = memory.uses_of(job, EIGHT, 80e9)
    assert memory_report.shortage(uses, 80e9) is None
    assert {use.tenants for use in uses} >= {"client", "rollout + learner rank", "scorer"}
    assert sum(role.count * role.gpus for role in fit.iterate_phase(job)) == 8


def test_reward_models_have_the_size_of_their_directory_or_name(tiny_model) -> None:
    assert memory.reward_model_shape(str(tiny_model), EIGHT).layers == 2
    assert memory.reward_model_shape("runs/reward-3b-b/reward", EIGHT) == SHAPES["llama-3.2-3b"]
    assert memory.reward_model_shape("meta-llama/Llama-3.1-8B", SHAPES["llama-3.2-3b"]) == EIGHT
    assert memory.reward_model_shape("runs/best/reward", EIGHT) == EIGHT


def test_checkpointing_that_the_memory_does_without_is_named() -> None:
    job = Job.model_validate({"learners": {"actors": 2, "gpus": 1, "gradient_checkpointing": True}})
    three = SHAPES["llama-3.2-3b"]
    warning = "warning: without learners.gradient_checkpointing, which takes a quarter"
    assert warning in memory_report.describe(job, three, H100, "H100")
    assert warning not in memory_report.describe(job, three, 60e9, "a GPU"), "it is needed there"


def test_a_run_warns_of_sizes_that_leave_a_gpu_without_work(tmp_path: Path, caplog) -> None:
    (tmp_path / "LOCK").mkdir()  # the run ends here
    sizes = "rollouts={gpus: 1, enforce_eager: true, max_num_seqs: 8}", "learners={gpus: 1, micro_batch_tokens: 512}"
    job = str(JOBS / "demo.yaml")
    assert main(["iterate", job, f"run_dir={tmp_path}", "scorers.reward_model=a", *sizes]) == errors.INPUT_ERROR
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "rollouts.enforce_eager true decodes without CUDA graphs" in logged
    assert "rollouts.max_num_seqs 8 decodes few sequences" in logged
    assert "learners.micro_batch_tokens 512 are few" in logged


def test_a_run_warns_where_this_machines_gpus_are_too_small(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(total_memory=24e9, name="a small GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    job = Job.model_validate({"model": "llama-3.2-3b", "learners": {"gpus": 1}})
    [warning] = memory_report.warnings(job)
    assert "of its 24.0 GB 22.8 may be used; it may run out of memory, and psyco-ray plan names a change" in warning
    assert memory_report.warnings(Job()) == []
    properties.total_memory = 200e9
    assert memory_report.warnings(job) == []


def test_plan_refuses_and_prints(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "job.yaml"
    path.write_text("model: llama-3.1-8b\nlearners: {gpus: 1}\n")
    assert main(["plan", str(path)]) == errors.INPUT_ERROR
    assert "needs" in (printed := capsys.readouterr().err)
    assert "at the moment `train`" in printed
    path.write_text(
        "model: llama-3.1-8b\nrollouts: {gpus: 1, kv_cache_gb: 1, speeches_per_item: 4, feed: items}\n"
        "scorers: {gpus: 1, row_tokens: 1024}\n"
    )
    main(["plan", str(path)])
    printed = capsys.readouterr().out
    assert "GB of 84.9 in use" in printed
    assert "warning: rollouts.kv_cache_gb 1 holds about" in printed
    assert "has 32 responses and never fills rollouts.max_num_seqs 256" in printed
    assert "warning: scorers.row_tokens 1024 are few for a pass on a GPU" in printed
