"""What conversations add to the page of policies: win rates by turn, and dialogues with simulated clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psyco_ray.report import figures
from psyco_ray.report.policy_tables import SETTINGS, TEXT_COLUMNS, by_variant, rate_cells
from psyco_ray.report.render import DASH, decimal, percent, percent_interval, thousands
from psyco_ray.report.tables import Table, of_rows

BY_TURN = "By turn of the conversation"
"""Title of the table of contexts."""

_WHOLE = "whole"
_RATE_COLUMNS = ("Win rate", "Wilson 95 %", "Unreadable")


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The tables of contexts and of dialogues, as far as they have rows."""
    found = [_turns(results)]
    if dialogues := results.get("dialogues"):
        found += [_dialogue_wins(dialogues), _endings(dialogues), _lengths(dialogues), _consistency(dialogues)]
    return [table for table in found if table.rows]


def note(dialogues: Mapping[str, Any]) -> str:
    """How the figures of dialogues came about."""
    sentences = [
        f"{dialogues['openings']:,} openings; the policies and {dialogues['opponent']['name']} each talk with the same "
        f"simulated clients, played by {dialogues['client']} with the same profiles and seeds, for up to "
        f"{dialogues['turns']} responses.",
        f"The judge {dialogues['judge']} reads both dialogues in both orders; a tie counts as half a win. At turn t it "
        "compares dialogues that are both still going, up to that turn; over the whole dialogue, all of them.",
        "A simulated client is no person: what it tolerates and when it leaves says little about real clients.",
    ]
    signs = dialogues["crisis_dialogues"]
    if signs:
        sentences.append(
            "A screen of all turns of the clients, simulated ones included, found signs of a crisis for "
            f"{signs:,} of {dialogues['openings']:,} openings, in the dialogue of a policy or of the opponent, many of "
            "them harmless; their win rates have rows of their own."
        )
    return " ".join(sentences)


def by_turn_figures(results: Mapping[str, Any]) -> dict[str, str]:
    """Win rates by turn with their intervals, by what they are of: contexts in a setting, or dialogues."""
    drawn: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, variant, measures in by_variant(results):
        if "turns" in measures:
            points = [{"turn": title, **of["overall"]} for title, of in measures["turns"].items()]
            drawn.setdefault(SETTINGS[variant], {})[name] = points
    if dialogues := results.get("dialogues"):
        for policy in dialogues["policies"]:
            points = [{"turn": title, **rate} for title, rate in policy["at_turn"].items()]
            drawn.setdefault("dialogues with simulated clients", {})[policy["name"]] = points
    return {what: figures.by_turn(curves, results["opponent"], what) for what, curves in drawn.items()}


def _turns(results: Mapping[str, Any]) -> Table:
    columns = ("Model", "Setting", "Turn", "Contexts", *_RATE_COLUMNS, "Length-controlled", "Words", "Opponent's words")
    rows = [
        [
            name,
            SETTINGS[variant],
            title,
            *rate_cells(of["overall"]),
            percent(of["lc"]["rate"]) if "lc" in of else DASH,
            decimal(of.get("mean_words"), 1),
            decimal(of.get("opponent_mean_words"), 1),
        ]
        for name, variant, measures in by_variant(results)
        for title, of in measures.get("turns", {}).items()
    ]
    return of_rows(BY_TURN, columns, rows, TEXT_COLUMNS)


def _dialogue_wins(dialogues: Mapping[str, Any]) -> Table:
    rows = [
        [policy["name"], title, *rate_cells(rate)]
        for policy in dialogues["policies"]
        for title, rate in (
            *((f"turn {turn}", rate) for turn, rate in policy["at_turn"].items()),
            ("whole dialogue", policy[_WHOLE]),
            *([("whole, signs of a crisis", policy["crisis"])] if policy["crisis"] else []),
        )
    ]
    columns = ("Model", "Compared", "Dialogues", *_RATE_COLUMNS)
    return of_rows("Dialogues: win rates", columns, rows, (*TEXT_COLUMNS, "Compared"))


def _sides(dialogues: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from dialogues["policies"]
    yield dialogues["opponent"]


def _endings(dialogues: Mapping[str, Any]) -> Table:
    """Where dialogues end: by the client, or for want of a response or a reply."""
    turns = range(1, dialogues["turns"])
    columns = ("Model", *(f"Left by turn {turn}, %" for turn in turns), "95 %", "No response", "No reply")
    rows = [
        [
            side["name"],
            *(percent(side["dropped"][str(turn)]["share"]) for turn in turns),
            percent_interval(side["dropped"][str(turns[-1])]["wilson95"]),
            thousands(side["unanswered"]),
            thousands(side["unreplied"]),
        ]
        for side in _sides(dialogues)
    ]
    below = (
        "Shares are of the dialogues that have not failed for want of a client's reply. "
        "The interval is that of the last turn."
    )
    return of_rows("Dialogues: clients who leave", columns, rows, TEXT_COLUMNS, below)


def _lengths(dialogues: Mapping[str, Any]) -> Table:
    turns = range(1, dialogues["turns"] + 1)
    columns = ("Model", *(f"Turn {turn}" for turn in turns))
    rows = [
        [side["name"], *(decimal(side["mean_words"].get(str(turn)), 1) for turn in turns)] for side in _sides(dialogues)
    ]
    return of_rows("Dialogues: words of a response", columns, rows, TEXT_COLUMNS)


def _consistency(dialogues: Mapping[str, Any]) -> Table:
    columns = (
        "Model",
        "Responses",
        "Repeat, %",
        "95 %",
        "Said before, %",
        "Contradict, %",
        "95 %",
        "Forget, %",
        "95 %",
    )
    rows = []
    for side in _sides(dialogues):
        repeated, judged = side["repetition"], side["consistency"]
        if repeated is None:
            continue
        cells = [
            side["name"],
            thousands(repeated["responses"]),
            percent(repeated["share"]),
            percent_interval(repeated["ci95"]),
            percent(repeated["mean_overlap"]),
        ]
        for what in ("contradiction", "forgotten"):
            found = judged and judged[what]
            cells += [percent(found["share"]), percent_interval(found["wilson95"])] if found else [DASH, DASH]
        rows.append(cells)
    below = (
        "Repeat: responses at least half of whose runs of four words the same model has said earlier in the dialogue; "
        "said before: the mean share of such runs. Contradict and forget: share of dialogues, by the judge."
    )
    return of_rows("Dialogues: consistency", columns, rows, TEXT_COLUMNS, below)
