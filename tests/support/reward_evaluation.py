"""Jobs and a benchmark for tests of reward model evaluations."""

from pathlib import Path

from psyco_ray.config import job_file
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.evaluate import reward_models
from psyco_ray.report import reward_models as report
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.progress import Progress


def settings(run: Path, models: list[dict], **changes) -> dict:
    return {
        "run_dir": str(run),
        "models": models,
        "tests": [{"name": "dev", "pairs": "sample", "split": "dev"}],
        "scorers": {"dtype": "float32", "actors": 2, "cpus": 0.1},
        **changes,
    }


def parsed(job_settings: dict) -> EvaluateRewardJob:
    return job_file.parse(EvaluateRewardJob, job_settings, "job")


def run(job_settings: dict) -> dict:
    directory = RunDirectory(job_settings["run_dir"])
    try:
        results = reward_models.evaluate(parsed(job_settings), directory, Progress())
        report.write_report(results, directory.root)
        return results
    finally:
        directory.close()


def local(url: str, model: str = "judge", **more) -> dict:
    return {"name": model, "endpoint": {"model": model, "base_url": url, "key_env": None, **more}}
