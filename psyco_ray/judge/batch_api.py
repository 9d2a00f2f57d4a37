"""A provider's batch API as another way to fill the journal: cheaper, and done within a day where its limits allow.

Calls that a batch leaves out or answers badly are sent one by one afterwards, as if they had not been in a batch.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.judge.client import REFUSED, Answer, Call, Client, InvalidResponseError, RefusedError, answer_of
from psyco_ray.judge.journal import Journal

if TYPE_CHECKING:
    from openai.types import Batch

MAX_REQUESTS = 50_000  # per file, a limit of the API
MAX_BYTES = 100_000_000

_ENDED = {"completed", "expired", "cancelled"}

_log = logging.getLogger(__name__)


@dataclass
class _SentBatch:
    """A batch in progress: name of its local files, and the server's ids."""

    name: str
    file_id: str | None = None
    batch_id: str | None = None


@dataclass
class BatchOutcome:
    """Calls that `run_batch` sent, and the answers to these and to earlier ones."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0  # to be sent one by one
    prompt_tokens: int = 0  # of all answers
    completion_tokens: int = 0
    notes: list[str] = field(default_factory=list)  # distinct reasons of failures


async def run_batch(
    endpoint: Endpoint, calls: Iterable[tuple[str, Call]], journal: Journal, state: Path, poll_s: float = 60.0
) -> BatchOutcome:
    """Send calls in batches, wait for the answers and write them to the journal.

    A killed run resumes its batches: `state` names them before the provider does.

    Args:
        endpoint: the API.
        calls: speech ids and calls. Calls in the journal or in a batch in progress are skipped.
        journal: receives the answers.
        state: a JSON file; the requests of batches in progress are stored beside it.
        poll_s: seconds between requests for the status of a batch.

    Raises:
        UnavailableError: the server failed repeatedly.
        InputError: the server refuses the key, the model or a batch.
    """
    client, sending = Client(endpoint), _State(state)
    outcome = BatchOutcome()
    try:
        known = {key for sent in sending.sent for key in sending.speeches(sent)}
        for rows in _files(_missing(endpoint, calls, journal, known), client):
            outcome.sent += len(rows)
            sending.add(rows)
        await _Exchange(client, sending, journal, outcome).run(poll_s)
    except RefusedError as error:
        raise InputError(f"the batch API of {endpoint.model}: {error}; set via to calls, which needs none") from None
    finally:
        await client.close()
    return outcome


class _Exchange:
    """Submits batches, as many as the provider queues at a time, and collects their answers.

    A provider limits the tokens that all batches in progress hold. It refuses a batch above that when it validates it,
    which costs nothing: the batch is submitted again once another one has ended, and halved if none is in progress.
    """

    def __init__(self, client: Client, state: _State, journal: Journal, outcome: BatchOutcome) -> None:
        self._client, self._state, self._journal, self._outcome = client, state, journal, outcome
        self._limited = self._full = False  # a batch was refused for the limit; since then none has ended

    async def run(self, poll_s: float) -> None:
        """Return when every batch has ended and its answers are in the journal."""
        validating = False
        while self._state.sent:
            for sent in self._state.sent:
                if sent.batch_id is None and not self._full and not (self._limited and validating):
                    validating = await _submit(self._client, self._state, sent)
                    self._limited |= not validating
                    self._full |= not validating
            if self._full and not any(sent.batch_id for sent in self._state.sent):
                self._shrink(self._state.sent[0])
            validating = await self._poll()
            if self._state.sent:
                await asyncio.sleep(poll_s)

    async def _poll(self) -> bool:
        """Look at every batch in progress; returns whether one is not validated yet."""
        validating = False
        for sent in [sent for sent in self._state.sent if sent.batch_id is not None]:
            batch_id = sent.batch_id or ""
            batch = await self._client.retried(functools.partial(self._client.api.batches.retrieve, batch_id))
            validating |= batch.status == "validating"
            if batch.status in _ENDED:
                await self._collect(sent, batch)
                self._full = False
            elif batch.status == "failed":
                problems = [(problem.code, problem.message) for problem in (batch.errors and batch.errors.data) or []]
                if not any(_is_limit(*problem) for problem in problems):
                    self._state.remove(sent)  # it costs nothing; the next run sends it again
                    reason = problems[0][1] if problems else "no reason given"
                    raise InputError(f"batch {batch_id} was refused: {reason}")
                if not self._limited:
                    _log.info("the batch API queues no more at a time: %s", self._client.clean(str(problems[0][1])))
                self._limited = self._full = True
                self._state.postpone(sent)
        return validating

    async def _collect(self, sent: _SentBatch, batch: Batch) -> None:
        speeches = self._state.speeches(sent)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                answers = await self._client.retried(functools.partial(self._client.api.files.content, file_id))
                _enter(answers.content, speeches, self._client, self._journal, self._outcome)
        if speeches:
            _note(self._outcome, len(speeches), f"batch {batch.status} without an answer")
        self._journal.sync()
        self._state.remove(sent)

    def _shrink(self, sent: _SentBatch) -> None:
        """Halve a batch that is too large for the limit by itself; a single call is left to be sent as such."""
        self._full = False
        if len(self._state.speeches(sent)) > 1:
            self._state.halve(sent)
        else:
            _note(self._outcome, 1, "a call above the limit of queued tokens")
            self._state.remove(sent)


class _State:
    """The batches in progress, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"next": 0, "batches": []}
        self._next: int = state["next"]
        self.sent = [_SentBatch(**entry) for entry in state["batches"]]

    def add(self, rows: list[tuple[str, str, bytes]]) -> None:
        """Store the requests of a new batch: key, speech id and line."""
        self._write(rows)
        self.save()

    def _write(self, rows: list[tuple[str, str, bytes]]) -> None:
        sent = _SentBatch(f"{self._path.stem}-{self._next:03}")
        with open(self.path(sent, "requests"), "wb") as file:
            file.writelines(line for _, _, line in rows)
        with open(self.path(sent, "speeches"), "w", encoding="utf-8") as speeches:
            json.dump({key: speech_id for key, speech_id, _ in rows}, speeches)
        self._next += 1
        self.sent.append(sent)

    def postpone(self, sent: _SentBatch) -> None:
        """Submit a refused batch again later, from the same file."""
        sent.batch_id = None
        self.save()

    def halve(self, sent: _SentBatch) -> None:
        """Replace a batch by two of half its requests, which come first."""
        speeches = self.speeches(sent)
        lines = self.path(sent, "requests").read_bytes().splitlines(keepends=True)
        rows = [(key, speeches[key], line) for line in lines for key in [json.loads(line)["custom_id"]]]
        others = [other for other in self.sent if other is not sent]
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            self._write(part)
        self.sent = [*self.sent[-2:], *others]
        self.save()
        self._remove_files(sent)

    def remove(self, sent: _SentBatch) -> None:
        """Remove a batch that ended."""
        self.sent.remove(sent)
        self.save()
        self._remove_files(sent)

    def _remove_files(self, sent: _SentBatch) -> None:
        for what in ("requests", "speeches"):
            self.path(sent, what).unlink(missing_ok=True)

    def speeches(self, sent: _SentBatch) -> dict[str, str]:
        """The speech id of each of the batch's keys."""
        speeches: dict[str, str] = json.loads(self.path(sent, "speeches").read_text(encoding="utf-8"))
        return speeches

    def path(self, sent: _SentBatch, what: str) -> Path:
        """A local file of a batch: its `requests` or its `speeches`."""
        return self._path.with_name(f"{sent.name}.{what}.jsonl")

    def save(self) -> None:
        """Write the state atomically."""
        unfinished = self._path.with_name(f".{self._path.name}.partial")
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump({"next": self._next, "batches": [vars(sent) for sent in self.sent]}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)


