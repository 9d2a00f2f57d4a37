"""Cleaning and near-duplicate detection of a million speeches: speed against a plain script, scaling, memory.

.venv/bin/python benchmarks/cleaning.py [--rows 1000000] [--peer-rows 20000]

The stage `collect` cleans a hundredth, a tenth and all of the rows, each in a process with its own Ray. The speeches
are synthetic: 300 to 900 characters of 5,000 words with frequencies as in a language (two speeches share 5 % of their
grams by chance, as real ones do); a tenth are near duplicates, one in 200 is an exact duplicate. Times are those of
the stage, with the start of Ray's workers but without `ray.init`, and of the script without its imports.

- `cleaning`: rows/s of all rows, against a script with pandas and datasketch in one process, run before and after;
  its faster run counts. The script cleans, folds and bounds as the stage does, trusts `MinHashLSH` with the same
  threshold and writes one Parquet file. The stage does more: ids, splits, the crisis screen, an exact comparison of
  every pair before it drops one, reasons for dropped rows, and shards.
- `cleaning growth`: rows/s of all rows over the best of the smaller sizes; 1 is linear. The start of Ray's workers
  takes seconds and affects the smallest size most. Other load also affects it; the line before has the ratio by
  CPU-seconds.
- `cleaning memory`: growth of the driver's peak from a hundredth to all rows, bytes per row. Peaks are anonymous
  resident memory, without shared memory (Ray's object store) and mapped files.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data_scale import Peaks, private_mib

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
os.environ.pop("RAY_ADDRESS", None)

SPEED, GROWTH, MEMORY = 1.0, 0.8, 1024  # bars: minimum, minimum, maximum (bytes per row)
WORDS = 5000
CHUNK = 1000  # rows generated together


def vocabulary(draw: np.random.Generator) -> np.ndarray:
    """Words of one to three syllables: plain, capitalized, and with a full stop."""
    onsets, vowels = (*"bdfghklmnprstw", "st", "tr", "ch", "sh"), ("a", "e", "i", "o", "u", "ea", "ou")
    syllables = [onset + vowel + end for onset in onsets for vowel in vowels for end in ("", *"nrstl")]
    words: dict[str, None] = {}
    while len(words) < WORDS:
        words["".join(draw.choice(syllables, size=draw.choice([1, 1, 2, 2, 3])))] = None
    return np.array([*words, *(word.capitalize() for word in words), *(f"{word}." for word in words)], dtype=object)


def synthetic_speeches(rows: int) -> Iterator[list[str]]:
    """Yields chunks of speeches: the same at every call, and the same first ones for more rows."""
    draw = np.random.default_rng(0)
    words = vocabulary(draw)
    shares = np.cumsum(1 / (np.arange(WORDS) + 11))
    earlier: list[str] = []
    for start in range(0, rows, CHUNK):
        lengths = draw.integers(300, 900, CHUNK)  # characters
        counts = lengths // 5  # words; some are cut off
        drawn = np.searchsorted(shares / shares[-1], draw.random(counts.sum()))
        first = draw.random(len(drawn)) < 1 / 12
        tokens = words[np.minimum(drawn, WORDS - 1) + WORDS * (first + 2 * (np.roll(first, -1) & ~first))].tolist()
        ends = np.cumsum(counts).tolist()
        texts = [
            " ".join(tokens[end - count : end])[:length]
            for end, count, length in zip(ends, counts.tolist(), lengths.tolist(), strict=True)
        ]
        kinds, originals = draw.random(CHUNK), draw.integers(0, max(1, len(earlier)), CHUNK)
        for n in np.flatnonzero((kinds < 0.105) & bool(earlier)).tolist():
            texts[n] = earlier[originals[n]]
            if kinds[n] < 0.1:
                changed = texts[n].split()
                for position in draw.integers(0, len(changed), draw.integers(1, 7)).tolist():
                    changed[position] = words[draw.integers(WORDS)]
                texts[n] = " ".join(changed)
        earlier = [*texts, *earlier][: 20 * CHUNK]
        yield [f"<p>{text}</p>" for text in texts[: rows - start]]


def write(rows: int, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for texts in synthetic_speeches(rows):
            writer.write_table(pa.table({"text": texts}))


class Watch(Peaks):
    """Peak private memory (MiB) and CPU-seconds of this process and its children, including Ray's."""

    def __init__(self) -> None:
        self.worker, self.cpu = 0.0, dict[int, float]()
        super().__init__()

    def _watch(self) -> None:
        import psutil

        while not self._stop.wait(0.2):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    used = process.cpu_times()
                except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    continue
                self.cpu[process.pid] = used.user + used.system
                if process.pid == os.getpid():
                    self.driver = max(self.driver, private_mib(process.pid))
                elif "Name:\tray::" in status:
                    self.worker = max(self.worker, private_mib(process.pid))


