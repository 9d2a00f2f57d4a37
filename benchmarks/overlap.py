"""The stages of `data build` that call models: all at once, against the slowest of them alone.

.venv/bin/python benchmarks/overlap.py [--speeches 120]

A labeller, four members of a pool and a judge answer after a second each, with so many calls in flight that every stage
takes about half a second per speech. `ours` is the time of the build from collected speeches to pairs, `peer` that of
its slowest stage, each run alone on the same speeches.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray
import yaml

from psyco_ray.config.data import DataJob
from psyco_ray.config.job_file import parse
from psyco_ray.data import build
from psyco_ray.data.dataset import Dataset
from psyco_ray.files import records
from psyco_ray.run import ray_session
from psyco_ray.run.progress import Progress

BAR = 1.25
LATENCY_S = 1.0
MEMBERS = ("member-0", "member-1", "member-2", "member-3")
IN_FLIGHT = {"labeller": 2, **dict.fromkeys(MEMBERS, 2), "judge": 14}  # every stage: half a second per speech
SERVER = Path(__file__).parent.parent / "tests" / "support" / "fault_server.py"


def job_of(root: Path, name: str, urls: dict[str, str], speeches: int) -> DataJob:
    """A job with a run directory of its own over the first packaged speeches."""
    raw, pool = root / "raw.jsonl", root / "pool.yaml"
    rows = [json.loads(line) for line in records.SAMPLE.read_text().splitlines()[:speeches]]
    raw.write_text("".join(json.dumps({"text": row["question"]}) + "\n" for row in rows))

    def api(model: str) -> dict[str, Any]:
        return {"model": model, "base_url": urls[model], "key_env": None, "concurrency": IN_FLIGHT[model]}

    pool.write_text(yaml.safe_dump([{"name": member, "api": api(member)} for member in MEMBERS]))
    settings = {
        "run_dir": str(root / name),
        "sources": [{"name": "packaged", "path": str(raw)}],
        "topics": {"endpoint": api("labeller")},
        "respond": {"pool": str(pool), "max_tokens": 60},
        "rate": {"endpoint": api("judge")},
    }
    return parse(DataJob, settings, "overlap")


def seconds_of(work: Callable[[Dataset, Progress], object], dataset: Dataset) -> float:
    """Seconds that a stage, or the build, takes."""
    began = time.perf_counter()
    work(dataset, Progress())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=120)
    options = parser.parse_args()
    servers = {
        name: subprocess.Popen(
            [sys.executable, str(SERVER), f"--latency={LATENCY_S}"], stdout=subprocess.PIPE, text=True
        )
        for name in IN_FLIGHT
    }
    try:
        urls = {}
        for name, server in servers.items():
            assert server.stdout is not None
            urls[name] = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        ray_session.connect(None)
        with tempfile.TemporaryDirectory() as directory:
            alone, together = (
                Dataset(job_of(Path(directory), name, urls, options.speeches)) for name in ("alone", "together")
            )
            for dataset in (alone, together):
                build.collect(dataset, Progress())
            stages = {name: seconds_of(build.STAGES[name], alone) for name in ("topics", "respond", "rate")}
            ours = seconds_of(build.build, together)
            for dataset in (alone, together):
                dataset.close()
    finally:
        ray.shutdown()
        for server in servers.values():
            server.kill()
    peer = max(stages.values())
    print(f"alone: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in stages.items())}; together: {ours:.1f} s")
    line = {"name": "overlap", "ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(ours / peer, 3)}
    print(json.dumps({**line, "bar": BAR, "pass": ours <= BAR * peer}))


if __name__ == "__main__":
    main()
