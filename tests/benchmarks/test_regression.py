"""`benchmarks/regression.py` on made-up benchmarks: what it runs, flags and refuses."""

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
    """A directory with a benchmark that prints what its arguments say."""
    (tmp_path / "benchmarks" / "baselines").mkdir(parents=True)
    (tmp_path / "benchmarks" / "made_up.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def baseline(checkout: Path, arguments: str, **ratios: tuple[float, str]) -> Path:
    found = {name: {"ratio": ratio, "better": better} for name, (ratio, better) in ratios.items()}
    file = checkout / "benchmarks" / "baselines" / "made_up.json"
    file.write_text(json.dumps({"arguments": arguments, "device": "none", "date": "2026-11-01", "ratios": found}))
    return file


@pytest.mark.parametrize(
    ("ratio", "better", "code"),
    [(2.0, "higher", 0), (1.71, "higher", 0), (1.69, "higher", 1), (2.3, "lower", 0), (2.4, "lower", 1)],
)
def test_a_ratio_that_fell_by_more_than_15_percent_is_flagged(checkout, capfd, ratio, better, code) -> None:
    baseline(checkout, f"speed {ratio}", speed=(2.0, better))
    assert main([]) == code
    lines = capfd.readouterr().out.splitlines()
    assert "warming up" in lines
    assert lines[-2] == f"speed: {ratio:g}, 2 before{', WORSE' if code else ''}"
    assert json.loads(lines[-1])["pass"] is not bool(code)


def test_todays_ratios_become_the_baseline_when_asked_for(checkout, capfd) -> None:
    file = baseline(checkout, "speed 0.5 size 4", speed=(2.0, "higher"), size=(4.0, "lower"))
    assert main(["made_up", "--update", "a laptop"]) == 1
    assert "speed: 0.5, 2 before, WORSE, its bar is not reached" in capfd.readouterr().out
    found = json.loads(file.read_text())
    assert (found["device"], found["ratios"]["speed"]) == ("a laptop", {"ratio": 0.5, "better": "higher"})
    assert main([]) == 0


def test_what_does_not_do_is_one_sentence(checkout, capfd) -> None:
    for arguments, ratios, names, sentence in (
        ("speed 1", {"speed": (1.0, "higher")}, ["other"], "no benchmark is named other; known are made_up"),
        (
            "speed 1",
            {"size": (1.0, "higher")},
            [],
            "made_up.py printed no ratio size, which baselines/made_up.json has",
        ),
        ("speed x", {"speed": (1.0, "higher")}, [], "made_up.py ended with exit code 1"),
        ("speed 1", {"speed": (1.0, "up")}, [], "ratios.speed.better: invalid value 'up'"),
    ):
        baseline(checkout, arguments, **ratios)
        assert main([*names]) == 2
        assert sentence in capfd.readouterr().err.splitlines()[-1]
    (checkout / "benchmarks" / "baselines" / "made_up.json").unlink()
    assert main([]) == 2
    assert "run benchmarks/regression.py in a checkout" in capfd.readouterr().err


def test_the_baselines_that_are_shipped_can_be_run() -> None:
    for script, found in regression.load(ROOT / "benchmarks").items():
        assert (ROOT / "benchmarks" / f"{script}.py").is_file()
        assert found.ratios
