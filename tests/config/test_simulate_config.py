"""The section `simulate`: what it refuses."""

from typing import Any

import pytest

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job

API = {"model": "m", "base_url": "http://127.0.0.1:1/v1", "key_env": None}


def parse(simulate: dict[str, Any]) -> Job:
    return job_file.parse(Job, {"simulate": simulate}, "job")


@pytest.mark.parametrize(
    ("simulate", "message"),
    [
        ({"client": {}}, "either client.model or client.endpoint"),
        ({"client": {"model": "m", "endpoint": API}}, "either client.model or client.endpoint"),
        ({"client": {"model": "m", "max_tokens": 2048}}, "client.max_tokens 2048 leaves no room"),
        ({"client": {"model": "m", "max_cost": 1}}, "client.max_cost is of an endpoint's calls"),
        ({"client": {"endpoint": {**API, "via": "batch"}}}, "a dialogue waits for each reply"),
        ({"client": {"endpoint": API, "max_cost": 1}}, "needs price_in and price_out"),
        ({"client": {"endpoint": API, "template_options": {"a": True}}}, "leave client.template_options out"),
        ({"client": {"model": "m"}, "branch_turn": 3}, "branch_turn 3 is after the last of turns 2"),
        ({"client": {"model": "m"}, "branch_turn": 2, "rank": "dialogue"}, "raise turns, or set rank turn"),
        ({"client": {"model": "m"}, "turns": 1}, "simulate.turns"),
    ],
)
def test_what_cannot_be_simulated_is_refused(simulate: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(simulate)


@pytest.mark.parametrize("ranking", [{"branch_turn": 2}, {"rank": "dialogue"}, {"reduce": "last"}])
def test_what_ranks_sampled_responses_is_refused_with_pairs_of_a_file(ranking: dict[str, Any]) -> None:
    simulate = {"client": {"model": "m"}, "turns": 3}
    assert job_file.parse(Job, {"pairs_from": "file", "simulate": simulate}, "job").simulate is not None
    job_file.parse(Job, {"pairs_from": "base", "simulate": simulate | ranking}, "job")
    with pytest.raises(InputError, match=f"simulate.{next(iter(ranking))} .* pairs_from file"):
        job_file.parse(Job, {"pairs_from": "file", "simulate": simulate | ranking}, "job")


def test_a_client_is_named_by_its_model() -> None:
    engines, api = parse({"client": {"model": "smollm2-135m"}}), parse({"client": {"endpoint": API}})
    assert engines.simulate is not None
    assert api.simulate is not None
    assert (engines.simulate.client.name, api.simulate.client.name) == ("smollm2-135m", "m")
    assert Job().simulate is None
