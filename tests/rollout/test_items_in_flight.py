"""How many work items an engine has at a time, so that it is full until the last ones."""

import pytest

from psyco_ray.config.resources import Rollouts
from psyco_ray.pool import placement
from psyco_ray.rollout.actor import actor_options, items_in_flight


@pytest.mark.parametrize(
    ("settings", "responses", "items"),
    [
        ({}, 8, 1),
        ({"gpus": 1, "feed": "items"}, 8, 1),
        ({"gpus": 1}, 8, 4),  # of 32 speeches with 8 responses each; 256 sequences are decoded together
        ({"gpus": 0.4}, 1, 32),
        ({"gpus": 1}, 5, 7),
        ({"gpus": 1, "speeches_per_item": 64}, 64, 2),  # one is sampled while the next waits
        ({"gpus": 1, "speeches_per_item": 1}, 2, 64),
        ({"feed": "continuous"}, 8, 4),
    ],
)
def test_an_engine_has_four_times_the_sequences_that_it_decodes(settings: dict, responses: int, items: int) -> None:
    assert items_in_flight(Rollouts(**settings), responses) == items


def test_an_engine_that_is_fed_continuously_takes_calls_beside_each_other(monkeypatch) -> None:
    monkeypatch.setattr(placement, "label_selector", lambda _: {})  # it asks Ray for the nodes' labels
    on_gpu, on_cpu = actor_options(Rollouts(gpus=1)), actor_options(Rollouts())
    assert (on_gpu["max_concurrency"], "max_concurrency" in on_cpu) == (64, False)
    assert Rollouts(gpus=1).feed == "continuous"
    assert Rollouts().feed == "items"
