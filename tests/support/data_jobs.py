"""Jobs of the data pipeline over the packaged speeches and servers of `fault_server.py`, and what they leave."""

import json
import urllib.request
from pathlib import Path

import yaml

from psyco_ray.data import tables
from psyco_ray.run import shards


def write_raw(where: Path, count: int) -> Path:
    """The first packaged speeches as a raw source."""
    rows = [json.loads(line) for line in tables.SAMPLE.read_text().splitlines()[:count]]
    raw = where / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": row["question"], "topic": row["topic"]}) + "\n" for row in rows))
    return raw


def write_overlapping_job(where: Path, urls: dict[str, str], count: int, **endpoint) -> Path:
    """A job whose labeller, four members and judge are at `urls` by name; all members answer every speech."""
    where.mkdir(parents=True, exist_ok=True)

    def api(name: str) -> dict:
        return {"model": name, "base_url": urls[name], "key_env": None, **endpoint}

    pool = where / "pool.yaml"
    members = sorted(urls.keys() - {"labeller", "judge"})
    pool.write_text(yaml.safe_dump([{"name": name, "api": api(name)} for name in members]))
    job = {
        "run_dir": str(where / "run"),
        "sources": [{"name": "mine", "path": str(write_raw(where, count))}],
        "topics": {"endpoint": api("labeller")},
        "respond": {"pool": str(pool), "max_tokens": 60},
        "rate": {"endpoint": api("judge")},
    }
    path = where / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


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
    text = " ".join(json.loads(line)["question"] for line in tables.SAMPLE.read_text().splitlines())
    return [text[start : start + length] for start in range(0, len(text) - length, length)]
