"""The driver's memory while Ray Data prepares the speeches of a training run, at a hundredth of them and at all.

.venv/bin/python benchmarks/prompts.py [--speeches 1000000]

Each size runs in a process with its own Ray: the stage reads a Parquet file of synthetic speeches (about 220
characters of random words, a tenth of them held out), cleans, sorts, checks for leaks, renders and writes the table of
the run; then the rows of an iteration (6,400 speeches) are drawn and read as the rollout pool reads them. Peaks are
resident memory without shared pages, which belong to Ray's object store; the line before has them with shared pages.
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
from pathlib import Path
from typing import Any

import numpy as np
from data_scale import Peaks

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
os.environ.pop("RAY_ADDRESS", None)

BAR = 1.2
CHUNK = 5000  # speeches written together


def write(count: int, path: Path) -> None:
    """Writes speeches of random words: no two are alike."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            codes = draw.choice(letters, (size, 220))
            codes[:, 7::8] = ord(" ")
            writer.write_table(pa.table({"text": [row.tobytes().decode() for row in codes]}))


def measure(path: Path, run_dir: Path) -> dict[str, Any]:
    """Runs the stage and reads an iteration; peaks in MiB."""
    import ray

    from psyco_ray.config.training import Data, Job
    from psyco_ray.data.speech_rows import draw, train_and_dev
    from psyco_ray.data.speeches import prepare
    from psyco_ray.run.ledger import Ledger
    from psyco_ray.run.ray_session import connect
    from psyco_ray.run.schemas import SPEECHES

    connect(None)
    job = Job(run_dir=str(run_dir), data=Data(speeches=str(path)))
    ledger = Ledger(job, resume=False)
    peaks, start = Peaks(interval_s=0.05), time.perf_counter()
    train, dev = train_and_dev(ledger.table("speeches", SPEECHES, lambda: prepare(job)))
    prepared = time.perf_counter()
    count = min(job.speeches_per_iteration, len(train))
    drawn = draw(len(train), count, job.iterations, job.seed)[0]
    tokens = sum(len(row["prompt_ids"]) for row in train[drawn])
    read = time.perf_counter()
    peaks.stop()
    ledger.close()
    ray.shutdown()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "driver": peaks.driver,
        "with_shared": int(status["VmHWM"].split()[0]) / 1024,
        "speeches": len(train) + len(dev),
        "tokens": tokens,
        "seconds": prepared - start,
        "read_seconds": read - prepared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*map(Path, options.measure))))
        return
    results = []
    for count in (options.speeches // 100, options.speeches):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "speeches.parquet"
            write(count, file)
            command = [sys.executable, __file__, "--measure", str(file), f"{directory}/run"]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        assert result["speeches"] == count, f"{result['speeches']} of {count} speeches are in the table"
        print(
            f"{count} speeches in {result['seconds']:.0f} s ({count / result['seconds']:.0f}/s): driver "
            f"{result['driver']:.0f} MiB, {result['with_shared']:.0f} with shared pages; the rows of an iteration in "
            f"{result['read_seconds']:.1f} s",
            flush=True,
        )
        results.append(result["driver"])
    peer, ours = results
    line = {"name": "prompts", "ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(ours / peer, 3)}
    print(json.dumps({**line, "bar": BAR, "pass": ours <= BAR * peer}))


if __name__ == "__main__":
    main()
