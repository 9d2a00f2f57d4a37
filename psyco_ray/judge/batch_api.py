"""A provider's batch API as another way to fill the journal: cheaper, and done within a day where its limits allow.

Calls that a batch leaves out or answers badly are sent one by one afterwards, as if they had not been in a batch.
"""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.judge.batch_state import BatchState, SentBatch
from psyco_ray.judge.calls import Answer, Call, InvalidResponseError, answer_of
from psyco_ray.judge.client import REFUSED, Client, RefusedError
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import cost_of

if TYPE_CHECKING:
    from openai.types import Batch

MAX_REQUESTS = 50_000  # per file, a limit of the API
MAX_BYTES = 100_000_000

_ENDED = {"completed", "expired", "cancelled"}

_log = logging.getLogger(__name__)


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
    client, sending = Client(endpoint), BatchState(state)
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

    def __init__(self, client: Client, state: BatchState, journal: Journal, outcome: BatchOutcome) -> None:
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
                await self._shrink(self._state.sent[0])
            validating = await self._poll()
            if self._state.sent:
                await asyncio.sleep(poll_s)

    async def _poll(self) -> bool:
        """Look at every batch in progress; returns whether one is not validated yet."""
        validating = False
        for sent in [sent for sent in self._state.sent if sent.batch_id is not None]:
            if sent.ended_files is not None:
                await self._forget(sent)
                continue
            batch_id = sent.batch_id or ""
            batch = await self._client.retried(functools.partial(self._client.api.batches.retrieve, batch_id))
            validating |= batch.status == "validating"
            if batch.status in _ENDED:
                await self._collect(sent, batch)
                self._full = False
            elif batch.status == "failed":
                problems = [(problem.code, problem.message) for problem in (batch.errors and batch.errors.data) or []]
                if not any(_is_limit(*problem) for problem in problems):
                    reason = self._said(sent, problems[0][1]) if problems else "no reason given"
                    await self._end(sent, batch)  # it costs nothing; the next run sends it again
                    raise InputError(f"batch {batch_id} was refused: {reason}")
                if not self._limited:
                    _log.info("the batch API queues no more at a time: %s", self._said(sent, problems[0][1]))
                self._limited = self._full = True
                self._state.postpone(sent)
        return validating

    async def _collect(self, sent: SentBatch, batch: Batch) -> None:
        speeches, path = self._state.speeches(sent), self._state.path(sent, "requests")
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                answers = await self._client.retried(functools.partial(self._client.api.files.content, file_id))
                for output in _outputs(answers.content, speeches):
                    key = output["custom_id"]
                    answer, problem = _read(output, functools.partial(self._clean, path, key))
                    self._enter(speeches.pop(key), key, answer, problem)
        if speeches:
            _note(self._outcome, len(speeches), f"batch {batch.status} without an answer")
        self._journal.sync()
        await self._end(sent, batch)

    def _said(self, sent: SentBatch, message: str | None) -> str:
        """A provider's message about a whole batch, without the texts of its requests."""
        return self._client.clean(message or "no reason given", _Sent(self._state.path(sent, "requests")))

    def _clean(self, path: Path, key: str, said: str) -> str:
        return self._client.clean(said, _texts(path)[key])

    def _enter(self, speech_id: str, key: str, answer: Answer | None, problem: str) -> None:
        """Write an answer to the journal."""
        outcome = self._outcome
        if answer is None:
            _note(outcome, 1, problem)
            return
        self._journal.add(speech_id, key, answer, cost_of(answer, self._client.endpoint))
        outcome.prompt_tokens += answer.prompt_tokens
        outcome.completion_tokens += answer.completion_tokens
        outcome.answered += answer.refused is None
        outcome.refused += answer.refused is not None

    async def _end(self, sent: SentBatch, batch: Batch) -> None:
        """Remove an ended batch, and its files at the provider: they hold clients' words."""
        files = (batch.input_file_id, batch.output_file_id, batch.error_file_id)
        sent.ended_files = [file_id for file_id in files if file_id is not None]
        self._state.provider_files |= dict.fromkeys(sent.ended_files, False)
        self._state.save()
        await self._forget(sent)

    async def _forget(self, sent: SentBatch) -> None:
        """Delete the files of a batch at the provider, and what is here of it."""
        for file_id in sent.ended_files or []:
            await self._delete(file_id)
        self._state.remove(sent)

    async def _delete(self, file_id: str) -> None:
        """Delete a file at the provider, or name it where the provider refuses."""
        try:
            await self._client.retried(functools.partial(_delete, self._client, file_id))
            self._state.provider_files[file_id] = True
        except (InputError, RefusedError) as error:
            _log.warning(
                f"the provider keeps file {file_id} with questions or answers of a batch ({error}); delete it there"
            )

    async def _shrink(self, sent: SentBatch) -> None:
        """Halve a batch that is too large for the limit by itself; a single call is left to be sent as such."""
        self._full = False
        file_id = sent.file_id
        if len(self._state.speeches(sent)) > 1:
            self._state.halve(sent)
        else:
            _note(self._outcome, 1, "a call above the limit of queued tokens")
            self._state.remove(sent)
        if file_id is not None:
            await self._delete(file_id)


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


