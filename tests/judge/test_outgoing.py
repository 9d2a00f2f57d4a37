"""Clients' words leave this machine scrubbed, or because the job says so."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from psyco_ray.cli.main import main
from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.errors import InputError
from psyco_ray.config.privacy import Privacy, ScrubSent, leaves
from psyco_ray.evaluate import verdicts
from psyco_ray.judge.call_run import CallsTogether
from psyco_ray.judge.outgoing import Outgoing

FAR = Endpoint(model="judge", base_url="https://api.example.com/v1", key_env=None)
HERE = Endpoint(model="judge", base_url="http://127.0.0.1:8400/v1", key_env=None)
SPEECH = "I cannot sleep since he left. Write to me at jane.roe@example.org please."


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("http://127.0.0.1:8400/v1", False),
        ("http://127.8.0.1/v1", False),
        ("http://localhost:1/v1", False),
        ("http://[::1]:8000/v1", False),
        ("https://api.openai.com/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://judge.default.svc.cluster.local/v1", True),
        ("http://localhost.example.com/v1", True),
        ("http://0.0.0.0/v1", True),
    ],
)
def test_only_loopback_is_this_machine(url, remote) -> None:
    assert leaves(url) == remote


def test_an_api_elsewhere_needs_scrubbing_or_consent() -> None:
    with pytest.raises(
        InputError, match=r"the judge x: api.example.com is outside this machine .* scrub.enabled: true, or"
    ):
        Outgoing(ScrubSent(), Privacy()).check({"the judge x": FAR})
    Outgoing(ScrubSent(), Privacy()).check({"the judge x": HERE})
    Outgoing(ScrubSent(enabled=True), Privacy()).check({"the judge x": FAR})
    Outgoing(ScrubSent(), Privacy(send_unscrubbed=True)).check({"the judge x": FAR})


def test_texts_are_scrubbed_on_their_way_out_alone() -> None:
    scrubbing = Outgoing(ScrubSent(enabled=True), Privacy())
    assert "jane.roe" not in scrubbing.text(FAR, SPEECH)
    assert "I cannot sleep since he left." in scrubbing.text(FAR, SPEECH)
    assert scrubbing.text(HERE, SPEECH) == SPEECH
    assert Outgoing(ScrubSent(), Privacy(send_unscrubbed=True)).text(FAR, SPEECH) == SPEECH


@pytest.mark.parametrize("enabled", [True, False])
def test_a_judge_elsewhere_gets_scrubbed_texts(enabled, tmp_path) -> None:
    terms = Outgoing(ScrubSent(enabled=enabled), Privacy(send_unscrubbed=not enabled))
    pair = verdicts.ResponsePair(key="one", speech=SPEECH, ours="Hello jane.roe@example.org", theirs="I hear you.")
    asked = verdicts.Verdicts([pair], verdicts.JudgeSetup(FAR, Judging(), terms), tmp_path)
    stage = asked.calls.stage
    sent = json.dumps([question.call.messages for part in asked.calls.parts for question in stage.questions(part)])
    assert ("jane.roe" in sent) != enabled
    other = verdicts.Verdicts([pair], verdicts.JudgeSetup(HERE, Judging(), terms), tmp_path)
    assert (other.calls.stage.out == stage.out) != enabled, "verdicts on other texts are other verdicts"


def written(directory: Path, **job: object) -> str:
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(directory / "run"), **job}))
    return str(path)


def test_no_command_sends_clients_words_by_default(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-no-use")
    speeches = tmp_path / "speeches.csv"
    speeches.write_text("text\n" + "".join(f"I cannot sleep, night {n} of many.\n" for n in range(30)))
    source = {"name": "mine", "path": str(speeches), "text": "text"}
    openai = {"model": "gpt-4o"}
    judge = {"name": "judge", "endpoint": openai}
    policy = {"policies": [{"name": "base", "model": "smollm2-135m"}], "opponent": judge, "judges": [judge]}
    jobs = {
        ("evaluate-policy",): policy | {"speeches": {"file": str(speeches)}},
        ("iterate",): {"evaluation": {"judge": openai}, "scorers": {"reward_model": "x"}},
        ("data", "build"): {"sources": [source], "collect": {"min_chars": 9}, "respond": {"allow_code": True}},
        ("evaluate-reward",): {
            "models": [{"name": "ranker", "endpoint": openai}],
            "tests": [{"name": "t", "pairs": "sample"}],
        },
    }
    for command, job in jobs.items():
        assert main([*command, written(tmp_path, **job)]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "api.openai.com is outside this machine and would get clients' words as they are" in message, command
        assert not list((tmp_path / "run").rglob("*.parquet")), "before anything is collected"


def test_the_log_says_to_whom_how_many_and_in_which_form(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    pairs = [
        verdicts.ResponsePair(key=str(n), speech=f"{SPEECH} {n}", ours="Hello", theirs="I hear you.") for n in range(9)
    ]
    terms = Outgoing(ScrubSent(enabled=True), Privacy())
    asked = verdicts.Verdicts(pairs, verdicts.JudgeSetup(FAR, Judging(order="strict"), terms), tmp_path)
    CallsTogether([asked.calls], None).announce()
    assert "sends about 9 speeches to api.example.com, scrubbed; about 18 calls to judge" in caplog.text
