"""What is measured of a policy's answers to the held-out speeches."""

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.config.training import Job
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply
from psyco_ray.training import heldout
from psyco_ray.training.heldout import HeldoutEvaluation
from psyco_ray.training.run_state import RunState

SPEECHES = {f"s{number}": f"I cannot sleep for {number} nights." for number in range(10)}


def group(speech: str, texts: list[str], finished: list[bool], logprobs: list[float], **scores: list[float]) -> Group:
    responses = tuple(
        Response(text, tuple(range(len(text))), end, logprob)
        for text, end, logprob in zip(texts, finished, logprobs, strict=True)
    )
    return Group(Prompt(speech, (1,), 0), responses, 1, {name: tuple(values) for name, values in scores.items()})


def test_measures_of_finished_answers_variety_and_divergence() -> None:
    groups = {
        "a": group("a", ["x y x y", "x"], [True, False], [-10.0, -4.0], reward=[1.0, 3.0], reference=[-13.0, -5.0]),
        "b": group("b", ["z", "z"], [True, True], [-1.0, -1.0], reward=[0.0, 0.0], reference=[-1.0, -1.0]),
    }
    measures = heldout.measure(groups, None, {"a": "a", "b": "b"}, seed=0)
    assert measures["finished_share"] == 0.75
    assert (measures["distinct_1"], measures["distinct_2"]) == (3 / 7, 2 / 3)
    assert measures["kl"] == pytest.approx(((3 + 1) / 2 + 0) / 2), "the mean over speeches"
    assert measures["reward"]["reward"] == 1.0
    assert "reference" not in measures, "a log-probability is no reward"
    del groups["a"].scores["reference"]
    without = {"a": groups["a"]}
    assert "kl" not in heldout.measure(without, None, {"a": "a"}, seed=0)


def test_intervals_take_contexts_of_a_conversation_as_dependent() -> None:
    """Four contexts of each conversation that have one score say no more than one of them."""
    keys = [f"{conversation}{turn}" for conversation in "abcdefgh" for turn in range(4)]
    alone, together = {key: key for key in keys}, {key: key[0] for key in keys}
    widths = {}
    for name, conversation in (("alone", alone), ("together", together)):
        base = heldout.measure(scored(keys, lambda _: 0.5), None, conversation, seed=0)
        ours = heldout.measure(scored(keys, lambda key: (ord(key[0]) - ord("a")) % 2), base, conversation, seed=0)
        assert ours["reward"]["win_rate_vs_base"] == 0.5
        widths[name] = [high - low for low, high in (ours["reward"]["ci95"], ours["reward"]["win_rate_ci95"])]
    for narrow, wide in zip(*widths.values(), strict=True):
        assert wide == pytest.approx(2 * narrow, rel=0.2), "a quarter of the values is independent"


def scored(keys: list[str], score) -> dict[str, Group]:
    return {key: group(key, ["yes"], [True], [-1.0], reward=[score(key)]) for key in keys}


@pytest.fixture
def run(tmp_path):
    """An evaluation of a run with the given settings; the base model's record is that of its answers."""

    def run(unfinished: str) -> tuple[HeldoutEvaluation, Ledger]:
        job = Job(
            run_dir=str(tmp_path / unfinished),
            scorers={"reward_model": "a/b"},
            sampling={"unfinished": unfinished, "max_tokens": 32},
        )
        ledger = Ledger(job, resume=True)
        return HeldoutEvaluation(job, ledger, RunState(job, ledger), Progress()), ledger

    return run


def answers(finished: int, of: int = 10) -> dict[str, Group]:
    return {
        f"s{i}": group(f"s{i}", ["word " * (1 + i)], [i < finished], [-2.0], reward=[float(i)], reference=[-2.0])
        for i in range(of)
    }


