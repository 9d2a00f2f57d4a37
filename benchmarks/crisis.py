"""The crisis screen: what it flags of the packaged phrases, by language and kind, and its speed on one core.

.venv/bin/python benchmarks/crisis.py [FILE...]

Files hold one phrase per line that should be flagged, such as a list of your own. The speeches of the speed test are
English, 300 characters on average. The last line is JSON: recall and false alarms on the half of the phrases that only
measures, on the other one and on those written after the lexicons, speeches/s, and the recall on the files.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from psyco_ray.screening import crisis, measured

RECALL, FALSE_ALARMS, SPEED = 0.9, 0.1, 2000  # bars: minimum, maximum, minimum (speeches/s)
_SAMPLE = Path(crisis.__file__).parents[1] / "data" / "sample" / "pairs.jsonl"


def speed() -> float:
    """Screened speeches per second of CPU time; the packaged speeches, after the lexicon is loaded."""
    speeches = list(dict.fromkeys(json.loads(line)["question"] for line in _SAMPLE.read_text("utf-8").splitlines()))
    for speech in speeches:
        crisis.screen(speech)
    began = time.process_time()
    for _ in range(5):
        for speech in speeches:
            crisis.screen(speech)
    return 5 * len(speeches) / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    figures = measured.measure()
    kinds = [*crisis.KINDS, measured.BENIGN]
    print(f"{'flagged of':18}" + "".join(f"{kind:>18}" for kind in kinds))
    for language, cells in figures["languages"].items():
        print(f"{language:18}" + "".join(f"{f'{cells[kind][0]} / {cells[kind][1]}':>18}" for kind in kinds))
    recalls = {}
    for file in files:
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        recalls[file.name] = sum(bool(crisis.signs(line)) for line in lines) / len(lines)
    kept, per_second = figures["kept"], speed()
    passed = kept["recall"] >= RECALL and kept["false_alarms"] <= FALSE_ALARMS and per_second >= SPEED
    line = {"name": "crisis", "ours": round(per_second), "bar": SPEED, "pass": passed, **kept}
    print(json.dumps(line | {part: figures[part] for part in ("dev", *measured.WRITTEN_LATER)} | {"files": recalls}))


if __name__ == "__main__":
    main()
