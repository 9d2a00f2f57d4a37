"""The checkpoints that an evaluation's policies stand for."""

import json
import re
from pathlib import Path

import pytest
from support.policy_evaluation import ENGINE, parsed, settings

from psyco_ray.config.errors import InputError
from psyco_ray.evaluate import checkpoints
from psyco_ray.evaluate.checkpoints import Checkpoint

CHOSEN = {"by": "mean reward by the held-out reward model on the held-out speeches", "value": 1.0}


@pytest.fixture
def run_dir(tmp_path, tiny_model) -> Path:
    """A finished run of three iterations of five steps that chose the second; it was moved since."""
    run = tmp_path / "run"
    for iteration in (1, 2, 3):
        (run / f"iteration-{iteration:03d}").mkdir(parents=True)
        (run / f"iteration-{iteration:03d}" / "checkpoint").symlink_to(tiny_model)
        (run / f"iteration-{iteration:03d}" / "train.json").write_text(json.dumps({"steps": [{"loss": 0.7}] * 5}))
    (run / "job.yaml").write_text("{model: smollm2-135m, seed: 0, iterations: 3, run_dir: elsewhere/run}\n")
    choose(run, 2)
    return run


def choose(run: Path, iteration: int) -> None:
    facts = {"best": {"iteration": iteration, "steps": 5 * iteration, **CHOSEN}, "iterations": 3}
    (run / "summary.json").write_text(json.dumps(facts))


def test_a_run_stands_for_its_best_checkpoint(run_dir, tiny_model) -> None:
    best = Checkpoint(str(run_dir / "iteration-002" / "checkpoint"), str(run_dir), iteration=2, steps=10)
    assert checkpoints.find(str(run_dir)) == best
    assert checkpoints.find(str(tiny_model)) == Checkpoint(str(tiny_model))
    assert checkpoints.find("smollm2-135m") == Checkpoint("smollm2-135m")


def test_a_run_that_chose_its_base_model_is_refused_unless_the_job_names_it(run_dir) -> None:
    choose(run_dir, 0)
    with pytest.raises(
        InputError, match=r"has chosen its base model, .*name the base model smollm2-135m itself"
    ) as caught:
        checkpoints.find(str(run_dir))
    assert "\n" not in str(caught.value)
    assert checkpoints.find(str(run_dir), 0) == Checkpoint("smollm2-135m", str(run_dir), iteration=0, steps=0)
    last = str(run_dir / "iteration-003" / "checkpoint")
    assert checkpoints.find(str(run_dir), 3) == Checkpoint(last, str(run_dir), iteration=3, steps=15)


def test_all_checkpoints_of_a_run_are_policies(run_dir) -> None:
    entries = [
        {"name": "run", "model": str(run_dir), "iteration": "all"},
        {"name": "base", "model": "smollm2-135m"},
        {"name": "last", "model": str(run_dir), "iteration": 3},
    ]
    job = parsed(settings(run_dir / "evaluation", policies=entries))
    found = checkpoints.candidates(job.policies)
    assert [(c.name, c.checkpoint.iteration, c.checkpoint.steps, c.series) for c in found] == [
        *((f"run iteration {k}", k, 5 * k, "run") for k in range(4)),
        ("base", None, None, None),
        ("last", 3, 15, None),
    ]
    entries[1]["name"] = "run iteration 1"
    with pytest.raises(InputError, match="two policies are named run iteration 1"):
        checkpoints.candidates(parsed(settings(run_dir / "evaluation", policies=entries)).policies)


def test_a_base_model_has_the_template_options_of_its_run_and_a_policys_own_come_first(run_dir) -> None:
    options = "template_options: {enable_thinking: false, style: calm}"
    (run_dir / "job.yaml").write_text(f"{{model: smollm2-135m, seed: 0, iterations: 3, {options}}}\n")
    entries = [{"name": "run", "model": str(run_dir), "iteration": "all", "template_options": {"style": "brisk"}}]
    base, first, *_ = checkpoints.candidates(parsed(settings(run_dir / "evaluation", policies=entries)).policies)
    assert base.checkpoint.template_options == {"enable_thinking": False, "style": "brisk"}
    assert first.checkpoint.template_options == {"style": "brisk"}, "a checkpoint's template has the run's"


def test_what_names_no_checkpoint_is_refused_in_one_sentence(run_dir, tiny_model) -> None:
    (run_dir / "iteration-001" / "checkpoint").unlink()
    cases = [
        (str(run_dir), 1, "no checkpoint of iteration 1 (kept: 2, 3); choose another iteration"),
        (str(run_dir), 4, "no checkpoint of iteration 4"),
        (str(tiny_model), 1, "is no directory of a training run, so it has no iterations"),
        ("owner/name", 0, "owner/name is no directory of a training run"),
    ]
    for model, iteration, message in cases:
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            checkpoints.find(model, iteration)
        assert "\n" not in str(caught.value)
    (run_dir / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"summary\.json names no best checkpoint"):
        checkpoints.find(str(run_dir))
    (run_dir / "summary.json").unlink()
    with pytest.raises(InputError, match=r"has no summary\.json yet, so it has not chosen its best checkpoint"):
        checkpoints.find(str(run_dir))


def test_a_context_that_is_too_short_is_refused(tiny_model) -> None:
    checkpoints.check_context(Checkpoint(str(tiny_model)), ENGINE["max_model_len"])
    with pytest.raises(InputError, match=r"holds 1024 tokens, rollouts\.max_model_len is 2048"):
        checkpoints.check_context(Checkpoint(str(tiny_model)), 2048)
