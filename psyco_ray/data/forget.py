"""Removes a client from what runs have left: tables, journals, records, reports and caches.

Rows about the client go, with what models said to them; other texts get `FORGOTTEN` in the place of the client's words.
Weights cannot forget: the outcome names those that saw the client.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.data import forget_exports, forget_tables, speakers, turns
from psyco_ray.data.clean import clean
from psyco_ray.data.forget_seen import WEIGHTS, Outcome, files, holds
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import Traces
from psyco_ray.judge.journal import without_words
from psyco_ray.run import manifests, records, storage
from psyco_ray.run.remote import MANIFEST
from psyco_ray.screening.personal_data import scrub

AUDIT = "forgotten.jsonl"

_UNFINISHED = (".collecting", ".ratings-", ".partial")  # of a killed command
_TEXTS = {".html", ".md", ".txt", ".csv", ".tsv", ".yaml", ".log", ".svg"}


def traces_of(ids: list[str], texts: list[str]) -> Traces:
    """What identifies a client, from ids and texts as they are or as `collect` would clean or scrub them.

    A text may be a speech, any turn of a conversation, or a whole one.
    """
    traces = Traces(set(ids))
    for text in texts:
        for form in (text, clean(text), scrub(clean(text)).text):
            traces.ids.add(speech_id(form.strip()))
            traces.add_text(form)
        if (dialogue := _dialogue_in(text)) is not None:
            for change in (str, clean, lambda turn: scrub(clean(turn)).text):
                named = dialogue.map(change)
                traces.add_context(named.text)
                traces.add_later_turns(named)
    return traces


def _dialogue_in(text: str) -> Context | None:
    """The conversation that a text is, such as a transcript or messages; None: it is none."""
    if (stored := Context.stored(text.strip())) is not None:
        return stored
    try:
        dialogue = turns.dialogue_of(speakers.conversation(text))
    except speakers.UnknownSpeakerError:
        return None
    return dialogue if dialogue is not None and dialogue.is_conversation else None


def remove_rows(root: Path, traces: Traces, said: Traces, outcome: Outcome) -> None:
    """Remove a client's rows from the Parquet files of a directory, and what unfinished commands left there.

    Args:
        root: a run directory, or a directory of exports or of caches.
        traces: of the client, after `learn`.
        said: receives the other texts of the rows, such as what models said to the client.
        outcome: of `seen`; receives what is done.

    Raises:
        InputError: a file is damaged or cannot be written.
    """
    unfinished = [] if root == storage.cache_dir() else list(root.rglob(".*"))  # other commands write to the cache
    for path in unfinished:
        if any(mark in path.name for mark in _UNFINISHED):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in files(root):
        if path.suffix == ".parquet" and (rows := forget_tables.remove(path, traces, said)):
            _changed(path, root, outcome, rows)


def remove_words(root: Path, traces: Traces, said: Traces, outcome: Outcome) -> None:
    """Remove a client from journals and records of a directory, and their words from its texts.

    Args:
        root: a run directory, or a directory of exports or of caches.
        traces: of the client, after `learn`.
        said: `traces`, and what `remove_rows` found in all directories.
        outcome: of `seen`; receives what is done.

    Raises:
        InputError: a file is damaged or cannot be written.
    """
    for path in files(root):
        if path.name == forget_exports.KEY:
            for changed, rows in forget_exports.remove(path, traces):
                _changed(changed, root, outcome, rows)
    for path in files(root):
        if path.suffix in (".jsonl", ".json") and path.name not in (AUDIT, MANIFEST):
            _records(path, root, traces, outcome)
    for path in files(root):
        if path.suffix in _TEXTS:
            _text(path, root, said, outcome)
        elif path.suffix not in (".parquet", ".jsonl", ".json", *WEIGHTS) and holds(path, traces):
            outcome.kept.append(str(path.relative_to(root)))
    for path in sorted(root.rglob("batches/state.json")):
        outcome.provider_files |= records.read_json(path).get("provider_files", {})


def learn(root: Path, traces: Traces) -> None:
    """Add the client's words, found by the id, their conversations, and the keys of rows about them.

    What is found may lead to more: call it until `traces.size` stays.

    Raises:
        InputError: a Parquet file is damaged.
    """
    for path in files(root):
        if path.suffix == ".parquet":
            forget_tables.learn(path, traces)
        elif path.suffix in (".jsonl", ".json") and path.name not in (AUDIT, MANIFEST):
            _learn_records(path, traces)
        if path.name == forget_exports.KEY:
            forget_exports.learn(path, traces)


def _learn_records(path: Path, traces: Traces) -> None:
    """Add the client's conversations in a journal or a JSON file."""
    content = path.read_bytes()
    if not traces.may_be_in(content):
        return
    lines = io.BytesIO(content).readlines() if path.suffix == ".jsonl" else [content]
    for line in filter(traces.within, lines):
        with contextlib.suppress(ValueError):  # damaged: it is masked as text
            for context in _conversations_in(json.loads(line)):
                if traces.surely_within(context.text):
                    traces.add_context(context.text)


