"""Whose words a message list or a text holds: one table of roles and one of chat layouts.

Example:
    >>> first_turn([{"from": "system", "value": "Be kind."}, {"from": "human", "value": "I cannot sleep."}])
    'I cannot sleep.'
    >>> client_words("Patient: I cannot sleep.\\nDoctor: Since when?")
    'I cannot sleep.'
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

ROLE_KEYS = ("role", "from", "speaker", "author", "interlocutor", "sender")
"""Keys of a message, or columns of a table, that name the speaker."""
TEXT_KEYS = ("content", "value", "text", "utterance", "message")
"""Keys of a message that hold what is said."""
LIST_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
"""Keys of an object that hold its messages."""

_CLIENTS = "user human client patient seeker usr customer prompter asker caller texter visitor"
_CLIENTS += " cliente paciente usuario usuário utilisateur nutzer klient klientin patientin patiente"
_CLIENTS += " 用户 来访者 求助者 患者 病人 пользователь клиент пациент مستخدم عميل उपयोगकर्ता ग्राहक"
_THERAPISTS = "assistant therapist counsellor counselor supporter doctor dr psychologist psychiatrist psychotherapist"
_THERAPISTS += " listener clinician bot chatbot gpt chatgpt ai llm claude gemini llama gemma phi mistral vicuna"
_THERAPISTS += " terapeuta psicólogo psicóloga asistente assistente thérapeute psychologue berater beraterin therapeut"
_THERAPISTS += (
    " therapeutin assistent 助手 咨询师 心理咨询师 医生 ассистент терапевт психолог مساعد معالج طبيب सहायक चिकित्सक"
)
_STRONG = dict.fromkeys(_CLIENTS.split(), "user") | dict.fromkeys(_THERAPISTS.split(), "assistant")
"""Names that are a speaker's wherever they stand."""
_ASKS = "q question instruct instruction input prompt query person poster op me pt h u c p"
_REPLIES = "a answer response output completion model agent helper expert sys reply comment coach th t d"
_WEAK = dict.fromkeys(_ASKS.split(), "user") | dict.fromkeys(_REPLIES.split(), "assistant")
_SYSTEM = dict.fromkeys(("system", "developer", "system prompt", "system message"), "system")
_ROLES = _STRONG | _WEAK | _SYSTEM
_OPENING = {*_CLIENTS.split(), "q", "question", "instruct", "instruction", "input"}  # labels that may stand alone
_LETTERS = ({"q", "a"}, {"c", "t"}, {"p", "t"}, {"p", "d"}, {"h", "a"}, {"u", "a"})  # labels of one letter go in pairs
_DETERMINERS = {"my", "his", "her", "our", "their", "your", "the", "a", "an", "this", "one", "another", "new", "old"}
_FIELDS = {"title", "body", "text", "post", "age", "gender", "sex", "edit", "update", "tldr", "note", "ps", "subject"}
_FIELDS |= {"topic", "date", "location", "background", "context", "summary", "problem", "situation", "name", "country"}

