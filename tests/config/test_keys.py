"""Keys in settings are refused before anything is written or quoted."""

from pathlib import Path

import pytest

from psyco_ray.cli.main import main
from psyco_ray.config import job_file, keys
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.config.training import Job

SECRET = "s3cr3tS3samex9Qz4"


@pytest.mark.parametrize(
    "text",
    [
        f"sk-proj-{SECRET}",
        f"sk-{SECRET}",
        f"hf_{SECRET}",
        f"https://me:{SECRET}@host/v1",
        f"https://{SECRET}@host/v1",
        f"s3://AKIA:s/{SECRET}@bucket/run",
        f"https://host/v1?sas={SECRET}",
        f"gs://bucket/run?credential={SECRET}",
        f"https://host/v1?X-Amz-Signature={SECRET}",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (Job, "run_dir={}"),
        (Job, "mixture=[{{pairs: '{}'}}]"),
        (Job, "template_options={{a: '{}'}}"),
        (Job, "evaluation.judge.base_url={}"),
        (DataJob, "rate.endpoint.base_url={}"),
        (DataJob, "sources=[{{name: a, path: '{}'}}]"),
        (PolicyEvaluationJob, "judges=[{{name: a, endpoint: {{base_url: '{}'}}}}]"),
        (EvaluateRewardJob, "run_dir={}"),
    ],
)
def test_a_key_in_a_setting_of_any_job_is_refused_and_not_shown(kind, key, text) -> None:
    with pytest.raises(InputError, match="has a key in it; take it out") as refused:
        job_file.load_as(kind, None, [key.format(text)])
    assert SECRET not in str(refused.value)
    assert key.partition("=")[0] in str(refused.value)


@pytest.mark.parametrize(
    "pasted", [f"sk-proj-{SECRET}", f"gsk_{SECRET}", "abcdef0123456789", "AKIAIOSFODNN7EXAMPLE", "my key"]
)
def test_a_pasted_key_in_key_env_is_recognised_and_not_shown(pasted) -> None:
    with pytest.raises(InputError, match=r"key_env: is no name of an environment variable|has a key in it") as refused:
        job_file.load_as(
            DataJob, None, ["sources=[{name: a, path: a.csv}]", f"rate.endpoint={{model: m, key_env: '{pasted}'}}"]
        )
    assert pasted not in str(refused.value)


def test_a_job_with_a_key_is_never_written() -> None:
    job = Job(model=f"https://{SECRET}@host/model")
    with pytest.raises(InputError, match=r"model: .* has a key in it"):
        job_file.dump(job)


def test_a_key_in_a_broken_job_file_is_not_shown(tmp_path: Path, capsys) -> None:
    (tmp_path / "job.yaml").write_text(f"run_dir: [sk-proj-{SECRET}\nmodel: x: y\n")
    assert main(["plan", str(tmp_path / "job.yaml")]) == 2
    assert SECRET not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "hdfs://me@host/run",
        "abfs://container@account.dfs.core.windows.net/run",
        "sk-learn-a-very-long-model-name",
        "models/hf-internal-testing-long-name",
        "https://host/v1?keyboard=1",
        "http://127.0.0.1:8000/v1",
        "HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "Give the client your key insight: a token of trust, e.g. at https://example.org/help",
    ],
)
def test_what_is_no_key_passes(text) -> None:
    assert not keys.holds_key(text)
