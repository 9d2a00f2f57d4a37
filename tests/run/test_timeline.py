"""Who was at work when, as it is recorded and as it is drawn."""

import pytest

from psyco_ray.report import figures
from psyco_ray.run import timeline
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.timeline import BINS, Timeline


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(timeline.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def directory(tmp_path):
    held = RunDirectory(str(tmp_path / "run"))
    yield held
    held.close()


def line_of(directory: RunDirectory) -> Timeline:
    return Timeline(directory, lambda: {"rollouts": 2, "learners": 1})


def parts(directory: RunDirectory, iteration: int) -> list[dict]:
    return directory.record(f"iteration-{iteration:03d}/timeline")["parts"]


def worked(part: dict, role: str) -> float:
    return sum(part["busy"][role]) * part["bin_s"]


def test_work_is_added_up_where_it_was_done(directory, clock) -> None:
    line = line_of(directory)
    line.add_busy("rollouts", 900.0, 999.0)  # for nothing that is recorded
    with line.span(1, "sample"):
        clock[0] += 10
        line.add_busy("rollouts", 999.0, 1005.1)  # began before the iteration did
        line.add_busy("rollouts", 1002.0, 1002.25)
    with line.span(1, "train"):
        clock[0] += 5
        line.add_busy("learners", 1010.1, 1014.9)
    [part] = parts(directory, 1)
    assert part["driver"] == [["sample", 0, 10], ["train", 10, 15]]
    assert (part["seconds"], part["actors"]) == (15, {"rollouts": 2, "learners": 1})
    assert part["bin_s"] == 0.25
    rollouts = part["busy"]["rollouts"]
    assert rollouts[:22] == pytest.approx([*[1.0] * 8, 2.0, *[1.0] * 11, 0.4, 0.0])
    assert worked(part, "learners") == pytest.approx(4.8)
    assert part["busy"]["learners"][40] == pytest.approx(0.6)


def test_an_iteration_of_hours_is_kept_in_as_few_numbers(directory, clock) -> None:
    line = line_of(directory)
    with line.span(3, "sample"):
        for minute in range(600):
            clock[0] += 60
            if minute % 2:
                line.add_busy("rollouts", clock[0] - 30, clock[0])
    [part] = parts(directory, 3)
    assert len(part["busy"]["rollouts"]) <= BINS
    assert BINS * part["bin_s"] < 2 * 36000
    assert worked(part, "rollouts") == pytest.approx(9000, rel=0.01)
    with line.span(3, "sync"):
        clock[0] += 200_000  # nobody works
    assert len(parts(directory, 3)[0]["busy"]["rollouts"]) <= BINS


def test_a_driver_that_goes_on_leaves_what_there_is(directory, clock) -> None:
    first = line_of(directory)
    for iteration in (1, 2):
        with first.span(iteration, "sample"):
            clock[0] += 10
            first.add_busy("rollouts", clock[0] - 4, clock[0])
    whole, begun = parts(directory, 1), parts(directory, 2)
    with pytest.raises(KeyboardInterrupt), first.span(2, "train"):
        raise KeyboardInterrupt
    second = line_of(directory)
    with second.span(2, "train"):
        clock[0] += 7
    with second.span(2, "sync"):
        clock[0] += 1
    assert parts(directory, 1) == whole
    one, other = parts(directory, 2)
    assert [one] == begun
    assert other["driver"] == [["train", 0, 7], ["sync", 7, 8]]


def part(*driver: tuple[str, float, float]) -> dict:
    busy = {"rollouts": [2.0, 1.0, 0.0], "scorers": [0.5, 0.0, 0.0]}
    return {"seconds": 5.0, "bin_s": 2.0, "actors": {"rollouts": 2, "scorers": 1, "learners": 2}, "busy": busy} | {
        "driver": list(driver)
    }


def variable(stage: str) -> str:
    """The CSS variable of a stage's color."""
    return f"var(--series-{figures.SERIES.index(figures.STAGE_COLORS[stage]) + 1})"


def test_the_figure_describes_what_it_draws() -> None:
    iterations = {
        "base model": [part(("evaluate", 0, 5))],
        "iteration 1": [part(("sample", 0, 5)), part(("train", 1, 4))],
    }
    drawn = figures.timeline(iterations)
    assert drawn == figures.timeline(iterations)
    assert "iteration 1: 10 seconds, busy share of rollouts 60 %, scorers 20 %, learners 0 %." in drawn
    for stage in ("sample", "train", "evaluate"):
        assert variable(stage) in drawn, stage
    assert variable("sync") not in drawn
    assert figures.timeline({}) == ""


def test_the_busy_share_counts_all_actors() -> None:
    assert figures.busy_share([part(), part()], "rollouts") == pytest.approx(12 / 20)
    assert figures.busy_share([part()], "scorers") == pytest.approx(1 / 5)
    assert figures.busy_share([part()], "learners") == 0.0
