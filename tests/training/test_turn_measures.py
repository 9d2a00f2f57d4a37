"""Measures of held-out dialogues by turn."""

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.config.simulate import Client, Simulate
from psyco_ray.evaluate import stats
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply
from psyco_ray.training.turn_measures import measure_ranked, measure_turns


def dialogue(speech: str, *scores: float, index: int = 0, left: bool = False, failed: str | None = None) -> Dialogue:
    start = Context.of(f"I am {speech}.")
    answers = [Answer("Oh.", 10 * turn, turn < 3, {"reward": score}) for turn, score in enumerate(scores, start=1)]
    replies = [Reply("Yes.", left and turn == len(scores)) for turn in range(1, len(scores) + 1)]
    return Dialogue(speech, start, index, answers, replies, failed)


def test_turns_are_measured_over_the_speeches_whose_dialogues_have_them() -> None:
    dialogues = [
        dialogue("a", 1.0, 2.0, 3.0),
        dialogue("b", 0.0, 1.0, left=True),
        dialogue("c", 2.0, failed="died"),
        dialogue("a", 3.0, 4.0, 5.0, index=1),
    ]
    one, two, three = measure_turns(dialogues, None, seed=0)
    assert [one["speeches"], two["speeches"], three["speeches"]] == [3, 2, 1]
    assert [one["drop_out"], two["drop_out"], three["drop_out"]] == [0, 0, 1 / 3], "of those that have not failed"
    assert [one["failed"], two["failed"], three["failed"]] == [0, 1, 1]
    assert one["reward"]["scores"] == {"a": 2.0, "b": 0.0, "c": 2.0}
    assert two["reward"]["reward"] == 2.0
    assert three["reward"] == {"reward": 4.0, "ci95": (4.0, 4.0), "scores": {"a": 4.0}}
    assert (one["mean_tokens"], one["finished_share"], three["finished_share"]) == (10, 1, 0)


def test_the_gain_is_paired_over_speeches_that_both_policies_have() -> None:
    base = measure_turns([dialogue(f"s{n:02d}", float(n), n * 1.0) for n in range(20)], None, seed=0)
    ours = [dialogue(f"s{n:02d}", n + 0.5, *([] if n < 5 else [n + 0.25 * (n % 2)])) for n in range(25)]
    one, two = measure_turns(ours, base, seed=0)
    assert one["reward"]["gain"] == pytest.approx(0.5)
    assert one["reward"]["gain_ci95"] == pytest.approx((0.5, 0.5)), "the spread of speeches cancels"
    gains = [0.25 * (n % 2) for n in range(5, 20)]
    assert two["reward"]["gain"] == pytest.approx(sum(gains) / 15)
    assert two["reward"]["gain_ci95"] == stats.bootstrap_clusters([[gain] for gain in gains], 0)
    low, high = two["reward"]["gain_ci95"]
    assert low < two["reward"]["gain"] < high


def ranking(**settings: object) -> Simulate:
    return Simulate(client=Client(model="smol"), **settings)


@pytest.mark.parametrize(
    ("settings", "first", "second", "left"),
    [
        ({"turns": 3, "rank": "dialogue"}, 3.0, 4.0, (5 / 3 + 3.5 + 5) / 3),
        ({"turns": 3, "rank": "dialogue", "branch_turn": 2}, 4.0, 4.5, (3.5 + 5) / 2),
        ({"turns": 3, "rank": "dialogue", "reduce": "last"}, 5.0, 5.0, 5.0),
        ({"turns": 5, "rank": "dialogue", "reduce": "last"}, 5.0, 5.0, 5.0),  # nobody reaches turn 5
        ({"turns": 3, "branch_turn": 2}, 3.0, 4.0, 3.5),
    ],
)
def test_held_out_dialogues_are_valued_by_the_turns_that_rank_in_training(settings, first, second, left) -> None:
    dialogues = [
        dialogue("a", 3.0, 4.0, 5.0, index=1),
        dialogue("b", 1.0, left=True),
        dialogue("a", 1.0, 3.0, 5.0),
    ]
    found = measure_ranked(dialogues, None, ranking(**settings), seed=0)["reward"]
    assert found["scores"]["a"] == pytest.approx([first, second])
    assert found["scores"]["b"] == pytest.approx([1 - 5 / 3 + left]), "as far below the means as its own turn is"
    assert found["reward"] == pytest.approx(((first + second) / 2 + found["scores"]["b"][0]) / 2)
    again = measure_ranked(dialogues[:2], {"reward": found}, ranking(**settings), seed=0)["reward"]
    assert set(again) == {"reward", "ci95", "scores", "gain", "gain_ci95"}


def test_where_the_first_turn_ranks_nothing_else_is_measured() -> None:
    assert measure_ranked([dialogue("a", 1.0, 2.0)], None, ranking(turns=2), seed=0) is None


def test_a_turn_that_the_base_model_never_reached_has_no_gain() -> None:
    base = measure_turns([dialogue("a", 1.0), dialogue("b", 1.0, 2.0)], None, seed=0)
    _, two, three = measure_turns([dialogue("a", 1.0, 2.0, 3.0)], base, seed=0)
    assert (two["reward"]["gain"], two["reward"]["gain_ci95"]) == (None, None)
    assert "gain" not in three["reward"]


def test_contexts_of_a_conversation_are_one_cluster_of_an_interval() -> None:
    def measured(together: bool) -> tuple[float, float]:
        found = []
        for number in range(40):
            start = Context.of(f"I am {number // 8}.") if together else Context.of(f"I am {number}.")
            said = dialogue(f"{number:02d}", float(number // 8))
            said.start = start.answered("Oh.", f"Yes {number}.")
            found.append(said)
        [one] = measure_turns(found, None, seed=0)
        return one["reward"]["ci95"]

    (low, high), (wide_low, wide_high) = measured(together=False), measured(together=True)
    assert wide_high - wide_low > 2 * (high - low), "five conversations tell less than forty"


def test_windows_of_a_conversation_that_have_lost_its_beginning_are_one_cluster() -> None:
    said = [f"This is what I want to tell you about day {day}." for day in range(8)]

    def measured(*windows: list[str]) -> tuple[float, float]:
        found = []
        for number, (first, *later) in enumerate(windows):
            one = dialogue(f"{number:02d}", float(number))
            one.start = Context.of(first)
            for turn in later:
                one.start = one.start.answered("Oh.", turn)
            found.append(one)
        [measures] = measure_turns(found, None, seed=0)
        return measures["reward"]["ci95"]

    assert measured(said[0:2], said[1:3], said[2:4]) == (1.0, 1.0), "the first and the last by the one between"
    assert measured(said[0:2], said[2:4], said[1:3]) == (1.0, 1.0), "in any order"
    apart = measured(said[0:2], said[2:4], said[4:6])
    assert apart[0] < apart[1]
    assert measured([said[0], "Yes."], [said[1], "Yes."], [said[2], "Yes."]) == apart, "short turns tell nothing"


def test_clients_who_greet_alike_are_clusters_of_their_own() -> None:
    found = []
    for number in range(8):
        said = dialogue(f"{number}", float(number % 2))
        said.start = Context.of("Hi").answered("Hello, what brings you here?", f"I have not slept for {number} weeks.")
        said.start = said.start.answered("Since when?", "Since my brother left.")
        found.append(said)
    [one] = measure_turns(found, None, seed=0)
    assert one["reward"]["ci95"][0] < 0.5 < one["reward"]["ci95"][1], "one cluster has no width"
