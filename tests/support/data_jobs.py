"""Jobs of the data pipeline over the packaged speeches and servers of `fault_server.py`, and what they leave."""

import json
import time
import urllib.request
from pathlib import Path

import yaml

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.data.dataset import Dataset
from psyco_ray.data.splits import speech_id
from psyco_ray.files import records
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED


def write_overlapping_job(where: Path, urls: dict[str, str], count: int, **endpoint) -> Path:
    """A job whose labeller, members and judge are at `urls` by name, over the first packaged speeches.

    All members answer every speech if they are four. The speeches are collected already.
    """
    where.mkdir(parents=True, exist_ok=True)

    def api(name: str) -> dict:
        return {"model": name, "base_url": urls[name], "key_env": None, **endpoint}

    pool = where / "pool.yaml"
    members = sorted(urls.keys() - {"labeller", "judge"})
    pool.write_text(yaml.safe_dump([{"name": name, "api": api(name)} for name in members]))
    job = {
        "run_dir": str(where / "run"),
        "sources": [{"name": "mine", "path": str(records.SAMPLE)}],
        "topics": {"endpoint": api("labeller")},
        "respond": {"pool": str(pool), "max_tokens": 60},
        "rate": {"endpoint": api("judge")},
    }
    path = where / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    write_collected(path, count)
    return path


def write_collected(job: Path, count: int) -> None:
    """The outcome of `collect` with the first packaged speeches."""
    dataset = Dataset(job_file.load_as(DataJob, job))
    dataset.begin("collect", "sources", "collect", "scrub", crisis={"enabled": True})
    texts = [json.loads(line)["question"] for line in records.SAMPLE.read_text().splitlines()[:count]]
    rows = [
        {"speech_id": speech_id(text), "speech": text, "split": "train", "source": "mine", "source_row": number}
        for number, text in enumerate(texts, start=1)
    ]
    shards.write_by_id(dataset.root / "collect" / "speeches", rows, "speech_id", COLLECTED)
    sources = {"mine": {"rows": count, "kept": count}}
    counts = {"rows": count, "kept": count, "dropped": {}, "splits": {"train": count}, "crisis": {}, "scrubbed": {}}
    dataset.finish("collect", time.time(), sources=sources, **counts)
    dataset.close()


def asked(url: str, path: str = "counts"):
    """What a server says about itself."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/{path}") as answer:
        return json.load(answer)


def files_of(root: Path) -> dict[str, bytes]:
    """The tables that the stages made, by path."""
    stages = ("topics", "respond", "rate", "pairs")
    return {
        str(path.relative_to(root)): path.read_bytes() for name in stages for path in (root / name).rglob("*.parquet")
    }


def rows_of(directory: Path) -> list[dict]:
    """All rows of a stage."""
    return [row for part in shards.list_shards(directory) for row in shards.read(directory, part)]


def sample_speeches(length: int) -> list[str]:
    """The packaged speeches as texts of this many characters."""
    text = " ".join(json.loads(line)["question"] for line in records.SAMPLE.read_text().splitlines())
    return [text[start : start + length] for start in range(0, len(text) - length, length)]
