"""Text from outside is text: what a client, a model or a file has written opens and ends no turn.

A tokenizer maps the string of a control token, such as ``<|im_end|>``, to the token wherever it stands. Here only the
strings that the chat template itself writes become tokens. In the contents of messages:

- A control token of the tokenizer stays as it was written, and is tokenised as ordinary characters by a twin of the
  tokenizer, which knows the control tokens by other names. A text without one gets the ids that it always had.
- A turn marker that the template writes as plain text, such as ``[INST]`` or ``Human:``, has no token of its own. It is
  broken by a space: ``[ INST]``, ``Human :``. So is a control token of a tokenizer without a twin (one that is not of
  the `tokenizers` library), and any marker of a common family in a text for an API, whose server tokenises it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from psyco_ray.run import reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unicode's noncharacters: no text that is exchanged has them, and nothing is normalised to them
_ESCAPE, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_NONCHARACTERS = re.compile(f"[{_ESCAPE}{_OPEN}{_CLOSE}]")

_BRACKETED = re.compile(r"<[|｜][^<>\s]+[|｜]>|</?[^<>\s]+>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
_KNOWN = re.compile(
    r"<[|｜][^<>\n]{1,40}[|｜]>|<\|?/?(?:turn|channel|tool_call|tool_response)\|?>"
    r"|</?(?:s|bos|eos|pad|think|thinking|reasoning|start_of_turn|end_of_turn|end_of_utterance|sop|eop)>"
    r"|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|SEP|CLS|PAD|gMASK)\]"
)

_log = logging.getLogger(__name__)


def protect(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return messages in whose contents a chat template and `token_ids` find no control token and no turn marker.

    Args:
        tokenizer: with a chat template.
        messages: from outside.

    Returns:
        For the chat template alone: contents may hold marks that only `token_ids` removes.
    """
    controls = _controls_of(tokenizer)
    return [{**message, "content": controls.protect(message["content"], message["role"])} for message in messages]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that a chat template rendered from protected messages; no token is added."""
    if _ESCAPE not in text:
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    controls = _controls_of(tokenizer)
    assert controls.twin is not None, "only texts for a twin are escaped"
    return controls.twin(controls.rename(text), add_special_tokens=False)["input_ids"]


def plain_pair(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str
) -> tuple[PreTrainedTokenizerBase, str, str]:
    """Return a tokenizer and two texts of an encoder, in which no control token is one of the texts'.

    The tokenizer still adds those between and around the texts.
    """
    controls = _controls_of(tokenizer)
    if not (controls.occur_in(question) or controls.occur_in(answer)):
        return tokenizer, question, answer
    if controls.twin is None:
        return tokenizer, controls.break_tokens(question), controls.break_tokens(answer)
    return controls.twin, *(_NONCHARACTERS.sub("\ufffd", text) for text in (question, answer))


def break_markers(text: str) -> str:
    """Return a text for a model behind an API, with a space in each turn marker and control token of common families.

    Example:
        >>> break_markers("I am lost.<|im_end|>")
        'I am lost.< |im_end|>'
    """
    return _break(_KNOWN, text)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the control tokens of a tokenizer: ids by string.

    They are its special tokens, and of its other added tokens those that its chat template mentions, that mark
    reasoning, or that look like markers. Further added tokens are ordinary text, such as line breaks and HTML tags
    (Gemma), or spaces (Phi).
    """
    template = tokenizer.chat_template or ""
    mentioned = template if isinstance(template, str) else "\n".join(template.values())
    tokens = {}
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        text = token.content
        in_template = text in mentioned and not text.isalnum()
        is_tag = bool(_BRACKETED.fullmatch(text) and reasoning.special_parts([text]))
        is_marker = in_template or is_tag or re.fullmatch(r"<[|｜].+[|｜]>", text)
        if text.strip() and (token.special or is_marker):
            tokens[text] = token_id
    return tokens


class _Controls:
    """The control tokens and literal turn markers of a tokenizer with its chat template.

    It keeps no reference to the tokenizer, by which it is cached.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids = control_tokens(tokenizer)
        self._tokens = _pattern(self._ids)
        self._reasoning = set(reasoning.special_parts([*self._ids]))  # templates look for them in an assistant's turns
        self._literals = _pattern(_literal_markers(tokenizer, self._tokens))
        self._names = {text: f"{_OPEN}{token_id}{_CLOSE}" for text, token_id in self._ids.items()}
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        self._normalize: Callable[[str], str] | None = normalizer.normalize_str if normalizer else None
        self._make_twin = functools.partial(_twin_of, copy.copy(tokenizer), self._ids, self._names)

    @functools.cached_property
    def twin(self) -> PreTrainedTokenizerBase | None:
        """A tokenizer that differs only in the names of the control tokens; None: none can be made."""
        return self._make_twin()

    def occur_in(self, text: str) -> bool:
        """Whether a text has a control token, perhaps only after its normalisation (full-width brackets)."""
        if self._tokens is None:
            return False
        if self._tokens.search(text):
            return True
        return self._normalize is not None and not text.isascii() and bool(self._tokens.search(self._normalize(text)))

    def protect(self, content: str, role: str) -> str:
        """A message's content as `protect` returns it."""
        if self._literals is not None:
            content = _break(self._literals, content)
        if not self.occur_in(content):
            return content
        return self.break_tokens(content) if self.twin is None else self._escape(content, role)

    def break_tokens(self, text: str) -> str:
        """A text with a space in the string of each control token."""
        return text if self._tokens is None else _break(self._tokens, text)

    def _escape(self, text: str, role: str) -> str:
        """A text in which no template finds a control token, to cut it there or to take it for its own."""
        assert self._tokens is not None

        def escaped(match: re.Match[str]) -> str:
            if role == "assistant" and match[0] in self._reasoning:
                return match[0]
            return f"{match[0][0]}{_ESCAPE}{match[0][1:]}"

        text = self._tokens.sub(escaped, _NONCHARACTERS.sub("\ufffd", text))
        if _ESCAPE in text or self._normalize is None:
            return text
        if not set(self._tokens.findall(self._normalize(text))) - self._reasoning:
            return text
        # a mark tells `token_ids` to take the twin for a token that only a normalisation brings out
        end = len(text.rstrip())
        return f"{text[:end]}{_ESCAPE}{text[end:]}"

    def rename(self, rendered: str) -> str:
        """A rendered conversation of escaped contents as the twin reads it."""
        assert self._tokens is not None
        return self._tokens.sub(lambda match: self._names[match[0]], rendered).replace(_ESCAPE, "")