def _missing(
    endpoint: Endpoint, calls: Iterable[tuple[str, Call]], journal: Journal, known: set[str]
) -> Iterator[tuple[str, str, Call]]:
    """Key, speech id and call of the calls that neither the journal nor a batch holds."""
    loaded: set[str] = set()
    for speech_id, call in calls:
        if (shard := speech_id[:2]) not in loaded:
            loaded.add(shard)
            known.update(journal.load(shard))
        key = call.key(endpoint)
        if key not in known:
            known.add(key)
            yield key, speech_id, call


def _files(missing: Iterable[tuple[str, str, Call]], client: Client) -> Iterator[list[tuple[str, str, bytes]]]:
    """Key, speech id and request line of calls, grouped by file."""
    rows: list[tuple[str, str, bytes]] = []
    size = 0
    for key, speech_id, call in missing:
        request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": client.body(call)}
        line = json.dumps(request).encode() + b"\n"
        if rows and (len(rows) == MAX_REQUESTS or size + len(line) > MAX_BYTES):
            yield rows
            rows, size = [], 0
        rows.append((key, speech_id, line))
        size += len(line)
    if rows:
        yield rows


async def _submit(client: Client, state: _State, sent: _SentBatch) -> bool:
    """Upload the requests of a batch, unless that is done, and start it; returns whether the provider takes it now."""
    if sent.file_id is None:
        file = await client.retried(lambda: client.api.files.create(file=state.path(sent, "requests"), purpose="batch"))
        sent.file_id = file.id
        state.save()
    file_id = sent.file_id
    sent.batch_id = await client.retried(lambda: _create_batch(client, file_id))
    state.save()
    return sent.batch_id is not None


