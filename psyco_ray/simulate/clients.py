"""What a model is asked to play a client, and the client's turn in its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from psyco_ray.config.contexts import THERAPIST, Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import Messages, PromptsFile, fill
from psyco_ray.config.simulate import Client
from psyco_ray.judge import outside_texts
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run.hashing import key_of
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply
from psyco_ray.simulate.profiles import TRAITS, Profile, ProfileLists

_OPENING = "user"  # the entry's text before the client's first turn
_CLIENT = r"(?:the\s+)?(?:client|patient|me)"
_OTHERS = r"(?:the\s+)?(?:(?:psycho)?therapist|counsell?or|psychologist|doctor|assistant|user|you)"
_MARKS = r"[*_#\s]*"  # of Markdown around a label
_MANNER = rf"{_MARKS}(?:\([^()\n]{{1,40}}\){_MARKS})?:"  # how it is said, such as (crying), and the colon
_OWN_LABEL = re.compile(rf"^{_MARKS}{_CLIENT}{_MANNER}{_MARKS}", re.IGNORECASE | re.MULTILINE)
_OTHER_LABEL = re.compile(rf"^{_MARKS}{_OTHERS}{_MANNER}", re.IGNORECASE | re.MULTILINE)
_LEAVING = (
    r"(?:\[\s*(?:the\s+)?(?:end|leaves)\b[^\]\n]*\]|[\[(<*]\s*(?:the\s+)?(?:session\s+ends?|ends?\s+(?:of\s+)?(?:the\s+)?session|"
    r"(?:client\s+)?leaves)\b[^\n\])>*]*[\])>*])"
)
_AROUND = r"[*_\"”».!]*"  # of a mark of the end
# at the end of the reply or alone on a line: within a sentence the words are the client's own
_END = re.compile(
    rf"(?:{_LEAVING}{_AROUND}\s*)+\Z|^[^\S\n]*[*_]*(?:{_LEAVING}{_AROUND}[^\S\n]*)+$", re.IGNORECASE | re.MULTILINE
)
_QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“"}
_SENTENCE = re.compile(r"[.!?…。！？][\"”»)]*(?=\s|$)")

ATTEMPTS = 3
"""Times that a client's model is asked for a turn before its dialogue fails."""


@dataclass(frozen=True)
class Questions:
    """What the clients of a job are asked.

    Example:
        >>> questions = Questions.of(job.simulate.client, "default", seed=0, outgoing=Outgoing(job.scrub, job.privacy))
        >>> messages = questions.messages(dialogue, dialogue.context)
    """

    client: Client
    prompt: Mapping[str, Any]
    lists: ProfileLists
    seed: int  # of the job
    outgoing: Outgoing

    @classmethod
    def of(cls, client: Client, prompts: str, seed: int, outgoing: Outgoing) -> Questions:
        """Read prompt and profiles.

        Args:
            client: of the job.
            prompts: a prompts file, or `default`.
            seed: of the job.
            outgoing: the terms on which texts are sent to the client's API.

        Raises:
            InputError: the client's prompt or the lists of profiles are invalid.
        """
        prompt, lists = load_client_prompt(prompts, client.prompt), ProfileLists.of(PromptsFile(prompts))
        return cls(client, prompt, lists, seed, outgoing)

    def check(self, tokenizer: Any) -> None:
        """Check that a model's chat template takes the prompt.

        Raises:
            InputError: it does not.
        """
        from psyco_ray.models import templates

        trial = Dialogue("", Context.of("I cannot sleep."), answers=[Answer("What keeps you awake?")])
        templates.check(tokenizer, self.messages(trial, trial.context))

    def messages(self, dialogue: Dialogue, context: Context) -> Messages:
        """What asks for the client's next turn; to an API as it is sent, scrubbed where the job says so.

        Args:
            dialogue: that waits for the client.
            context: of its last response, or what is left of it where it is too long.
        """
        profile = self.lists.draw(self.seed, dialogue.speech_id, dialogue.start)
        messages = client_messages(self.prompt, profile, context, dialogue.response)
        if (endpoint := self.client.endpoint) is None:
            return messages
        sent = [outside_texts.as_data(self.outgoing.text(endpoint, message["content"])) for message in messages]
        return [{**message, "content": text} for message, text in zip(messages, sent, strict=True)]


