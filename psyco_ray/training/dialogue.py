"""Dialogues of a training run: prompts, the rewards that rank them, and their table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.run.schemas import DIALOGUES
from psyco_ray.run.types import Group, Row
from psyco_ray.simulate.dialogue import Answer, Dialogue

_log = logging.getLogger(__name__)


NO_ROOM = "its last turn does not fit the context length"
"""Why a dialogue is given up whose prompt is too long without its older turns."""

_MOST_WITHOUT_ROOM = 0.5  # of a stage's dialogues


class PromptRows:
    """Dialogues as rows of the SPEECHES table. Their prompts are rendered when an item is formed.

    A dialogue without a prompt, because the last turn alone does not fit, has no row and is given up.
    """

    def __init__(self, dialogues: Sequence[Dialogue], prompt_of: Callable[[Dialogue], list[int] | None]) -> None:
        """Name the dialogues; nothing is rendered yet.

        Args:
            dialogues: whose next turn is asked for.
            prompt_of: the token ids of a dialogue's prompt; None: there is no room.
        """
        self._dialogues, self._prompt_of = dialogues, prompt_of

    def __len__(self) -> int:
        return len(self._dialogues)

    def __iter__(self) -> Iterator[Row]:
        for dialogue in self._dialogues:
            if (prompt_ids := self._prompt_of(dialogue)) is None:
                dialogue.failed = NO_ROOM
            else:
                yield {"speech_id": dialogue.key, "speech": dialogue.context.text, "prompt_ids": prompt_ids}


def check_room(name: str, dialogues: Sequence[Dialogue], way_out: str) -> None:
    """Say how many dialogues of a stage have been given up because their prompts are too long.

    Args:
        name: of the stage.
        dialogues: whose next turn the stage has asked for.
        way_out: the setting to change.

    Raises:
        InputError: more than half of them, so that what is left says little.
    """
    given_up = sum(dialogue.failed == NO_ROOM for dialogue in dialogues)
    if not given_up:
        return
    sentence = (
        f"{name}: {given_up} of {len(dialogues)} dialogues are given up, because the prompt with their last turn alone "
        f"is too long; {way_out}"
    )
    if given_up > _MOST_WITHOUT_ROOM * len(dialogues):
        raise InputError(sentence)
    _log.warning(sentence)


def mean_rewards(dialogues: Iterable[Dialogue], model: str = "reward") -> dict[int, float]:
    """The mean score by a reward model at each turn of the policy, over the dialogues that were scored there."""
    rewards: dict[int, list[float]] = {}
    for dialogue in dialogues:
        for turn, reward in dialogue.rewards(model).items():
            rewards.setdefault(turn, []).append(reward)
    return {turn: sum(found) / len(found) for turn, found in rewards.items()}


def values_of(
    dialogues: Sequence[Dialogue], reduce: Literal["mean", "last"], means: Mapping[int, float]
) -> tuple[float, ...]:
    """What ranks the dialogues of a group: the mean of their rewards, or the last one.

    Rewards of later turns differ from those of earlier ones. A dialogue that ends before others of its group gets, for
    each turn that it lacks, the mean of that turn, as far above or below as its own turns are. So ending a dialogue
    neither raises nor lowers the rank by itself.

    Args:
        dialogues: from the responses of one group on.
        reduce: as `simulate.reduce`.
        means: of `mean_rewards`, over all groups.
    """
    rewards = [dialogue.rewards() for dialogue in dialogues]
    longest = max(turn for of in rewards for turn in of)
    return tuple(
        value_of(of, [*range(min(of), longest + 1)] if reduce == "mean" else [longest], means) for of in rewards
    )


def value_of(rewards: Mapping[int, float], turns: Sequence[int], means: Mapping[int, float]) -> float:
    """The mean reward of a dialogue over turns of the policy.

    A dialogue that lacks some gets their means, as far above or below as its own turns are; one without any of them is
    valued by its last turn.

    Args:
        rewards: of the dialogue, by turn.
        turns: whose rewards count.
        means: of the rewards of all dialogues, by turn.
    """
    has = [turn for turn in turns if turn in rewards] or [max(rewards)]
    own = sum(rewards[turn] for turn in has) / len(has)
    if has == [*turns]:
        return own
    expected, wanted = (sum(means[turn] for turn in of) / len(of) for of in (has, turns))
    return own - expected + wanted


def branches(before: Dialogue, group: Group) -> list[Dialogue]:
    """The dialogues that begin with each response of a group, in its order.

    Args:
        before: the dialogue up to the group's context.
        group: of responses to it.
    """
    return [
        replace(before, index=index, answers=[*before.answers, Answer.of(group, index)], replies=[*before.replies])
        for index in range(len(group.responses))
    ]


def table_of(dialogues: Iterable[Dialogue], version: int, client: Mapping[str, Any]) -> pa.Table:
    """Dialogues as rows of the DIALOGUES table.

    Args:
        dialogues: in the order of the rows.
        version: of the policy.
        client: `client` and `client_digest`.
    """
    rows = [
        {
            "speech_id": dialogue.speech_id,
            "index": dialogue.index,
            "speech": dialogue.start.text,
            "responses": [answer.text for answer in dialogue.answers],
            "finished": [answer.finished for answer in dialogue.answers],
            "replies": [reply.text for reply in dialogue.replies],
            "reward": [answer.scores.get("reward") for answer in dialogue.answers],
            "heldout": [answer.scores.get("heldout") for answer in dialogue.answers],
            "left": dialogue.left,
            "failed": dialogue.failed,
            "policy_version": version,
            **client,
        }
        for dialogue in dialogues
    ]
    return pa.Table.from_pylist(rows, schema=DIALOGUES)
