"""What a weight sync accepts as the same weights."""

import math
from collections.abc import Callable

import pytest

from psyco_ray.config.resources import Sync
from psyco_ray.run.types import PreferencePair, Weights, WeightUpdateAck
from psyco_ray.training import weight_sync

PROBE = PreferencePair("pair-0", (1, 2), (9, 9, 3, 4, 5), (6,), context=(2, 0))


class Learner:
    """Holds weights under which the probe's responses have -30 and -1 nats."""

    def evaluate_pairs(self, pairs) -> list[tuple[float, float]]:
        return [(-30.0, -1.0)]

    def export(self, version: int, bucket_mb: int, deltas: bool) -> Weights:
        return Weights(version, "digest", (), 100)


class Pool:
    """Rollout actors that give the probe's chosen response certain log-probabilities."""

    idle: tuple = ()

    def __init__(self, *logprobs: float) -> None:
        self.logprobs = logprobs

    def broadcast(self, *_, version: int, check: Callable, deadline_s: float, proof: Callable) -> list[WeightUpdateAck]:
        ack = WeightUpdateAck(version, "digest", 100, 0.1)
        assert check(ack) is None
        return [ack] * len(self.logprobs)

    def verify(self, check: Callable) -> list[tuple[float, float]]:
        proofs = [(logprob, -1.0) for logprob in self.logprobs]
        problems = [problem for proof in proofs if (problem := check(proof)) is not None]
        if problems:
            raise RuntimeError(problems[0])
        return proofs

    def cannot_verify(self, error: BaseException) -> None:
        self.told = error


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -30.0 - 3 * 0.6])
def test_an_engine_whose_probe_is_far_off_or_not_finite_does_not_have_the_weights(value) -> None:
    with pytest.raises(RuntimeError, match=f"responses -30.000 and -1.000 nats and it gives {value:.3f} and"):
        weight_sync.push_weights(Learner(), Pool(-30.0, value), 3, PROBE, Sync(max_gap=0.5)).verify()
    near = weight_sync.push_weights(Learner(), Pool(-30.0, -30.3), 3, PROBE, Sync(max_gap=0.5))
    assert near.verify() == pytest.approx(0.1)


def test_the_pool_is_told_why_it_gets_no_values_of_the_learner(monkeypatch) -> None:
    pool, lost = Pool(-30.0), RuntimeError("the learner is lost")

    def fail(*_: object) -> None:
        raise lost

    monkeypatch.setattr(Learner, "evaluate_pairs", fail)
    pushed = weight_sync.push_weights(Learner(), pool, 3, PROBE, Sync())
    with pytest.raises(RuntimeError, match="the learner is lost"):
        pushed.verify()
    assert pool.told is lost


def test_the_probe_of_an_update_is_a_part_of_a_pair() -> None:
    pair = PreferencePair("pair-0", tuple(range(500)), tuple(range(600, 900)), (7, 8, 9), context=(100, 1))
    part = weight_sync._part(pair)
    assert part.prompt_ids == tuple(range(492, 500))
    assert (part.chosen_ids, part.rejected_ids) == (tuple(range(692, 716)), (7, 8, 9))
    assert part.trained_tokens == (16, 2), "what stands before the trained tokens is not counted"
    assert weight_sync._part(PROBE) == PROBE
