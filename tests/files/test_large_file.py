"""Large files are read in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROW = {
    "id": "1",
    "text": "I cannot sleep since my mother moved in, and\nI do not know what to do – é. " * 8,
    "topic": "sleep",
}
MEASURE = """
import re, sys, time
from pathlib import Path
from psyco_ray.files.records import open_records

def peak():
    # of this program alone: ru_maxrss begins with that of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

small, large = sys.argv[1:]
assert sum(1 for _ in open_records(small, "speeches")) == 2
before, start = peak(), time.process_time()
rows = sum(record.problem is None for record in open_records(large, "speeches"))
print(rows, before, peak(), time.process_time() - start)
"""


def write(path: Path, rows: int) -> Path:
    cells = ",".join(f'"{cell}"' for cell in ROW.values()) + "\n"
    line = json.dumps(ROW)
    first, each, between, last = {
        ".csv": ("id,text,topic\n", cells, "", ""),
        ".jsonl": ("", line + "\n", "", ""),
        ".json": ('{"about": "rows", "rows": [', line, ",", "]}"),
    }[path.suffix]
    block = 1000
    with path.open("w") as file:
        file.write(first + each)
        for start in range(1, rows, block):
            file.write((between + each) * min(block, rows - start))
        file.write(last)
    return path


def measured(directory: Path, ending: str, size: int) -> tuple[int, int, float]:
    """Peak memory in MB before and after a file of some bytes is read, and the seconds of one core."""
    row_size = write(directory / f"one.{ending}", 1001).stat().st_size // 1001
    small, large = write(directory / f"small.{ending}", 2), write(directory / f"large.{ending}", size // row_size)
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    rows, before, after, seconds = done.stdout.split()
    assert int(rows) == size // row_size
    large.unlink()
    return int(before), int(after), float(seconds)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending) -> None:
    before, after, _ = measured(tmp_path, ending, 2**26)
    assert after - before < 32


@pytest.mark.long
def test_a_gigabyte_of_csv_takes_little_memory_and_time(tmp_path) -> None:
    _, after, seconds = measured(tmp_path, "csv", 10**9)
    print(f"1 GB of CSV: {after} MB at the most, {1000 / seconds:.0f} MB/s")
    assert after < 300
    assert seconds < 30
