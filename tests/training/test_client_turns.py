"""Turns of simulated clients over an API, and what is checked before a run starts."""

import shutil
from pathlib import Path

import pytest
from support.dialogue_pools import SPEECHES, Engines, dialogues, job, rows
from support.judging import get_json

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.simulate import Client, Simulate
from psyco_ray.config.training import Job, Prompts
from psyco_ray.run.ledger import Ledger
from psyco_ray.training import client_turns


def with_api(settings: Job, **changes: object) -> Job:
    """The job with its clients behind an API."""
    endpoint = Endpoint(**{"model": "talker", "key_env": None, "price_in": 1.0, "price_out": 1.0, **changes})
    simulate = settings.simulate.model_copy(update={"client": Client(endpoint=endpoint, max_cost=1.0)})
    return settings.model_copy(update={"simulate": simulate})


@pytest.mark.slow
def test_replies_of_an_api_are_paid_for_once_and_equal_after_a_resume(tmp_path, tiny_model, local_ray, serve) -> None:
    url = serve("--share=0.3", "--kinds=429,500", "--retry-after=ms:10")
    settings = with_api(job(tmp_path, tiny_model, turns=2, rank="dialogue"), base_url=url)
    found = []
    for _ in range(2):
        ledger = Ledger(settings, resume=True)
        made, _ = dialogues(settings, ledger, Engines("I hear"), Engines("nobody"))
        _, groups = made.samples(1, rows(settings), version=0)
        found.append({group.prompt.speech_id: group for group in groups})
        record = ledger.record("iteration-001/client-1")
        ledger.close()
        assert len(found[-1]) == len(SPEECHES)
        assert (record["client"], record["client_digest"], record["replies"]) == ("talker", None, 18)
    assert found[0] == found[1]
    assert get_json(url)["paid"] == 18


def test_a_client_that_cannot_be_asked_is_refused_before_anything_starts(tmp_path, tiny_model, monkeypatch) -> None:
    monkeypatch.delenv("CLIENT_KEY", raising=False)
    settings = job(tmp_path, tiny_model)
    client_turns.check(settings)
    client_turns.check(Job())
    with pytest.raises(InputError, match="CLIENT_KEY"):
        client_turns.check(with_api(settings, base_url="http://127.0.0.1:1/v1", key_env="CLIENT_KEY"))
    with pytest.raises(InputError, match=r"simulate\.client: api\.example\.com is outside this machine"):
        client_turns.check(with_api(settings, base_url="https://api.example.com/v1"))
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("client-few-shot: {user: Hello.}\n")
    with pytest.raises(InputError, match="client-few-shot do not contain"):
        client_turns.check(settings.model_copy(update={"prompts": Prompts(file=str(prompts))}))
    refusing = tmp_path / "refusing"
    assert isinstance(settings.simulate, Simulate)
    copy_with_template(tiny_model, refusing, "{{ raise_exception('no system') }}")
    client = settings.simulate.client.model_copy(update={"model": str(refusing)})
    simulate = settings.simulate.model_copy(update={"client": client})
    with pytest.raises(InputError, match="no system"):
        client_turns.check(settings.model_copy(update={"simulate": simulate}))


def copy_with_template(model: Path, to: Path, template: str) -> None:
    """A model with another chat template."""
    from psyco_ray.models import loading

    shutil.copytree(model, to)
    tokenizer = loading.load_tokenizer(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(to)