def ours(path: Path, out: Path) -> dict[str, Any]:
    import ray

    from psyco_ray.config.data import DataJob, Source
    from psyco_ray.data.collect import collect
    from psyco_ray.run.ray_session import connect

    connect(None)
    cpu_before, start = time.process_time(), time.perf_counter()
    watch = Watch()
    facts = collect(DataJob(sources=[Source(name="synthetic", path=str(path))]), out)
    wall = time.perf_counter() - start
    watch.stop()
    ray.shutdown()
    driver = time.process_time() - cpu_before
    others = sum(used for pid, used in watch.cpu.items() if pid != os.getpid())
    cpu = {"driver_cpu": driver, "others_cpu": others}
    return {**cpu, "seconds": wall, "driver": watch.driver, "worker": watch.worker, "dropped": facts["dropped"]}


def peer(path: Path, out: Path) -> dict[str, Any]:
    import pandas as pd
    from datasketch import MinHash, MinHashLSH

    from psyco_ray.data.clean import clean
    from psyco_ray.data.duplicates import PERMUTATIONS, grams
    from psyco_ray.data.splits import fold

    watch, start = Watch(), time.perf_counter()
    frame = pd.read_parquet(path)
    frame["speech"] = frame["text"].map(clean)
    frame = frame[frame["speech"].str.len().between(100, 1000)]
    unique = frame[~frame["speech"].map(fold).duplicated()]
    index, kept = MinHashLSH(threshold=0.6, num_perm=PERMUTATIONS), []
    encoded = ([gram.encode() for gram in grams(text)] for text in unique["speech"])
    for n, signature in enumerate(MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=1)):
        if not index.query(signature):
            index.insert(n, signature)
            kept.append(n)
    unique.iloc[kept][["speech"]].to_parquet(out)
    wall = time.perf_counter() - start
    watch.stop()
    dropped = {"exact duplicate": len(frame) - len(unique), "near duplicate": len(unique) - len(kept)}
    return {"seconds": wall, "driver": watch.driver, "dropped": dropped}


def run_apart(side: str, rows: int, directory: Path) -> dict[str, Any]:
    """Runs a side on this many rows in a process of its own and returns its measurements."""
    path = directory / f"{rows}.parquet"
    if not path.exists():
        write(rows, path)
    command = [sys.executable, __file__, "--side", side, str(path), str(directory / side)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    cpu = f"CPU-seconds {result['driver_cpu']:.0f} + {result['others_cpu']:.0f}, " if side == "ours" else ""
    worker = f", worker {result['worker']:.0f} MiB" if side == "ours" else ""
    print(
        f"{side}: {rows} rows in {result['seconds']:.1f} s ({rows / result['seconds']:.0f}/s), {cpu}"
        f"driver {result['driver']:.0f} MiB{worker}, dropped {result['dropped']}",
        flush=True,
    )
    return result | {
        "rate": rows / result["seconds"],
        "cpu": (result.get("driver_cpu", 0) + result.get("others_cpu", 0)) / rows,
    }


def report(name: str, ours: float, peer: float, ratio: float, bar: float, passed: bool) -> None:
    line = {"name": name, "ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(ratio, 3), "bar": bar}
    print(json.dumps({**line, "pass": passed}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=20_000)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "FILE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, path, out = options.side
        print(json.dumps({"ours": ours, "peer": peer}[side](Path(path), Path(out))))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sizes = [options.rows // 100, options.rows // 10, options.rows]
        before = run_apart("peer", options.peer_rows, directory)
        small, middle, large = (run_apart("ours", rows, directory) for rows in sizes)
        after = run_apart("peer", options.peer_rows, directory)
    script = max(before["rate"], after["rate"])
    ratio = large["rate"] / script
    report("cleaning", large["rate"], script, ratio, SPEED, ratio >= SPEED)
    best = max(small["rate"], middle["rate"])
    growth = large["rate"] / best
    by_cpu = min(small["cpu"], middle["cpu"]) / large["cpu"]
    print(f"CPU-seconds per row, the best of the smaller sizes over all rows: {by_cpu:.2f}")
    report("cleaning growth", large["rate"], best, growth, GROWTH, growth >= GROWTH)
    bytes_per_row = (large["driver"] - small["driver"]) * 2**20 / (sizes[-1] - sizes[0])
    report("cleaning memory", bytes_per_row, MEMORY, bytes_per_row / MEMORY, 1.0, bytes_per_row <= MEMORY)


if __name__ == "__main__":
    main()