def test_a_base_model_whose_answers_are_mostly_cut_stops_the_run_before_it_samples(run) -> None:
    evaluation, ledger = run("exclude")
    message = r"^60% of the base model's answers to the held-out speeches were cut at sampling\.max_tokens 32"
    with pytest.raises(ValueError, match=message):
        evaluation.measure(0, answers(4), SPEECHES)
    ledger.close()
    evaluation, ledger = run("allow")
    assert evaluation.measure(0, answers(0), SPEECHES)["finished_share"] == 0.0
    ledger.close()


def test_the_alarm_rings_where_the_share_of_finished_answers_falls(run) -> None:
    evaluation, ledger = run("penalise")
    ledger.finish(stage(0, "evaluate"), 0.0, **evaluation.measure(0, answers(10), SPEECHES))
    ledger.finish(stage(1, "pairs"), 0.0, length_share=0.1)
    measures = evaluation.measure(1, answers(3), SPEECHES)  # a trained policy's answers stop nothing
    assert evaluation.check_guards(1, measures)["alarms"] == ["only 30% of the answers are finished"]
    assert evaluation.check_guards(1, evaluation.measure(1, answers(8), SPEECHES))["alarms"] == []
    ledger.close()


def told(first: float, last: float) -> list[Dialogue]:
    """Held-out dialogues of two turns with these rewards, more or less."""
    dialogues = []
    for number, (key, speech) in enumerate(SPEECHES.items()):
        start = Context.of(speech)
        answers = [
            Answer("Oh.", 3, True, {"reward": reward + number % 2, "heldout": -reward}) for reward in (first, last)
        ]
        dialogues.append(Dialogue(key, start, 0, answers, [Reply("Yes.", ended=False)]))
    return dialogues


@pytest.mark.parametrize(
    ("simulate", "best", "by"),
    [
        ({"rank": "dialogue"}, 2, "mean reward by the training reward model over turns 1 to 2 of held-out dialogues"),
        ({"rank": "dialogue", "reduce": "last"}, 2, "mean reward by the training reward model at turn 2 of held-out"),
        ({"branch_turn": 2}, 2, "mean reward by the training reward model at turn 2 of held-out dialogues"),
        ({}, 1, "mean reward by the training reward model on the held-out speeches"),
        ({"rank": "dialogue", "judge": True}, 2, "mean reward by the training reward model over turns 1 to 2"),
        ({"rank": "dialogue", "heldout": True}, 0, "mean reward by the held-out reward model over turns 1 to 2"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_ranks_responses(tmp_path, simulate, best, by) -> None:
    judge = {"model": "judge", "base_url": "http://127.0.0.1:1", "key_env": None} if simulate.pop("judge", 0) else None
    scorers = {"reward_model": "a/b", **({"heldout_model": "c/d"} if simulate.pop("heldout", 0) else {})}
    job = Job(
        run_dir=str(tmp_path / "run"),
        scorers=scorers,
        simulate={"client": {"model": "smol"}, "turns": 2, **simulate},
        evaluation={"judge": judge},
    )
    ledger = Ledger(job, resume=False)
    run_state = RunState(job, ledger)
    evaluation = HeldoutEvaluation(job, ledger, run_state, Progress())
    for iteration, (first, last) in enumerate([(1.0, 1.0), (3.0, 0.0), (2.0, 4.0)]):
        dialogues = told(first, last)
        groups = {
            dialogue.speech_id: group(
                dialogue.speech_id,
                ["Oh."],
                [True],
                [-2.0],
                **{name: [score] for name, score in dialogue.answers[0].scores.items()},
            )
            for dialogue in dialogues
        }
        measures = evaluation.measure(iteration, groups, SPEECHES, dialogues)
        ledger.finish(stage(iteration, "pairs"), 0.0, length_share=0.1)
        monitors = evaluation.check_guards(iteration, measures)
        judged = {"judge": {"win_rate_vs_base": 1 / (1 + iteration)}}
        ledger.finish(stage(iteration, "evaluate"), 0.0, **measures, **monitors, **judged)
    assert run_state.best(2) == best
    assert run_state.measure.startswith(by)
    assert (monitors["monitors"]["fall"] > 0) == (best != 1), "of the same rewards"
    ledger.close()
