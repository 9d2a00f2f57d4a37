"""Agreement, drift and sides, on choices with known figures; the intervals are those of `evaluate.agreement`."""

from dataclasses import asdict

import numpy as np
import pytest

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.desk import rater_agreement
from psyco_ray.desk.judgements import Judgement
from psyco_ray.evaluate import agreement
from psyco_ray.evaluate.stats import wilson


def chose(person: int, *overall: int, first: int = 0, **more) -> list[Judgement]:
    """A person's overall choices on items 0, 1, …, one a minute."""
    return [
        Judgement(f"i{first + k:03}", person, {"overall": choice, **more}, 1, 60.0 * k, 10.0 + k)
        for k, choice in enumerate(overall)
    ]


def test_agreement_is_that_of_the_library() -> None:
    """Also where people judged different items, in another order, and one of them under a principle too."""
    first, second = (1, 1, -1, 1, -1, 1, 1, -1), (1, -1, -1, 1, -1, 1, -1, -1, 1)
    judged = chose(5, *second) + chose(2, *first, principles={"safety": 1})
    found = rater_agreement.between(judged, "pair", seed=3)
    rows = np.array([first, second[:8]], float).T
    assert found["overall"] == {
        "items": 8,
        "raters": 2,
        "percent": asdict(agreement.percent(rows, seed=3)),
        "kappa": asdict(agreement.cohen_kappa(rows, seed=3)),
        "alpha": asdict(agreement.krippendorff_alpha(rows, "nominal", seed=3)),
    }
    assert found["overall"]["percent"]["value"] == 6 / 8
    assert (found["safety"]["items"], found["safety"]["percent"]["value"], found["safety"]["raters"]) == (0, None, 1)
    assert set(found) == {"overall", *PRINCIPLES}


def test_three_people_have_alpha_and_no_kappa() -> None:
    judged = chose(1, 1, 1, -1, -1) + chose(2, 1, 1, -1, 1) + chose(3, 1, -1)
    found = rater_agreement.between(judged, "pair", seed=0)["overall"]
    assert (found["raters"], found["items"], found["kappa"]) == (3, 4, None)
    assert found["percent"]["value"] == pytest.approx((3 + 1 + 1 + 0) / (3 + 3 + 1 + 1))
    rows = [[1, 1, 1], [1, 1, -1], [-1, -1, np.nan], [-1, 1, np.nan]]
    assert found["alpha"] == asdict(agreement.krippendorff_alpha(rows, "nominal"))


def test_each_scored_response_is_an_item_of_ordinal_agreement() -> None:
    def scored(person: int, *scores: tuple[int, int]) -> list[Judgement]:
        return [
            Judgement(f"s{k}", person, {"scores": [{"empathy": one} for one in both]}, 1, 0.0, 1.0)
            for k, both in enumerate(scores)
        ]

    judged = scored(1, (5, 2), (3, 3)) + scored(2, (4, 2), (3, 1))
    rows = [[5, 4], [2, 2], [3, 3], [3, 1]]
    found = rater_agreement.between(judged, "scores", seed=0)
    assert found["empathy"]["kappa"] == asdict(agreement.cohen_kappa(rows, "quadratic"))
    assert found["empathy"]["alpha"] == asdict(agreement.krippendorff_alpha(rows, "ordinal"))
    facts = {"s0": {"ratings": [{"empathy": 5}, {"empathy": 4}]}, "s1": {}}
    assert rater_agreement.with_ratings(judged, facts, seed=0) == {
        "empathy": {
            "items": 2,
            "difference": pytest.approx((-0.5 - 2) / 2),
            "interval": pytest.approx((-2.0, -0.5)),
            "share": 0.5,
            "wilson": wilson(1, 2),
        }
    }


def test_labels_are_compared_with_each_person_and_with_the_majority() -> None:
    """A label of 0 names no response, a tie is not a label's choice, and an even split has no majority."""
    judged = chose(1, 1, 1, 1, 1) + chose(2, 1, -1, 0, 1) + chose(3, 1, -1, 0, 1)
    labels = {"i000": {"overall": 1}, "i001": {"overall": 1}, "i002": {"overall": 1}, "i003": {"overall": 0}}
    found = rater_agreement.with_labels(judged, labels, seed=0)
    shares = {person: found["people"][person]["overall"] for person in (1, 2, 3)}
    assert [(cell["equal"], cell["items"]) for cell in shares.values()] == [(3, 3), (1, 3), (1, 3)]
    assert shares[2]["wilson"] == wilson(1, 3)
    assert (found["majority"]["overall"]["equal"], found["majority"]["overall"]["items"]) == (1, 3)
    assert found["majority"]["empathy"] is None
    even = rater_agreement.with_labels(judged[:8], labels, seed=0)["majority"]["overall"]
    assert (even["equal"], even["items"]) == (1, 1)