def _conversations_in(value: Any) -> Iterator[Context]:
    """The conversations in a JSON value: texts in stored form, and lists of messages."""
    found = None
    if isinstance(value, str):
        found = Context.stored(value)
    elif isinstance(value, list) and all(_is_message(entry) for entry in value):
        found = turns.of_messages(value)
    if found is not None and found.is_conversation:
        yield found
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    for one in inner:
        yield from _conversations_in(one)


def _is_message(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("role", "content"))


def audit(root: Path, outcome: Outcome) -> None:
    """Append what was done to the directory's `AUDIT`, without any of the client's words or ids."""
    line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(outcome), "files": len(outcome.files)}
    before = (root / AUDIT).read_bytes() if (root / AUDIT).exists() else b""
    storage.write_file(root / AUDIT, lambda file: file.write(before + json.dumps(line).encode() + b"\n"))


def _records(path: Path, root: Path, traces: Traces, outcome: Outcome) -> None:
    """Remove the client's lines from a journal, or entries from a JSON file."""
    content = path.read_bytes()
    if not traces.may_be_in(content):
        return
    if path.suffix == ".jsonl":
        lines = io.BytesIO(content).readlines()  # `splitlines` also ends them elsewhere
        about = [traces.within(line.decode("utf-8", "replace")) for line in lines]
        kept = [without_words(line) if gone else line for line, gone in zip(lines, about, strict=True)]
        rows, cleaned = sum(about), b"".join(kept)
    else:
        rows, cleaned = 0, _json_without(content, traces)
    if cleaned != content:
        storage.write_file(path, lambda file: file.write(cleaned))
        _changed(path, root, outcome, rows)


def _json_without(content: bytes, traces: Traces) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:  # damaged: as text
        return traces.masked(content.decode("utf-8", "replace")).encode()
    cleaned = traces.removed_from(value)
    return content if cleaned == value else json.dumps(cleaned, indent=1).encode() + b"\n"


def _text(path: Path, root: Path, said: Traces, outcome: Outcome) -> None:
    """Mask the client's words, and what models said to them, in a report or an export."""
    content = path.read_bytes()
    if not said.may_be_in(content):
        return
    text = content.decode("utf-8", "surrogateescape")
    if (masked := said.masked(text)) != text:
        storage.write_file(path, lambda file: file.write(masked.encode("utf-8", "surrogateescape")))
        _changed(path, root, outcome, 0)


def _changed(path: Path, root: Path, outcome: Outcome, rows: int) -> None:
    outcome.rows += rows
    outcome.files.append(str(path.relative_to(root)))
    for directory in path.parents:
        if (directory / MANIFEST).exists():
            manifests.seal(directory)
        if directory == root:
            break