_NAME = r"[\w -]{1,30}?"
_TAGS = "|".join(map(re.escape, [*_STRONG, "instruction", "question", "prompt", "answer", "response"]))
_MARKERS: tuple[tuple[str, str | None], ...] = (
    (rf"<\|im_start\|>\s*(?P<name>{_NAME})\s*(?:\n|<\|im_sep\|>|(?=:))", None),  # ChatML, Phi-4
    (rf"<\|start_header_id\|>\s*(?P<name>{_NAME})\s*<\|end_header_id\|>", None),  # Llama 3
    (rf"<(?:start_of_turn|\|turn)>\s*(?P<name>{_NAME})\s*\n", None),  # Gemma
    (rf"<\|start\|>\s*(?P<name>{_NAME})\s*(?:<\|channel\|>\w+)?<\|message\|>", None),  # Harmony
    (rf"<[|｜]\s*(?P<name>{'|'.join(map(re.escape, [*_STRONG, 'system']))})\s*[|｜]>", None),  # Phi-3, Zephyr, DeepSeek
    (r"<\|(?P<name>USER|CHATBOT|SYSTEM)_TOKEN\|>", None),  # Command R
    (rf"\[\|\s*(?P<name>{_NAME})\s*\|\]", None),  # Baize
    (rf"<{{1,2}}\s*(?P<name>{_TAGS})\s*>{{1,2}}", None),  # <HUMAN>:
    (rf"\[(?P<name>{_TAGS})\](?!\s*:)(?=[^\[]*\[/)", None),  # [USER] … [/USER]
    (r"\[INST\]|<</SYS>>", "user"),  # Llama 2, Mistral
    (r"\[/INST\]", "assistant"),
    (r"<<SYS>>|\[SYSTEM_PROMPT\]", "system"),
    (r"<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|return|END_OF_TURN_TOKEN)\|>", "end"),
    (rf"<end_of_turn>|<turn\|>|<eos>|\[/SYSTEM_PROMPT\]|[<\[]/\s*(?:{_TAGS})\s*[>\]]", "end"),
)
_TOKENS = tuple((re.compile(pattern, re.IGNORECASE), role) for pattern, role in _MARKERS)
_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>|<(?:start|end|begin)_of_\w+>|\[/?(?:INST|SYS)\]|<</?SYS>>", re.IGNORECASE
)
_BEGIN = re.compile(
    r"^(?:\s|<s>|<bos>|<\|(?:begin_of_text|startoftext|endoftext)\|>|<｜begin▁of▁sentence｜>)+", re.IGNORECASE
)

_END = re.compile(r"(?:\s|</?s>|\|\||//)+$")

_LABEL = re.compile(  # the name of a speaker at the beginning of a line
    r"""^[ \t]*(?:[\[(]?\d[\d:., -]*[\])]?[ \t]*)?(?P<hashes>\#{0,6})[ \t]*[*_\[(<{"“>-]{0,3}[ \t]*
    (?P<name>[^\W\d_][\w.'’/ -]{0,39}?)(?:[ \t]*[\[(][^\])\n]{0,30}[\])])?[ \t]*[*_\])}>"”]{0,3}[ \t]*
    (?::|：|>{1,2}|[ ][-–—][ ]|(?P<alone>$))[*_ \t]*""",
    re.VERBOSE | re.MULTILINE,
)
_CAPITALISED = [form for name in [*_STRONG, *_WEAK] if name.isascii() for form in (name.capitalize(), name.upper())]
_CAPITALISED += ["user", "human", "assistant", "bot", "chatbot", "gpt", "chatgpt", "ai"]
_INLINE = re.compile(  # or within one, with a capital
    rf"(?:^|(?P<before>[^\s])\s+|(?<=>))(?P<name>{'|'.join(_CAPITALISED)}|"
    r"ChatGPT|Dr\.? [A-Z]\w+)(?:\s?\d{1,2})?\s?:(?=\s)"
    rf"|(?P<script>{'|'.join(name for name in _STRONG if not name.isascii())})\s?[:：]"
)
_SENTENCE_END = ".!?…\"”’')>*"


class UnknownSpeakerError(ValueError):
    """It cannot be told which words are the client's; the message is the reason, without any of them."""


@dataclass(frozen=True)
class _Mark:
    """A marker or label: where it begins and where its speaker's words begin."""

    start: int
    end: int
    role: str | None  # user, assistant, system, end; None: of an unknown speaker
    name: str = ""
    heading: bool = False
    soft: bool = False  # without a colon, which may be a client's list


def role_of(name: Any) -> str | None:
    """The role that a name stands for: user (the client), assistant, system; None: unknown.

    Case, digits and a given name do not matter: `Counsellor 2`, `Dr. Lee`.
    """
    words = _words(name)
    if not words or len(words) > 4:
        return None
    if (role := _ROLES.get(" ".join(words))) is not None or words[0] in _DETERMINERS:
        return role
    return _strong(words)


def _strong(words: list[str]) -> str | None:
    return _STRONG.get(" ".join(words), _STRONG.get(words[-1], _STRONG.get(words[0])))


def _words(name: Any) -> list[str]:
    if not isinstance(name, str) or len(name) > 60:
        return []
    return re.sub(r"\(.*?\)|['’]s\b|[\d_.:#*-]+", " ", name.casefold()).split()


