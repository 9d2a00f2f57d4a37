"""Where speakers begin in a text: markers of chat layouts, and labels such as `Patient:`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from psyco_ray.data.roles import DETERMINERS, LETTER_PAIRS, STRONG, WEAK, label_role, role_of, words_of

_FIELDS = {"title", "body", "text", "post", "age", "gender", "sex", "edit", "update", "tldr", "note", "ps", "subject"}
_FIELDS |= {"topic", "date", "location", "background", "context", "summary", "problem", "situation", "name", "country"}

_NAME = r"[\w -]{1,30}?"
_TAGS = "|".join(map(re.escape, [*STRONG, "instruction", "question", "prompt", "answer", "response"]))
_MARKERS: tuple[tuple[str, str | None], ...] = (
    (rf"<\|im_start\|>\s*(?P<name>{_NAME})\s*(?:\n|<\|im_sep\|>|(?=:))", None),  # ChatML, Phi-4
    (rf"<\|start_header_id\|>\s*(?P<name>{_NAME})\s*<\|end_header_id\|>", None),  # Llama 3
    (rf"<(?:start_of_turn|\|turn)>\s*(?P<name>{_NAME})\s*\n", None),  # Gemma
    (rf"<\|start\|>\s*(?P<name>{_NAME})\s*(?:<\|channel\|>\w+)?<\|message\|>", None),  # Harmony
    (rf"<[|｜]\s*(?P<name>{'|'.join(map(re.escape, [*STRONG, 'system']))})\s*[|｜]>", None),  # Phi-3, Zephyr, DeepSeek
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

_LABEL = re.compile(  # the name of a speaker at the beginning of a line
    r"""^[ \t]*(?:[\[(]?\d[\d:., -]*[\])]?[ \t]*)?(?P<hashes>\#{0,6})[ \t]*[*_\[(<{"“>-]{0,3}[ \t]*
    (?P<name>[^\W\d_][\w.'’/ -]{0,39}?)(?:[ \t]*[\[(][^\])\n]{0,30}[\])])?[ \t]*[*_\])}>"”]{0,3}[ \t]*
    (?::|：|>{1,2}|[ ][-–—][ ]|(?P<alone>$))[*_ \t]*""",
    re.VERBOSE | re.MULTILINE,
)
_CAPITALISED = [form for name in [*STRONG, *WEAK] if name.isascii() for form in (name.capitalize(), name.upper())]
_CAPITALISED += ["user", "human", "assistant", "bot", "chatbot", "gpt", "chatgpt", "ai"]
_INLINE = re.compile(  # or within one, with a capital
    rf"(?:^|(?P<before>[^\s])\s+|(?<=>))(?P<name>{'|'.join(_CAPITALISED)}|"
    r"ChatGPT|Dr\.? [A-Z]\w+)(?:\s?\d{1,2})?\s?:(?=\s)"
    rf"|(?P<script>{'|'.join(name for name in STRONG if not name.isascii())})\s?[:：]"
)
_SCRIPT_CHARS = max(len(name) for name in STRONG if not name.isascii())
_INLINE_NAMES = frozenset([*_CAPITALISED, "ChatGPT"])
_INLINE_CHARS = 24  # of the longest of these names, with a number and spaces
_SENTENCE_END = ".!?…\"”’')>*"
_LABEL_CHARS = 100  # of the longest label and its separator, without a run of blanks
_BEFORE_LABEL = frozenset(" \t[(#")  # what may begin a line before a label, beside digits
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Mark:
    """A marker or label: where it begins and where its speaker's words begin."""

    start: int
    end: int
    role: str | None  # user, assistant, system, end; None: of an unknown speaker
    name: str = ""
    heading: bool = False
    soft: bool = False  # without a colon, which may be a client's list


def may_have_marks(text: str) -> bool:
    """Whether a text may have markers or labels; quick, without false negatives. Most texts have none."""
    if "<" in text or "[" in text or _may_have_inline_label(text):
        return True
    return any(map(_may_begin_with_label, text.split("\n")))


def token_marks(text: str) -> list[Mark]:
    """The markers of chat layouts, in their order."""
    if "<" not in text and "[" not in text:
        return []
    marks = [
        Mark(match.start(), match.end(), role or role_of(match["name"]))
        for pattern, role in _TOKENS
        for match in pattern.finditer(text)
    ]
    return sorted(marks, key=lambda mark: mark.start)


def line_labels(text: str) -> list[Mark]:
    """Labels at the beginning of lines, with names of one letter only in pairs such as Q and A."""
    marks = []
    for match in _labels(text):
        words = words_of(match["name"])
        heading, alone = bool(match["hashes"]), match["alone"] is not None
        role = label_role(words)
        separator = match[0].rstrip(" \t*_")[-1:]
        if role is None and not heading and separator not in ":：":
            continue
        if alone and not heading and " ".join(words) not in STRONG:
            continue
        name = " ".join(words) if role is not None else match["name"]
        marks.append(Mark(match.start(), match.end(), role, name, heading, separator not in ":："))
    letters = {mark.name for mark in marks if len(mark.name) == 1 and mark.role is not None}
    return [
        mark if len(mark.name) > 1 or letters in LETTER_PAIRS else replace(mark, role=None, name=mark.name.upper())
        for mark in marks
    ]


def _labels(text: str) -> Iterator[re.Match[str]]:
    """Matches of `_LABEL`, which takes long on lines without one: only lines that may have one are tried."""
    start = 0
    for line in text.split("\n"):
        if _may_begin_with_label(line) and (match := _LABEL.match(text, start)):
            yield match
        start += len(line) + 1


def _may_begin_with_label(line: str) -> bool:
    """Whether `line_labels` may keep a label at the beginning of a line; quick, without false negatives."""
    head = line[:_LABEL_CHARS]
    first = head[:1]
    if first in _BEFORE_LABEL or first.isdecimal() or ":" in head or ">" in head or "：" in head:
        return True
    if " - " in head or " – " in head or " — " in head or "  " in head or "\t" in head:  # blanks make a label longer
        return True
    if len(line) > _LABEL_CHARS:
        return False
    name = _LETTERS.search(line)  # of a line of its own
    return name is not None and name[0].casefold() in STRONG


def inline_labels(text: str, known: list[Mark]) -> list[Mark]:
    """Labels within a line, of a text that begins with a client's label, perhaps after a sentence to the model."""
    marks: list[Mark] = []
    if not _may_have_inline_label(text):
        return marks
    at_lines = {mark.role: {other.name for other in known if other.role == mark.role} for mark in known}
    began = any(mark.role == "user" for mark in known)
    for match in _INLINE.finditer(text):
        found = "name" if match["name"] else "script"
        name, start = " ".join(words_of(match[found])), match.start(found)
        role = label_role(words_of(match[found]))
        if any(mark.start <= start < mark.end for mark in known) or name not in at_lines.get(role, {name}):
            continue
        before = match["before"]
        if not began and (role != "user" or (before is not None and before not in _SENTENCE_END)):
            continue
        if len(name) == 1 and name not in ("q", "a"):
            continue
        began = True
        marks.append(Mark(start, match.end(), role, name))
    return marks if began and {mark.role for mark in [*known, *marks]} >= {"user", "assistant"} else []


def _may_have_inline_label(text: str) -> bool:
    """Whether `_INLINE` may match in a text; quick, without false negatives."""
    if "：" in text:
        return True
    at = text.find(":")
    if at >= 0 and "Dr" in text:
        return True
    while at >= 0:
        before = text[max(0, at - _INLINE_CHARS) : at].rstrip().rstrip("0123456789").rstrip()
        if not before[-_SCRIPT_CHARS:].isascii():
            return True
        words = before.replace(">", " ").split()
        if words and words[-1] in _INLINE_NAMES and text[at + 1 : at + 2].isspace():
            return True
        at = text.find(":", at + 1)
    return False


def is_speaker(name: str) -> bool:
    """Whether a label may be somebody's name, as `Anna` or `Speaker 2` but not `Edit` or `I told him` may."""
    words = name.replace(".", "").split()
    return (
        len(words) <= 2
        and all(word[0].isupper() or word[0].isdigit() for word in words)
        and (len(name) == 1 or words[0].casefold() not in _FIELDS | DETERMINERS)
    )