async def _delete(client: Client, file_id: str) -> None:
    """Delete a file at the provider, unless that is done."""
    import openai

    try:
        await client.api.files.delete(file_id)
    except openai.NotFoundError:
        return


async def _submit(client: Client, state: BatchState, sent: SentBatch) -> bool:
    """Upload the requests of a batch, unless that is done, and start it; returns whether the provider takes it now."""
    path = state.path(sent, "requests")
    if sent.file_id is None:
        file = await client.retried(lambda: client.api.files.create(file=path, purpose="batch"), _Sent(path))
        sent.file_id = file.id
        state.provider_files[file.id] = False
        state.save()
    file_id = sent.file_id
    sent.batch_id = await client.retried(lambda: _create_batch(client, file_id), _Sent(path))
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


def _outputs(lines: bytes, speeches: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The lines of an output file that answer one of the calls; others are blank, cut, repeated or of another form."""
    for line in io.BytesIO(lines):
        try:
            output = json.loads(line)
        except ValueError:  # its call is sent again
            continue
        if isinstance(output, dict) and output.get("custom_id") in speeches:
            yield output


@functools.lru_cache(maxsize=1)
def _texts(path: Path) -> dict[str, list[str]]:
    """The texts that the requests of a batch send, by key."""
    with open(path, "rb") as file:
        requests = [json.loads(line) for line in file]
    return {row["custom_id"]: [message["content"] for message in row["body"]["messages"]] for row in requests}


@dataclass(frozen=True)
class _Sent:
    """All texts that the requests of a batch send; the file is read only where a message has to be cleaned of them."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(_texts(self.path).values())


def _read(output: dict[str, Any], clean: Callable[[str], str]) -> tuple[Answer | None, str]:
    """The answer in a line of a batch's output, or the reason why it has none."""
    response = _object(output.get("response"))
    status, body = response.get("status_code"), _object(response.get("body"))
    said = _object(output.get("error")) or _object(body.get("error"))
    problem = clean(str(said.get("message")))
    if status in REFUSED:
        return Answer("", True, 0, 0, refused=f"refused by the server ({status}): {problem}"), ""
    if status != 200:
        return None, problem
    try:
        return answer_of(body), ""
    except InvalidResponseError as error:
        return None, clean(str(error))


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, empty where a server sends something else."""
    return value if isinstance(value, dict) else {}


def _note(outcome: BatchOutcome, calls: int, reason: str) -> None:
    outcome.failed += calls
    if reason not in outcome.notes:
        outcome.notes.append(reason)