def first_turn(messages: Any) -> str:
    """The client's first message.

    Args:
        messages: a list of messages, an object that holds one, or one message. A message has a key that names the
            speaker (`ROLE_KEYS`) and one with the text (`TEXT_KEYS`), or the speaker's role as its only key.

    Raises:
        UnknownSpeakerError: no message is known to be the client's.
    """
    if isinstance(messages, Mapping):
        inner = next((messages[key] for key in LIST_KEYS if isinstance(messages.get(key), list)), [messages])
        if inner == [messages] and not _said(messages):
            raise UnknownSpeakerError("an object without a message of the client")
        return first_turn(inner)
    if len(messages) == 1 and isinstance(messages[0], str):
        return messages[0]
    names: dict[str, None] = {}
    for message in messages:
        if not isinstance(message, Mapping):
            raise UnknownSpeakerError("a list of values that name no speaker")
        for name, text in _said(message):
            names[name] = None
            if role_of(name) == "user" and text:
                return text
    found = f"; its speakers are {listed(names)}" if names else ""
    raise UnknownSpeakerError(f"a list without a message of the client{found}")


def _said(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Speakers and texts of a message."""
    name = next((message[key] for key in ROLE_KEYS if isinstance(message.get(key), str)), None)
    if name is None:
        return [(key, value) for key, value in message.items() if role_of(key) is not None and isinstance(value, str)]
    value = next((message[key] for key in TEXT_KEYS if message.get(key) is not None), "")
    if isinstance(value, list):  # parts, of which some may be images
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in value)
        value = "".join(part for part in parts if isinstance(part, str))
    return [(name, value if isinstance(value, str) else "")]


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names of speakers for a message; a number if they are many or long, which may be a client's words."""
    names = list(names)
    short = all(len(name) <= 30 and len(name.split()) <= 4 for name in names)
    return ", ".join(names) if short and len(names) <= most else f"{len(names)} different values"


def client_words(text: str) -> str:
    """The client's first turn if the text is a conversation, else the text.

    Raises:
        UnknownSpeakerError: it is a conversation in an unknown layout, or without a turn of the client.
    """
    if (messages := parsed_list(text)) is not None:
        return first_turn(messages).strip()
    text = _BEGIN.sub("", text)
    tokens = _token_marks(text)
    if any(mark.role != "end" for mark in tokens):
        turn = _client_turn(text, tokens)
    elif tokens:
        turn = client_words(text[: tokens[0].start])
    else:
        labels = _labels(text)
        turn = _client_turn(text, labels) if labels else text
    if _SPECIAL.search(turn):
        raise UnknownSpeakerError("a conversation in an unknown layout")
    return turn.strip()


def parsed_list(text: str) -> Any:
    """The messages or values that a text holds as JSON or as Python or NumPy prints them; None: it holds none."""
    start = text.lstrip()[:200]
    if not re.match(r"\[\s*(?:\{\s*['\"]|['\"])|\{\s*['\"]\w+['\"]\s*:", start) or text.rstrip()[-1] not in "]}":
        return None
    spaced = re.sub(r"\}\s*\n\s*\{", "}, {", text)  # as NumPy prints lists
    for parse, form in ((json.loads, text), (ast.literal_eval, text), (ast.literal_eval, spaced)):
        try:
            value = parse(form.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list | dict) and value else None
    return None


def _client_turn(text: str, marks: list[_Mark]) -> str:
    """What the client says before anybody else does; an Alpaca input is the client's, its instruction is not."""
    ends = [*(mark.start for mark in marks[1:]), len(text)]
    turns: list[tuple[str, str]] = []
    for mark, end in zip(marks, ends, strict=True):
        said = _END.sub("", text[mark.end : end].strip().removeprefix(":").strip())
        if mark.role == "user" and said:
            turns.append((mark.name, said))
        elif turns and mark.role == "assistant":
            break
        if turns and mark.name != "instruction" and mark.role == "user":
            break
    if not turns:
        raise UnknownSpeakerError("a conversation without a turn of the client")
    return next((said for name, said in turns if name == "input"), turns[0][1])


def _token_marks(text: str) -> list[_Mark]:
    if not re.search(r"[<\[]", text):
        return []
    marks = [
        _Mark(match.start(), match.end(), role or role_of(match["name"]))
        for pattern, role in _TOKENS
        for match in pattern.finditer(text)
    ]
    return sorted(marks, key=lambda mark: mark.start)


def _labels(text: str) -> list[_Mark]:
    """The labels of a conversation; none if the text is one speaker's.

    Raises:
        UnknownSpeakerError: the labels are those of unknown speakers, or no label is the client's.
    """
    marks = _line_labels(text)
    known = [mark for mark in marks if mark.role is not None]
    begins = bool(marks) and not text[: marks[0].start].strip()
    known = sorted([*known, *_inline_labels(text, known)], key=lambda mark: mark.start)
    roles = {mark.role for mark in known}
    if roles >= {"user", "assistant"}:
        headings = [mark for mark in marks if mark.role is None and mark.heading]
        return sorted([*known, *headings], key=lambda mark: mark.start)
    others = [mark for mark in marks if mark.role is None and not mark.heading and _is_speaker(mark.name)]
    if any(mark.role == "assistant" and not mark.soft and _strong(mark.name.split()) for mark in known):
        raise UnknownSpeakerError("a conversation without a turn of the client")
    if begins and marks[0].role == "user" and marks[0].name in _OPENING:
        if others:
            raise UnknownSpeakerError("a conversation with an unknown speaker")
        return known
    names = [mark.name for mark in others]
    if begins and len(set(names)) > 1 and others[0] is marks[0]:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(names) > len(set(names)) or (len(names) == len(lines) and len(names[0]) > 1):
            raise UnknownSpeakerError("a conversation of unknown speakers")
    return []


def _line_labels(text: str) -> list[_Mark]:
    """Labels at the beginning of lines, with names of one letter only in pairs such as Q and A."""
    marks = []
    for match in _LABEL.finditer(text):
        words = _words(match["name"])
        heading, alone = bool(match["hashes"]), match["alone"] is not None
        role = _label_role(words)
        separator = match[0].rstrip(" \t*_")[-1:]
        if role is None and not heading and separator not in ":：":
            continue
        if alone and not heading and " ".join(words) not in _STRONG:
            continue
        name = " ".join(words) if role is not None else match["name"]
        marks.append(_Mark(match.start(), match.end(), role, name, heading, separator not in ":："))
    letters = {mark.name for mark in marks if len(mark.name) == 1 and mark.role is not None}
    return [
        mark if len(mark.name) > 1 or letters in _LETTERS else replace(mark, role=None, name=mark.name.upper())
        for mark in marks
    ]


def _label_role(words: list[str]) -> str | None:
    """The role of a label; stricter than `role_of`, as `Quick question:` is a client's."""
    if not words or len(words) > 3:
        return None
    name = " ".join(words)
    if name in _ROLES or words[0] in _DETERMINERS:
        return _ROLES.get(name)
    return _strong(words)


def _inline_labels(text: str, known: list[_Mark]) -> list[_Mark]:
    """Labels within a line, of a text that begins with a client's label, perhaps after a sentence to the model."""
    marks: list[_Mark] = []
    if ":" not in text and "：" not in text:
        return marks
    at_lines = {mark.role: {other.name for other in known if other.role == mark.role} for mark in known}
    began = any(mark.role == "user" for mark in known)
    for match in _INLINE.finditer(text):
        found = "name" if match["name"] else "script"
        name, start = " ".join(_words(match[found])), match.start(found)
        role = _label_role(_words(match[found]))
        if any(mark.start <= start < mark.end for mark in known) or name not in at_lines.get(role, {name}):
            continue
        before = match["before"]
        if not began and (role != "user" or (before is not None and before not in _SENTENCE_END)):
            continue
        if len(name) == 1 and name not in ("q", "a"):
            continue
        began = True
        marks.append(_Mark(start, match.end(), role, name))
    return marks if began and {mark.role for mark in [*known, *marks]} >= {"user", "assistant"} else []


def _is_speaker(name: str) -> bool:
    """Whether a label may be somebody's name, as `Anna` or `Speaker 2` but not `Edit` or `I told him` may."""
    words = name.replace(".", "").split()
    return (
        len(words) <= 2
        and all(word[0].isupper() or word[0].isdigit() for word in words)
        and (len(name) == 1 or words[0].casefold() not in _FIELDS | _DETERMINERS)
    )
