"""Profiles of simulated clients, drawn for the speeches of real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.run.hashing import key_of

TRAITS = ("mood", "stage", "goal", "resistance", "style")
"""What is drawn; each has a list of texts in the `profiles` entry of a prompts file."""


@dataclass(frozen=True)
class Profile:
    """The client that a model plays."""

    situation: str  # in the client's own words
    mood: str
    stage: str  # of change (Prochaska and DiClemente 1983)
    goal: str
    resistance: str
    style: str  # of talking


@dataclass(frozen=True)
class ProfileLists:
    """The texts that profiles are drawn from.

    Example:
        >>> lists = ProfileLists.of(PromptsFile("default"))
        >>> lists.draw(seed=0, speech_id="3f2a", context=Context.of("I cannot sleep.")).situation
        'I cannot sleep.'
    """

    texts: Mapping[str, Sequence[str]]  # by trait

    @classmethod
    def of(cls, prompts: PromptsFile) -> ProfileLists:
        """The lists of a prompts file.

        Raises:
            InputError: the file has no such lists.
        """
        return cls(prompts.lists("profiles", TRAITS))

    def draw(self, seed: int, speech_id: str, context: Context) -> Profile:
        """The profile of a client, which all dialogues from this context on share.

        Args:
            seed: of the job.
            speech_id: of the context; with the seed it decides what is drawn.
            context: what the client has said before the dialogue begins.
        """
        drawn = {
            trait: texts[int(key_of(seed, "profile", trait, speech_id), 16) % len(texts)]
            for trait, texts in self.texts.items()
        }
        return Profile(situation="\n\n".join(context.client_turns), **drawn)
