"""The rating stage at the paper's size: does its memory stay where it was at a tenth, and are its counts exact?

.venv/bin/python benchmarks/data_scale.py [--speeches 26483]

Every speech has four responses and seven calls to a server that answers at once. Each size runs in a process of its
own with an own Ray; peaks are resident memory without shared pages (Ray's object store), of the driver and of the
calling actor. `ratio` is the larger of the two growths.
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
SERVER = Path(__file__).parent.parent / "tests" / "fault_server.py"


def made_up(root: Path, speeches: int) -> None:
    """A dataset whose responses wait for their ratings."""
    from psyco_ray.data.splits import speech_id
    from psyco_ray.run import shards
    from psyco_ray.run.schemas import COLLECTED, RESPONSES

    by_part: dict[str, list[dict]] = {}
    for number in range(speeches):
        text = f"Speech {number}: I have been lying awake since my brother moved out. " * 5
        key = speech_id(text)
        row = {"speech_id": key, "speech": text, "split": "train", "source": "made up", "source_row": number + 1}
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
    """Resident memory of a process without shared pages, MiB; 0 where it has gone."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(fields.get("RssAnon", "0 kB").split()[0]) / 1024


class Peaks:
    """Watches the driver and the callers until told to stop."""

    def __init__(self) -> None:
        self.driver = self.stage = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.driver = max(self.driver, private_mib(os.getpid()))
            for found in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    title = found.read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if title.startswith(b"ray::") and b"Caller" in title:
                    self.stage = max(self.stage, private_mib(int(found.parent.name)))


def one_size(speeches: int, base_url: str, root: Path) -> None:
    """Run the stage over a made-up dataset and print what was seen."""
    import ray

    from psyco_ray.config.data import DataJob
    from psyco_ray.config.endpoint import Endpoint
    from psyco_ray.config.job_file import parse
    from psyco_ray.data import build
    from psyco_ray.data.dataset import Dataset
    from psyco_ray.run.progress import Progress

    made_up(root, speeches)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    endpoint = Endpoint(model="counting", base_url=base_url, key_env=None)
    job = parse(
        DataJob,
        {
            "run_dir": str(root),
            "sources": [{"name": "made up", "path": "-"}],
            "rate": {"endpoint": endpoint.model_dump()},
        },
        "data_scale",
    )
    dataset = Dataset(job)
    dataset.finish("collect", time.time())
    dataset.finish("respond", time.time())
    dataset.write_json("respond/settings.json", {})
    peaks, began = Peaks(), time.time()
    facts = build.rate(dataset, Progress())
    peaks.stop()
    dataset.close()
    ray.shutdown()
    seen = {"driver": peaks.driver, "stage": peaks.stage, "paid": facts["paid"], "seconds": time.time() - began}
    print(json.dumps(seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=26483)
    parser.add_argument("--one-size", nargs=2, metavar=("URL", "DIRECTORY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_size:
        one_size(given.speeches, given.one_size[0], Path(given.one_size[1]))
        return
    seen = []
    for speeches in (given.speeches // 10, given.speeches):
        server = subprocess.Popen([sys.executable, str(SERVER), "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline().split()[-1])}"
            with tempfile.TemporaryDirectory() as directory:
                command = [sys.executable, __file__, "--speeches", str(speeches), "--one-size", f"{url}/v1", directory]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            with urllib.request.urlopen(f"{url}/counts") as answer:
                served = json.load(answer)["served"]
        finally:
            server.terminate()
        assert found["paid"] == served == 7 * speeches, f"{speeches} speeches: {found['paid']} paid, {served} served"
        print(
            f"{speeches} speeches: {served} calls in {found['seconds']:.0f} s ({served / found['seconds']:.0f}/s), "
            f"driver {found['driver']:.0f} MiB, stage {found['stage']:.0f} MiB"
        )
        seen.append(found)
    growth = max(seen[1][who] / seen[0][who] for who in ("driver", "stage"))
    ours, peer = (round(max(found["driver"], found["stage"]), 1) for found in reversed(seen))
    line = {"name": "data_scale", "ours": ours, "peer": peer, "ratio": round(growth, 3), "bar": BAR}
    print(json.dumps({**line, "pass": growth <= BAR}))


if __name__ == "__main__":
    main()
