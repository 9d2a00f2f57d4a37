"""The dtype in which a rank on a GPU sums the gradients of its passes, and DeepSpeed's sizes there."""

import json
import subprocess
import sys
from typing import Any

import pytest
from support.paths import SUPPORT

from psyco_ray.config.optimizer import Optimizer
from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.learner import memory
from psyco_ray.pool.placement import actor_environment


def deepspeed_config(**settings: Any) -> dict[str, Any]:
    from psyco_ray.learner.engine import REDUCE_BUCKET, _deepspeed_config

    assert REDUCE_BUCKET == 2**25
    return _deepspeed_config(Learners(**settings), Optimizer(), 4)


def test_a_rank_on_a_gpu_has_the_sizes_that_are_calculated() -> None:
    config = deepspeed_config(gpus=1, zero_stage=3)
    zero = config["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["sub_group_size"]) == (memory.REDUCE_BUCKET, memory.SUB_GROUP)
    assert zero["stage3_max_live_parameters"] == memory.LIVE_PARAMETERS
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in deepspeed_config(gpus=1, zero_stage=1)
    assert "data_types" not in deepspeed_config(gpus=1, dtype="float32")
    on_cpu = deepspeed_config(zero_stage=3, dtype="bfloat16")
    assert "data_types" not in on_cpu
    buckets = {"reduce_bucket_size": 2**25, "allgather_bucket_size": 2**25}
    assert on_cpu["zero_optimization"] == {"stage": 3, "overlap_comm": False, **buckets}


def test_ranks_and_scorers_on_gpus_have_segments_that_grow() -> None:
    assert actor_environment(Learners(gpus=1))["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert actor_environment(Scorers(gpus=0.2))["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for settings in (Rollouts(gpus=1), Learners(), Scorers()):
        assert "PYTORCH_ALLOC_CONF" not in actor_environment(settings)


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_sums_in_float32_survive_that_states_leave_the_gpu(tiny_model, stage: int) -> None:
    runs = []
    for moved in ("", "moved"):
        command = [sys.executable, str(SUPPORT / "rank_alone.py"), str(tiny_model), str(stage), moved]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
    assert runs[0]["dtype"] == "torch.float32"
    assert runs[0]["passes"] > 1
    assert runs[0]["steps"][-1][0] < 0.9 * runs[0]["steps"][0][0]
    assert runs[1] == runs[0]
