"""The command ``psyco-ray data check``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from psyco_ray.cli.arguments import add_command
from psyco_ray.config import job_file
from psyco_ray.config.data import Collect
from psyco_ray.config.errors import InputError
from psyco_ray.config.names import setting
from psyco_ray.config.reading import Reading
from psyco_ray.files.table import shown_each

if TYPE_CHECKING:
    from psyco_ray.data.check import Check

_EXAMPLES = 5
_EXAMPLE_CHARS = 90
_SHARES = 6  # of languages
_SPEAKERS = 8


def add(stages: Any) -> None:
    """Adds the command to ``psyco-ray data``."""
    example = "psyco-ray data check notes.csv"
    command = add_command(stages, "check", run, "say what a command would make of a file", example)
    command.add_argument("file", metavar="FILE", help="a file or directory of speeches or pairs, as a job names it")
    command.add_argument("--what", choices=("speeches", "pairs"), help="default: pairs if it has their columns")
    command.add_argument("--column", help="of the speeches (default: a known one, else the longest texts)")
    command.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="which rows are the client's"
    )
    command.add_argument(
        "--conversations", choices=("opening", "contexts"), help="what is read of a conversation (default: opening)"
    )
    command.add_argument("--dialogue", metavar="COLUMN", help="with the id of a dialogue over several rows")
    command.add_argument("--encoding", help="of a text file that is not UTF-8, such as gb18030")


def run(_: None, options: argparse.Namespace) -> int:
    """Prints what was found."""
    from psyco_ray.data.check import check

    print("\n".join(lines(check(options.file, _what(options), options.column, _reading(options)))))
    return 0


def lines(found: Check) -> Iterator[str]:
    """What was found, for a terminal; no word of a text is shown."""
    yield f"{found.name}: {found.kind}{f', {found.encoding}' if found.encoding else ''}, {_rows(found)}"
    if found.mended:
        yield f"encoding: {found.mended:,} lines have bytes that are not {found.encoding}"
    columns = zip(shown_each(found.columns), found.columns.values(), strict=True)
    yield "columns: " + "; ".join(f"{name} ({what})" for name, what in columns)
    if found.counts.bad:
        yield f"bad rows: {_counts(found.counts.bad)}"
    if found.what == "pairs":
        yield f"read as: pairs, {found.read_as}"
    else:
        guess = "; a guess by the length of its texts, --column NAME takes another" if found.guessed else ""
        yield f"read as: speeches in the column {found.read_as}{guess}"
    for name, values in found.speakers.items():
        yield f"speakers: {_speakers(name, values)}"
    for name, clients in found.reading.where.items():
        yield f"client: rows with {name} {' or '.join(clients)}"
    if found.what == "speeches":
        rows = "all rows" if found.counts.whole else "the rows that were read"
        yield f"duplicates: {found.counts.equal:,} of {rows} repeat the text of another"
    every = found.counts.whole and found.sampled >= found.counts.rows
    sampled = f"{'a sample of' if found.what == 'speeches' else 'the first'} {found.sampled:,}"
    yield f"of {'all' if every else sampled} rows:"
    for line in _sampled(found):
        yield f"  {line}"
    yield "examples, with x for letters and 9 for digits:"
    for example in found.examples(_EXAMPLES, _EXAMPLE_CHARS):
        yield f"  {example}"
    yield "in a job:"
    for line in _job(found):
        yield f"  {line}"


def _rows(found: Check) -> str:
    if found.counts.whole:
        return f"{found.counts.rows:,} rows"
    total = f"about {found.counts.total:,}" if found.counts.total else "more"
    return f"{total} rows, of which the first {found.counts.rows:,} were read"


def _sampled(found: Check) -> Iterator[str]:
    """Facts of the sample."""
    texts = len(found.texts)
    if found.what == "pairs":
        longer = _share(found.chosen_longer, found.pairs)
        yield f"{found.pairs:,} pairs on {texts:,} questions; the chosen response is the longer one in {longer}"
    else:
        yield f"{texts:,} speeches"
        if found.conversations:
            more = "" if found.reading.conversations == "contexts" else "; conversations contexts reads them"
            yield f"{found.conversations:,} conversations with {found.contexts:,} contexts{more}"
    if found.left_out:
        yield f"left out: {_counts(found.left_out)}"
    if not texts:
        return
    lengths = sorted(found.lengths)
    low, middle, high = (lengths[int(share * (texts - 1))] for share in (0.05, 0.5, 0.95))
    bounds = Collect()
    within = sum(bounds.min_chars <= length <= bounds.max_chars for length in lengths)
    if found.reading.conversations == "contexts":
        limits = "all that the client says in a row counts"
    else:
        limits = f"{_share(within, texts)} have {bounds.min_chars} to {bounds.max_chars:,} (min_chars, max_chars)"
    yield f"lengths: half below {middle:,} characters, nine in ten from {low:,} to {high:,}; {limits}"
    yield f"languages: {_shares(found.languages(), texts)}"
    if near := found.near():
        yield f"duplicates: {near:,} repeat another one of these, exactly or nearly"
    yield f"signs of a crisis: {_shares(found.crisis(), texts)}"
    yield f"personal data: {_shares(found.personal_data(), texts)}"


def _job(found: Check) -> Iterator[str]:
    """Settings that read the file."""
    if found.what == "pairs":
        yield _override("data.pairs", found.name)
        return
    more = found.reading.model_dump(exclude_defaults=True)
    source = {"name": Path(found.name).name.split(".")[0] or "speeches", "path": found.name, "text": found.read_as}
    yield f"sources: [{_flow(source | more)}]    # psyco-ray data"
    settings = {"speeches": found.name, "speech_column": found.read_as} | more
    yield " ".join(_override(f"data.{key}", value) for key, value in settings.items())


def _override(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else _flow(value)
    return f"'{key}={text}'" if set(text) & set(" {}[]'\"$&;|*?#()") else f"{key}={text}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6).strip()


def _speakers(name: str, values: Mapping[str, int]) -> str:
    from psyco_ray.data.roles import is_role

    shown = [value for value in values if is_role(value)][:_SPEAKERS]
    if others := len(values) - len(shown):
        rows = sum(values.values()) - sum(values[value] for value in shown)
        counted = [f"{others:,} other value{'s' if others > 1 else ''} ({rows:,})"]
    return f"{name} is " + ", ".join([f"{value} ({values[value]:,})" for value in shown] + (counted if others else []))


def _counts(reasons: Mapping[str, int]) -> str:
    from psyco_ray.data.client_rows import by_count

    return by_count(reasons)


def _shares(counts: Mapping[str, int], total: int) -> str:
    """Shares by name, the largest first."""
    ordered = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])
    return ", ".join(f"{name} {_share(count, total)}" for name, count in ordered) or "none"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "none"


def _what(options: argparse.Namespace) -> str | None:
    """The kind of file, which options for speeches tell as well.

    Raises:
        InputError: they contradict --what.
    """
    if not (options.column or options.where or options.conversations or options.dialogue):
        return options.what
    if options.what == "pairs":
        raise InputError(
            "--column, --where, --conversations and --dialogue are for speeches; leave them out, or take --what "
            "speeches"
        )
    return "speeches"


def _reading(options: argparse.Namespace) -> Reading:
    """The settings that the options give.

    Raises:
        InputError: an option has another form.
    """
    where: dict[str, list[str]] = {}
    for choice in options.where:
        name, equals, value = choice.partition("=")
        if not (name and equals and value):
            raise InputError(f"--where {setting(choice)} is not of the form COLUMN=VALUE, such as speaker=client")
        where.setdefault(name, []).append(value)
    given = {"where": where, "encoding": options.encoding, "dialogue": options.dialogue}
    given["conversations"] = options.conversations or "opening"
    return job_file.parse(Reading, given, "data check")