def load_client_prompt(file: str, entry: str) -> dict[str, Any]:
    """The prompt that asks for a client's turn.

    Args:
        file: a prompts file, or `default`.
        entry: its name there.

    Raises:
        InputError: the entry is missing; without examples, a placeholder of the profile is missing; or an example has
            no `reply`.
    """
    prompts = PromptsFile(file)
    prompt = prompts.entry(entry)
    if not isinstance(prompt, dict) or not isinstance(prompt.get(_OPENING), str) or not prompt[_OPENING].strip():
        raise InputError(
            f"prompts file {prompts.path}: {entry} has no user text, which stands before the client's turns"
        )
    examples = prompt.get("examples") or []
    for number, example in enumerate(examples, start=1):
        if not (isinstance(example.get("reply"), str) and example["reply"].strip()):
            raise InputError(f"prompts file {prompts.path}: example {number} of {entry} needs the text reply")
    texts = f"{prompt.get('system') or ''}\n{prompt[_OPENING]}"
    for placeholder in (f"{{{trait}}}" for trait in TRAITS):
        if placeholder not in texts and not examples:
            raise InputError(f"prompts file {prompts.path}: the texts of {entry} do not contain {placeholder}")
    return prompt


def client_messages(prompt: Mapping[str, Any], profile: Profile, context: Context, response: str) -> Messages:
    """The conversation that asks for a client's next turn. The roles are turned round: the client is the assistant.

    Args:
        prompt: of `load_client_prompt`.
        profile: of the client.
        context: before the response.
        response: the therapist's, which the client reacts to.
    """
    values = {f"{{{name}}}": text for name, text in asdict(profile).items()}
    system = [{"role": "system", "content": fill(prompt["system"], values)}] if prompt.get("system") else []
    opening = fill(prompt[_OPENING], values)
    examples: list[str] = []
    for example in prompt.get("examples") or ():
        examples += [opening, example["client"], example["response"], example["reply"]]
    spoken = [*examples, opening, *context.turns, response]
    return [*system, *({"role": ("user", THERAPIST)[place % 2], "content": said} for place, said in enumerate(spoken))]


def reply_of(text: str, finished: bool = True) -> Reply | None:
    """The client's turn in a model's answer.

    Labels and quotation marks around it are left out, and what the model says for the therapist, before or after it. A
    sentence that was cut is left out if another one precedes it. A client leaves who says that the session
    ends, in a mark at the end of the reply or alone on a line. An answer without a word of the client is no turn.

    Args:
        text: the answer, without reasoning.
        finished: whether it was not cut at the token limit.

    Returns:
        The turn; None where the answer has nothing that the client says.

    Example:
        >>> reply_of('Client: "I do not know."\\n\\nTherapist: What do you feel?')
        Reply(text='I do not know.', ended=False)
        >>> reply_of("This leads nowhere. [END]")
        Reply(text='This leads nowhere.', ended=True)
    """
    text = text.lstrip()
    find = _OWN_LABEL.search if _OTHER_LABEL.match(text) else _OWN_LABEL.match  # behind what it says for the therapist
    if label := find(text):
        text = text[label.end() :]
    for other in (_OTHER_LABEL, _OWN_LABEL):  # a model that goes on writes the next turns too
        if found := other.search(text):
            text, finished = text[: found.start()], True
    ended = _END.search(text)
    if ended:
        text, finished = text[: ended.start()], True
    if not finished and (ends := [match.end() for match in _SENTENCE.finditer(text)]):
        text = text[: ends[-1]]
    text = _unquoted(text.strip())
    return Reply(text, ended is not None) if text or ended else None


def reply_seed(seed: int, dialogue: str, turn: int, attempt: int = 1) -> int:
    """The seed of a client's turn.

    Args:
        seed: of the job.
        dialogue: its id, of speech and response.
        turn: of the policy, which the client reacts to.
        attempt: up to ATTEMPTS.
    """
    return int(key_of(seed, purpose_of(attempt), turn, dialogue), 16) % 2**31


def purpose_of(attempt: int) -> str:
    """What the seeds of an attempt are for."""
    return "client" if attempt == 1 else f"client-attempt-{attempt}"


def _unquoted(text: str) -> str:
    """A text without the quotation marks around the whole of it."""
    closing = _QUOTES.get(text[:1])
    inner = text[1:-1]
    if closing is not None and text[1:].endswith(closing) and closing not in inner and text[0] not in inner:
        return inner.strip()
    return text
