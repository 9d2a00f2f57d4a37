"""The formats of preference files: how each is recognised, and how its rows become pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from psyco_ray.data.shapes import annotated, compared, ranked
from psyco_ray.data.shapes.pairs import SYSTEM, UNREAD, filled
from psyco_ray.run.types import Row


@dataclass(frozen=True)
class Shape:
    """A format of preference files."""

    name: str  # as the log calls it
    columns: tuple[str, ...]  # a file of the format has all of them
    pairs: Callable[[Row], list[Row]]  # raises UnusablePairError where a row has no usable pair
    fits: Callable[[Row], bool] | None = None  # what else a row of the format has
    reads: frozenset[str] = frozenset()  # of UNREAD
    no_system: bool = False  # the prompts file sets the system message, so a row has none
    grouped: bool = False  # consecutive rows of one prompt are one row, with the others in `responses`


_SIDES = ("chosen", "rejected")
_RESPONSES = ("chosen_response", "rejected_response")

SHAPES = (
    Shape(
        "a question and two responses (the released dataset, Orca)",
        ("question", *_SIDES),
        compared.of_prompt("question", "speech"),
    ),
    Shape("speeches", ("speech", *_SIDES), compared.of_prompt("speech", "speech"), no_system=True),
    Shape(
        "several chosen and rejected responses (RewardBench 2)",
        ("prompt", *_SIDES),
        compared.several,
        fits=compared.has_several,
    ),
    Shape("a prompt and two responses", ("prompt", *_SIDES), compared.of_prompt("prompt")),
    Shape("messages and two responses", ("messages", *_SIDES), compared.of_prompt("messages")),
    Shape(
        "conversations and two responses (ShareGPT)", ("conversations", *_SIDES), compared.of_prompt("conversations")
    ),
    Shape(
        "an instruction and two responses (LLaMA-Factory)",
        ("instruction", *_SIDES),
        compared.instruction,
        fits=lambda cells: bool(cells.get("instruction")),
        reads=frozenset(("instruction", "input", "history")),
    ),
    Shape(
        "an input and two responses",
        ("input", *_SIDES),
        compared.of_prompt("input"),
        fits=lambda cells: bool(cells.get("input")),
        reads=frozenset(("input",)),
    ),
    Shape("two conversations (HH-RLHF)", _SIDES, compared.conversations_of),
    *(
        Shape(
            f"{'an' if column == 'instruction' else 'a'} {column} and two responses",
            (column, *_RESPONSES),
            compared.of_prompt(column, sides=_RESPONSES),
            reads=frozenset((column,)),
        )
        for column in ("prompt", "instruction", "question")
    ),
    Shape(
        "HelpSteer2's preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        ranked.preference_strength,
    ),
    Shape(
        "HelpSteer3's preferences",
        ("context", "response1", "response2", "overall_preference"),
        ranked.overall_preference,
        reads=frozenset(("context",)),
    ),
    Shape("HelpSteer's ratings", ("prompt", "response", *ranked.RATINGS), ranked.helpsteer, grouped=True),
    Shape("UltraFeedback", ("instruction", "completions"), ranked.ultrafeedback, reads=frozenset(("instruction",))),
    Shape("Nectar", ("prompt", "answers"), ranked.nectar),
    Shape("arena conversations", ("conversation_a", "conversation_b", "winner"), compared.arena),
    Shape("arena responses", ("prompt", "response_a", "response_b", "winner"), compared.arena_texts),
    Shape("arena responses", ("prompt", "response_a", "response_b", "winner_model_a"), compared.arena_texts),
    Shape(
        "alpaca_eval's annotations",
        ("instruction", "output_1", "output_2", "preference"),
        compared.alpaca_eval,
        reads=frozenset(("instruction", "input")),
    ),
    Shape("Label Studio", (), annotated.label_studio, fits=annotated.is_label_studio, reads=UNREAD),
    Shape("Argilla", (), annotated.argilla, fits=annotated.is_argilla, reads=UNREAD),
)
"""The first whose columns a file has applies; of two that need a look at the rows, the one that a row fits."""


def recognise(columns: Iterable[str], rows: Sequence[Row]) -> Shape | None:
    """The format of a file.

    Args:
        columns: all of the file.
        rows: the first ones.
    """
    known = set(columns)
    return next(
        (
            shape
            for shape in SHAPES
            if known.issuperset(shape.columns) and (shape.fits is None or any(map(shape.fits, rows)))
        ),
        None,
    )


def accepted(columns: Iterable[str]) -> str:
    """The columns of the formats that share one with a file, for a message."""
    known, released = set(columns), ", ".join(SHAPES[0].columns)
    formats = {", ".join(shape.columns): not known.isdisjoint(shape.columns) for shape in SHAPES if shape.columns}
    near = [released, *(form for form, shares in formats.items() if shares and form != released)]
    return f"{'; or '.join(near)}; psyco_ray/data/README.md lists all {len(formats)}, and exports of annotation tools"


def unread(shape: Shape, row: Row) -> str | None:
    """A column with a value that changes what the responses answer and that the format does not read."""
    columns = (UNREAD - shape.reads) | (set(SYSTEM) if shape.no_system else set())
    return filled(row, columns)