def test_a_person_who_starts_to_differ_from_the_others_is_seen() -> None:
    truth = [1, -1] * 20
    judged = chose(1, *truth) + chose(2, *truth) + chose(3, *truth[:20], *(-choice for choice in truth[20:]))
    found = rater_agreement.drift(judged, block=10)
    assert [(b["first"], b["last"], b["items"], b["equal"]) for b in found[3]["blocks"]] == [
        (1, 10, 10, 10),
        (11, 20, 10, 10),
        (21, 30, 10, 0),
        (31, 40, 10, 0),
    ]
    assert [found[person]["drifts"] for person in (1, 2, 3)] == [False, False, True]
    assert found[3]["blocks"][1]["seconds"] == 10 + 14.5
    alone = rater_agreement.drift(chose(1, *truth[:12]), block=10)[1]
    assert (alone["blocks"][0]["share"], alone["drifts"]) == (None, False)


def test_a_preference_for_the_left_is_seen_whatever_the_sides_hold() -> None:
    judged = chose(1, *[1, -1] * 10) + chose(2, *[1, -1] * 9, 0, 0)
    swapped = {(judgement.item_id, 1): judgement.answer["overall"] < 0 for judgement in judged[:20]}
    swapped |= {(judgement.item_id, 2): False for judgement in judged}
    found = rater_agreement.positions(judged, swapped)
    assert found[1] == {"choices": 20, "left": 20, "share": 1.0, "wilson": wilson(20, 20), "one_sided": True}
    assert (found[2]["choices"], found[2]["left"], found[2]["one_sided"]) == (18, 9, False)


def test_items_of_one_conversation_are_one_cluster_of_every_interval() -> None:
    """Two people agree on whole conversations of ten turns, so there are four observations and not forty."""
    truth = [1] * 10 + [-1] * 10 + [1] * 10 + [-1] * 10
    other = [1] * 10 + [-1] * 10 + [1] * 10 + [1] * 10
    judged = chose(1, *truth) + chose(2, *other) + chose(3, *truth)
    of = {f"i{k:03}": f"c{k // 10}" for k in range(40)}
    labels = {item: {"overall": 1} for item in of}

    def widths(conversations: dict[str, str] | None) -> list[float]:
        between = rater_agreement.between(judged, "pair", 0, conversations)["overall"]
        with_labels = rater_agreement.with_labels(judged, labels, 0, conversations)
        block = rater_agreement.drift(judged, 40, conversations)[2]["blocks"][0]
        bounds = [(between[name]["low"], between[name]["high"]) for name in ("percent", "alpha")]
        bounds += [with_labels["people"][1]["overall"]["wilson"], with_labels["majority"]["overall"]["wilson"]]
        return [high - low for low, high in (*bounds, block["wilson"])]

    alone, together = widths(None), widths(of)
    assert widths({item: item for item in of}) == alone
    assert all(wide > 1.5 * narrow for wide, narrow in zip(together, alone, strict=True))


def test_scores_of_one_conversation_are_one_cluster() -> None:
    judged = [
        Judgement(f"s{k:02}", 1, {"scores": [{"empathy": 1 + k // 10}, {"empathy": 1 + k // 10}]}, 1, 0.0, 1.0)
        for k in range(40)
    ]
    facts = {f"s{k:02}": {"ratings": [{"empathy": 1}, {"empathy": 1}]} for k in range(40)}
    alone = rater_agreement.with_ratings(judged, facts, 0)["empathy"]
    together = rater_agreement.with_ratings(judged, facts, 0, {key: key[:2] for key in facts})["empathy"]
    assert (together["difference"], together["share"]) == (alone["difference"], alone["share"])
    for name in ("interval", "wilson"):
        assert together[name][1] - together[name][0] > 1.5 * (alone[name][1] - alone[name][0])
