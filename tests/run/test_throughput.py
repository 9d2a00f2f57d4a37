"""What a run tells of itself as it goes."""

import pytest

from psyco_ray.learner import flops
from psyco_ray.run import throughput
from psyco_ray.run.throughput import RollingMetrics


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    return now


def member(busy_s: float, there_s: float) -> dict[str, float]:
    return {"busy_s": busy_s, "there_s": there_s}


def test_speeds_means_and_idle_shares_are_those_of_the_last_minute(clock) -> None:
    figures = RollingMetrics()
    for second in range(1, 121):
        clock[0] += 1
        tokens = 10 if second <= 60 else 40
        figures.add(rollout_tokens=tokens, response_tokens_sum=tokens, responses=4, groups=1)
        figures.add(sampled=1, reward_sum=float(second > 60))
        if second > 90:
            figures.add(learner_tokens=200, learner_s=1.0)
        # one member works all the time, the other not at all any more
        pools = {"rollouts": [member(second, second), member(min(second, 60), second)], "scorers": []}
        found = figures.snapshot(pools, {"rollouts": 3, "scorers": 0})
    assert found["rollout_tokens_per_s"] == pytest.approx(40)
    assert found["groups_per_s"] == pytest.approx(1)
    assert found["learner_tokens_per_s"] == pytest.approx(100)
    assert found["reward"] == 1.0
    assert found["response_tokens"] == 10
    assert found["idle_share"] == {"rollouts": 0.5, "learners": 0.5}
    assert found["queue_depth"] == {"rollouts": 3, "scorers": 0}


def test_what_did_not_happen_is_left_out_and_last_figures_stay(clock) -> None:
    figures = RollingMetrics()
    figures.set(sync_bytes=1e6, mfu=0.3)
    figures.set(mfu=0.41)
    clock[0] += 500
    found = figures.snapshot({"rollouts": [member(0.0, 0.0)]}, {"rollouts": 0})
    assert (found["sync_bytes"], found["mfu"]) == (1e6, 0.41)
    assert "reward" not in found
    assert found["idle_share"] == {"learners": 1.0}
    assert found["groups_per_s"] == 0
    assert throughput.describe(found) == (
        "in the last minute: 0 rollout tokens/s, 0.00 groups/s, 0 learner tokens/s, MFU 0.41, learners idle 100 %"
    )


def test_members_that_left_make_no_idle_share_below_zero(clock) -> None:
    figures = RollingMetrics()
    figures.snapshot({"scorers": [member(50.0, 60.0), member(50.0, 60.0)]}, {})
    clock[0] += throughput.WINDOW_S
    assert "scorers" not in figures.snapshot({"scorers": [member(55.0, 70.0)]}, {})["idle_share"]


def test_mfu_counts_what_is_trained() -> None:
    peak = flops.peak_flops("NVIDIA H100 80GB HBM3")
    assert peak == 989e12
    assert flops.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert flops.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert flops.peak_flops("NVIDIA RTX A1000") is None
    assert len({flops.peak_flops(f"NVIDIA {name}") for name in ("L40S", "L40", "L4", "A10G", "A10")}) == 5
    assert flops.peak_flops("Radeon") is flops.peak_flops(None) is None
    # all of 8 billion weights: 6 operations a weight and token
    assert flops.mfu(8000, 8_000_000_000, 8_000_000_000, peak) == pytest.approx(8000 * 48e9 / 989e12)
    assert flops.mfu(8000, 8_000_000_000, 0, peak) == pytest.approx(8000 * 32e9 / 989e12)