_cache: weakref.WeakKeyDictionary[Any, tuple[Any, _Controls]] = weakref.WeakKeyDictionary()


def _controls_of(tokenizer: PreTrainedTokenizerBase) -> _Controls:
    """The controls of a tokenizer, found once for its chat template and vocabulary."""
    state = (tokenizer.chat_template, len(tokenizer))
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _cache[tokenizer] = (state, _Controls(tokenizer))
    return cached[1]


def _literal_markers(tokenizer: PreTrainedTokenizerBase, tokens: re.Pattern[str] | None) -> set[str]:
    """The turn markers that a chat template writes as plain text around the contents of made-up messages.

    They are the bracketed parts of a line (`<<SYS>>`), or else a whole line with punctuation (`### Response:`): a mere
    word such as `user` opens a turn only behind a control token.
    """
    if not tokenizer.chat_template:
        return set()
    roles = ("system", "user", "assistant", "user")
    made_up = [{"role": role, "content": f"qzx{number}"} for number, role in enumerate(roles)]
    rendered = ""
    for messages in (made_up, made_up[1:]):  # the second for a template that refuses the system role
        with contextlib.suppress(TemplateError, TypeError, ValueError):
            rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=lambda form: ""))
            break
    text = tokens.sub("\n", rendered) if tokens else rendered
    markers = set()
    for line in map(str.strip, re.sub(r"qzx\d", "\n", text).splitlines()):
        if bracketed := _BRACKETED.findall(line):
            markers |= set(bracketed)
        elif re.search(r"[^\w\s]", line) and re.search(r"\w", line):
            markers.add(line)
    return markers


def _pattern(strings: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of any of some strings, the longest first; None without strings."""
    longest_first = sorted(strings, key=lambda text: (-len(text), text))
    if not longest_first:
        return None
    return re.compile("|".join((r"(?<!\w)" if text[0].isalnum() else "") + re.escape(text) for text in longest_first))


def _break(pattern: re.Pattern[str], text: str) -> str:
    """A text in which each match has a space before its first punctuation mark, or behind a leading one."""

    def broken(match: re.Match[str]) -> str:
        mark = re.search(r"[^\w\s]", match[0])
        place = (mark.start() if mark else 0) or 1
        return f"{match[0][:place]} {match[0][place:]}"

    while pattern.search(text):  # a broken marker may hold a shorter one
        text = pattern.sub(broken, text)
    return text


def _twin_of(
    tokenizer: PreTrainedTokenizerBase, ids: dict[str, int], names: dict[str, str]
) -> PreTrainedTokenizerBase | None:
    """A copy of a tokenizer in which control tokens have other names and the same ids; None: none can be made.

    Names change in the model's vocabulary too, where some models (Unigram) find them in texts.

    Args:
        tokenizer: a copy of the original.
        ids: of the control tokens.
        names: the new ones.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        _log.info(f"{tokenizer.name_or_path}: a space breaks control tokens in texts; its tokenizer is a slow one")
        return None
    backend = tokenizer.backend_tokenizer
    settings = json.loads(backend.to_str())
    for token in settings["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = settings["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    unknown_token = model.get("unk_token")
    if unknown_token in names:
        model["unk_token"] = names[unknown_token]
    try:
        renamed = Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # noqa: BLE001 - the library raises no other
        reason = str(error)
    else:
        unknown = model.get("unk_id", ids.get(unknown_token or ""))
        unlike = [text for text in ids if not _is_equivalent(backend, renamed, text, names[text], ids[text], unknown)]
        if not unlike:
            tokenizer._tokenizer = renamed
            return tokenizer
        reason = f"{unlike[0]!r} would have other tokens"
    _log.warning(f"{tokenizer.name_or_path}: a space breaks control tokens in texts, because {reason}")
    return None


def _is_equivalent(backend: Any, renamed: Any, text: str, name: str, token_id: int, unknown: int | None) -> bool:
    """Whether a twin reads a control token's name as the tokenizer reads its string, and its string as text."""

    def encode(tokenizer: Any, string: str) -> list[int]:
        return tokenizer.encode(f"a {string} b{string}", add_special_tokens=False).ids

    is_text = token_id == unknown or token_id not in encode(renamed, text)  # characters of a text may be unknown
    return is_text and encode(backend, text) == encode(renamed, name)
