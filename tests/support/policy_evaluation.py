"""Jobs, pairs and verdicts for tests of policy evaluations."""

import json
import urllib.request
from pathlib import Path

from psyco_ray.config import evaluate_policy, job_file
from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.evaluate import speech_sets, verdicts
from psyco_ray.files import records
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run import shards

SAMPLE = [json.loads(line) for line in records.SAMPLE.read_text("utf-8").splitlines()]
ODD = "say <b>this</b> | & that"
ENGINE = {"cpus": 0.1, "max_model_len": 512, "max_num_seqs": 16, "kv_cache_gb": 0.1}
PAIRS = [
    {"key": f"mine:{number}", "speech": row["question"], "ours": row["chosen"], "theirs": row["rejected"]}
    for number, row in enumerate(SAMPLE[:60])
]


def counts(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return json.load(answer)


def local(url: str, model: str = "judge", **more) -> dict:
    return {"model": model, "base_url": url, "key_env": None, **more}


def settings(run: Path, **changes) -> dict:
    return {
        "run_dir": str(run),
        "speeches": {"split": "dev"},
        "policies": [{"name": "mine", "model": "x/y"}],
        "opponent": {"name": "other", "responses": "other.jsonl"},
        "judges": [{"name": "judge", "endpoint": local("http://127.0.0.1:1")}],
        "sampling": {"max_tokens": 24},
        "rollouts": ENGINE,
        **changes,
    }


def parsed(job_settings: dict) -> PolicyEvaluationJob:
    return job_file.parse(PolicyEvaluationJob, job_settings, "job")


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(seed: int = 0, **changes) -> list[dict]:
    return speech_sets.load_speeches(evaluate_policy.Speeches(**{"split": "dev", **changes}), seed)


def write_verdicts(root: Path, pairs: list[dict], **judging) -> verdicts.Verdicts:
    setup = verdicts.JudgeSetup(
        Endpoint(**local("http://127.0.0.1:1")), Judging(**judging), Outgoing(ScrubSent(), Privacy())
    )
    return verdicts.Verdicts(pairs, setup, root)


def questions(judged: verdicts.Verdicts) -> list:
    return [question for part in judged.calls.parts for question in judged.calls.stage.questions(part)]


def decided(root: Path, pairs: list[dict], chosen: dict[str, list[tuple[bool, bool]]], **judging) -> verdicts.Verdicts:
    """Verdicts as a judge would have left them: for each key, whether ours was first and whether it was chosen."""
    judged = write_verdicts(root, pairs, **judging)
    for part in judged.calls.parts:
        rows = [
            {"key": row["key"], "ours_first": first, "ours": ours, "rationale": f"because of {ODD}"}
            for row in shards.read(judged.calls.stage.pairs, part)
            for first, ours in chosen.get(row["key"], [])
        ]
        facts = dict.fromkeys(("units", "set_aside", "paid", "reused", "prompt_tokens", "completion_tokens"), 1)
        shards.write(judged.calls.stage.out, part, rows, verdicts.VERDICTS, facts=facts)
    return judged
