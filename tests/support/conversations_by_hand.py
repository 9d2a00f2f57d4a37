"""Contexts of conversations, made of packaged speeches and responses."""

from psyco_ray.config.contexts import Context
from psyco_ray.data.splits import speech_id
from support.policy_evaluation import SAMPLE


def dialogue(number: int, turns: int) -> Context:
    """The context of a conversation's last turn; the same number gives the same conversation."""
    context = Context((SAMPLE[number]["question"],))
    for turn in range(1, turns):
        row = SAMPLE[(number + 17 * turn) % len(SAMPLE)]
        context = context.answered(f"I hear you ({number}, {turn}). {row['chosen']}", f"Yes, {row['question']}")
    return context


def context_rows(lengths: list[int]) -> list[dict]:
    """Rows of an evaluation: of each conversation the contexts of all its turns."""
    return [
        {
            "speech_id": speech_id(text),
            "speech": text,
            "opening": dialogue(number, 1).opening,
            "conversation": str(number),
            "turn": turn,
            "topic": "Social Issues" if number % 2 else None,
            "crisis": False,
        }
        for number, length in enumerate(lengths)
        for turn in range(1, length + 1)
        for text in (dialogue(number, turn).text,)
    ]