async def _create_batch(client: Client, file_id: str) -> str | None:
    """The batch of a file, created unless it exists: a lost reply to its creation must not cost twice.

    None: the provider's limit does not let it.
    """
    import openai

    async for batch in client.api.batches.list(limit=100):
        if batch.input_file_id == file_id and batch.status != "failed":
            return batch.id
    try:
        created = await client.api.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    except openai.APIStatusError as error:
        if not _is_limit(error.code, error.message):
            raise
        return None
    return created.id


def _is_limit(code: str | None, message: str | None) -> bool:
    """Whether a batch was refused because of the tokens that all batches in progress may hold."""
    return code == "token_limit_exceeded" or "enqueued" in (message or "").lower()


def _enter(lines: bytes, speeches: dict[str, str], client: Client, journal: Journal, outcome: BatchOutcome) -> None:
    """Write the answers of an output file to the journal, and remove their keys from `speeches`."""
    for line in io.BytesIO(lines):
        output = json.loads(line)
        if (speech_id := speeches.pop(output["custom_id"], None)) is None:
            continue  # a repeated line
        answer, problem = _read(output, client)
        if answer is None:
            _note(outcome, 1, problem)
            continue
        journal.add(speech_id, output["custom_id"], answer)
        outcome.prompt_tokens += answer.prompt_tokens
        outcome.completion_tokens += answer.completion_tokens
        outcome.answered += answer.refused is None
        outcome.refused += answer.refused is not None


def _read(output: dict[str, Any], client: Client) -> tuple[Answer | None, str]:
    """The answer in a line of a batch's output, or the reason why it has none."""
    response = output.get("response") or {}
    status, body = response.get("status_code"), response.get("body") or {}
    problem = client.clean(str((output.get("error") or body.get("error") or {}).get("message")))
    if status in REFUSED:
        return Answer("", True, 0, 0, refused=f"refused by the server ({status}): {problem}"), ""
    if status != 200:
        return None, problem
    try:
        return answer_of(body), ""
    except InvalidResponseError as error:
        return None, client.clean(str(error))


def _note(outcome: BatchOutcome, calls: int, reason: str) -> None:
    outcome.failed += calls
    if reason not in outcome.notes:
        outcome.notes.append(reason)
