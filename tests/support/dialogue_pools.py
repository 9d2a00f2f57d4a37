"""Pools of simulated engines and scorers for dialogues: what they say depends on prompts and seeds alone."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.simulate import Client, Simulate
from psyco_ray.config.training import Job, Prompts, Sampling
from psyco_ray.data.speeches import shared_tokenizer
from psyco_ray.data.splits import speech_id
from psyco_ray.models import templates
from psyco_ray.rollout.scorer import REFERENCE, GroupScores
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, Prompt, Response, Row
from psyco_ray.training.dialogue_stages import Dialogues
from psyco_ray.training.pipeline import SamplingPipeline

SPEECHES = [f"I have not slept well since the move number {number}." for number in range(6)]


class StoppedError(Exception):
    """A run that is stopped between two items."""


def job(path: Path, model: Path, **simulate: object) -> Job:
    """A job whose policy and client are one tiny model."""
    return Job(
        run_dir=str(path / "run"),
        model=str(model),
        prompts=Prompts(respond="respond-small"),
        sampling=Sampling(responses=3, max_tokens=32),
        rollouts={"speeches_per_item": 4, "max_model_len": 1024},
        simulate=Simulate(
            client=Client(
                model=str(model),
                prompt="client-few-shot",
                max_tokens=24,
                rollouts={"speeches_per_item": 5, "max_model_len": 1024},
            ),
            **simulate,
        ),
    )


def rows(settings: Job) -> list[Row]:
    """SPEECHES as rows of the SPEECHES table."""
    prompt, tokenizer = load_prompt(settings.prompts), shared_tokenizer(settings.model, ())
    return [
        {
            "speech_id": speech_id(text),
            "speech": text,
            "prompt_ids": templates.conversation_ids(tokenizer, prompt_messages(prompt, text)),
        }
        for text in SPEECHES
    ]


def word(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


class Engines:
    """A pool of engines.

    `asked` has every prompt that was sampled. `say` makes a text of a prompt and the number of the response; prompts
    for which `dies` is true kill their actors; after `items` work items the run is stopped.
    """

    def __init__(
        self,
        name: str,
        say: Callable[[Prompt, int], str] | None = None,
        dies: Callable[[Prompt], bool] = lambda _: False,
        items: int | None = None,
    ) -> None:
        self.asked: list[Prompt] = []
        self._name, self._say, self._dies, self._items = name, say, dies, items

    def stream(self, method: object, items: Iterator, on_failed: Callable, split: Callable, **_: object) -> Iterator:
        for request in items:
            if self._items is not None:
                if not self._items:
                    raise StoppedError
                self._items -= 1
            for alone in split(request):
                [prompt] = alone.item.prompts
                if self._dies(prompt):
                    on_failed(alone, "the actor died of it twice")
                    continue
                self.asked.append(prompt)
                responses = tuple(self._response(prompt, number) for number in range(request.responses))
                yield Group(prompt, responses, request.version), 0.0

    def _response(self, prompt: Prompt, number: int) -> Response:
        text = (
            self._say(prompt, number) if self._say else f"{self._name} {word(prompt.token_ids, prompt.seed, number)}."
        )
        return Response(text, tuple(range(1, 2 + len(text) % 7)), finished=True)


class Scorers:
    """A pool of scorers; a score depends on the messages and the response. `seen` has them all."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, ...], float] = {}

    def stream(self, method: object, items: Iterator, **_: object) -> Iterator:
        for batch in items:
            for group, messages in batch.groups:
                said = [message["content"] for message in messages]
                scores = {
                    model: tuple(self._score(model, [*said, response.text]) for response in group.responses)
                    for model in batch.names
                }
                yield GroupScores(group.prompt.speech_id, scores, 0.0)

    def _score(self, model: str, said: Sequence[str]) -> float:
        score = int(word(model, *said)[:6], 16) / 2**24  # as the tables store it
        if model != REFERENCE:
            self.seen[(model, *said)] = score
        return score


def dialogues(
    settings: Job, ledger: Ledger, policy: Engines, client: Engines, scorers: Scorers | None = None
) -> tuple[Dialogues, SamplingPipeline]:
    """The dialogues of a run with such pools, and their pipeline."""
    telemetry, models = Telemetry(settings, ledger), ("reward", "heldout")
    pipeline = SamplingPipeline(settings, ledger, telemetry, policy, scorers or Scorers(), models, client)  # type: ignore[arg-type]
    return Dialogues(settings, ledger, telemetry, pipeline, models), pipeline
