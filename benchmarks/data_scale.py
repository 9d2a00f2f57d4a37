"""The rating stage at the paper's size: growth of its memory from a tenth of the speeches, and exact counts.

.venv/bin/python benchmarks/data_scale.py [--speeches 26483]

Every speech has four responses and seven calls to a server that answers at once. Each size runs in a process with its
own Ray. Peaks are resident memory without shared pages (Ray's object store) of the driver and of the larger worker;
`ratio` is the larger of the two growths.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

BAR = 1.3
SERVER = Path(__file__).parent.parent / "tests" / "support" / "fault_server.py"


def write_dataset(root: Path, speeches: int) -> None:
    """Writes a dataset whose responses have no ratings yet."""
    from psyco_ray.data.splits import speech_id
    from psyco_ray.run import shards
    from psyco_ray.run.schemas import COLLECTED, RESPONSES

    by_part: dict[str, list[dict]] = {}
    for number in range(speeches):
        text = f"Speech {number}: I have been lying awake since my brother moved out. " * 5
        key = speech_id(text)
        row = {"speech_id": key, "speech": text, "split": "train", "source": "synthetic", "source_row": number + 1}
        by_part.setdefault(key[: shards.digits(speeches)], []).append(row)
    for part, rows in by_part.items():
        answers = [
            {
                "speech_id": row["speech_id"],
                "model": f"model-{index}",
                "response": f"{index}: That sounds like a long night. What goes through your mind then? " * 8,
                "finished": True,
            }
            for row in rows
            for index in range(4)
        ]
        shards.write(root / "collect" / "speeches", part, rows, COLLECTED)
        shards.write(root / "respond", part, answers, RESPONSES)


def private_mib(pid: int) -> float:
    """Resident memory of a process without shared pages, MiB; 0 if it has ended."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(fields.get("RssAnon", "0 kB").split()[0]) / 1024


class Peaks:
    """Records the peak memory of the driver and the callers until `stop`."""

    def __init__(self, interval_s: float = 0.5) -> None:
        self.driver = self.stage = 0.0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.driver = max(self.driver, private_mib(os.getpid()))
            for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    title = cmdline.read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if title.startswith(b"ray::") and (b"Caller" in title or b"Questions" in title):
                    self.stage = max(self.stage, private_mib(int(cmdline.parent.name)))


def run_stage(speeches: int, base_url: str, root: Path) -> None:
    """Runs the stage on a synthetic dataset and prints its measurements."""
    import ray

    from psyco_ray.config.data import DataJob
    from psyco_ray.config.endpoint import Endpoint
    from psyco_ray.config.job_file import parse
    from psyco_ray.data import build
    from psyco_ray.data.dataset import Dataset
    from psyco_ray.run.progress import Progress

    write_dataset(root, speeches)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    endpoint = Endpoint(model="counting", base_url=base_url, key_env=None)
    job = parse(
        DataJob,
        {
            "run_dir": str(root),
            "sources": [{"name": "synthetic", "path": "-"}],
            "rate": {"endpoint": endpoint.model_dump()},
        },
        "data_scale",
    )
    dataset = Dataset(job)
    dataset.finish("collect", time.time())
    dataset.finish("respond", time.time())
    dataset.write_json("respond/settings.json", {})
    peaks, start = Peaks(), time.time()
    facts = build.rate(dataset, Progress())
    peaks.stop()
    dataset.close()
    ray.shutdown()
    measured = {"driver": peaks.driver, "stage": peaks.stage, "paid": facts["paid"], "seconds": time.time() - start}
    print(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=26483)
    parser.add_argument("--run-stage", nargs=2, metavar=("URL", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_stage:
        run_stage(options.speeches, options.run_stage[0], Path(options.run_stage[1]))
        return
    results = []
    for speeches in (options.speeches // 10, options.speeches):
        server = subprocess.Popen([sys.executable, str(SERVER), "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline().split()[-1])}"
            with tempfile.TemporaryDirectory() as directory:
                command = [sys.executable, __file__, "--speeches", str(speeches), "--run-stage", f"{url}/v1", directory]
                result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            with urllib.request.urlopen(f"{url}/counts") as answer:
                served = json.load(answer)["served"]
        finally:
            server.terminate()
        assert result["paid"] == served == 7 * speeches, f"{speeches} speeches: {result['paid']} paid, {served} served"
        print(
            f"{speeches} speeches: {served} calls in {result['seconds']:.0f} s ({served / result['seconds']:.0f}/s), "
            f"driver {result['driver']:.0f} MiB, stage {result['stage']:.0f} MiB"
        )
        results.append(result)
    growth = max(results[1][process] / results[0][process] for process in ("driver", "stage"))
    ours, peer = (round(max(result["driver"], result["stage"]), 1) for result in reversed(results))
    line = {"name": "data_scale", "ours": ours, "peer": peer, "ratio": round(growth, 3), "bar": BAR}
    print(json.dumps({**line, "pass": growth <= BAR}))


if __name__ == "__main__":
    main()
