"""`benchmarks/regression.py` on a fake benchmark: the runs, the flagged ratios, the errors."""

import json
from pathlib import Path

import pytest
from support.paths import ROOT

from benchmarks import regression
from benchmarks.regression import main

SCRIPT = """
import json, sys
print("warming up")
for name, ratio in zip(sys.argv[1::2], sys.argv[2::2]):
    print(json.dumps({"name": name, "ours": 1, "peer": 1, "ratio": float(ratio), "bar": 1, "pass": float(ratio) >= 1}))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A directory with a benchmark that prints the ratios in its arguments."""
    (tmp_path / "benchmarks" / "baselines").mkdir(parents=True)
    (tmp_path / "benchmarks" / "fake.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_baseline(checkout: Path, arguments: str, **ratios: tuple[float, str]) -> Path:
    entries = {name: {"ratio": ratio, "better": better} for name, (ratio, better) in ratios.items()}
    file = checkout / "benchmarks" / "baselines" / "fake.json"
    file.write_text(json.dumps({"arguments": arguments, "device": "none", "date": "2026-11-01", "ratios": entries}))
    return file


@pytest.mark.parametrize(
    ("ratio", "better", "code"),
    [(2.0, "higher", 0), (1.71, "higher", 0), (1.69, "higher", 1), (2.3, "lower", 0), (2.4, "lower", 1)],
)
def test_a_ratio_that_fell_by_more_than_15_percent_is_flagged(checkout, capfd, ratio, better, code) -> None:
    write_baseline(checkout, f"speed {ratio}", speed=(2.0, better))
    assert main([]) == code
    lines = capfd.readouterr().out.splitlines()
    assert "warming up" in lines
    assert lines[-2] == f"speed: {ratio:g}, 2 before{', WORSE' if code else ''}"
    assert json.loads(lines[-1])["pass"] is not bool(code)


def test_update_writes_todays_ratios_as_the_baseline(checkout, capfd) -> None:
    file = write_baseline(checkout, "speed 0.5 size 4", speed=(2.0, "higher"), size=(4.0, "lower"))
    assert main(["fake", "--update", "a laptop"]) == 1
    assert "speed: 0.5, 2 before, WORSE, its bar is not reached" in capfd.readouterr().out
    updated = json.loads(file.read_text())
    assert (updated["device"], updated["ratios"]["speed"]) == ("a laptop", {"ratio": 0.5, "better": "higher"})
    assert main([]) == 0


def test_an_error_is_one_sentence(checkout, capfd) -> None:
    for arguments, ratios, names, sentence in (
        ("speed 1", {"speed": (1.0, "higher")}, ["other"], "no benchmark is named other; known are fake"),
        (
            "speed 1",
            {"size": (1.0, "higher")},
            [],
            "fake.py printed no ratio size, which baselines/fake.json has",
        ),
        ("speed x", {"speed": (1.0, "higher")}, [], "fake.py ended with exit code 1"),
        ("speed 1", {"speed": (1.0, "up")}, [], "ratios.speed.better: invalid value 'up'"),
    ):
        write_baseline(checkout, arguments, **ratios)
        assert main([*names]) == 2
        assert sentence in capfd.readouterr().err.splitlines()[-1]
    (checkout / "benchmarks" / "baselines" / "fake.json").unlink()
    assert main([]) == 2
    assert "run benchmarks/regression.py in a checkout" in capfd.readouterr().err


def test_every_baseline_has_a_script() -> None:
    for script, baseline in regression.load(ROOT / "benchmarks").items():
        assert (ROOT / "benchmarks" / f"{script}.py").is_file()
        assert baseline.ratios
