"""Finds API keys, passwords and tokens in settings, where they would end up in logs, job files and command lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from psyco_ray.config.errors import InputError

_KEY = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        sk-(?:proj|ant|svcacct|or)-[A-Za-z0-9_-]{12,}      # OpenAI, Anthropic, OpenRouter
      | sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}             # older ones of OpenAI, DeepSeek
      | (?:hf_|gsk_|xai-|r8_|pplx-)[A-Za-z0-9]{16,}        # Hugging Face, Groq, xAI, Replicate, Perplexity
      | (?:AKIA|ASIA)[A-Z0-9]{16}                          # AWS
      | AIza[A-Za-z0-9_-]{30,}                             # Google
      | (?:gh[opsu]|github_pat|glpat|xox[abp])[_-][A-Za-z0-9_-]{16,}
      | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}       # JSON web tokens
      | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    )""",
    re.VERBOSE,
)
_SECRET_WORD = re.compile(
    r"(?:.*(?:KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD)|KEYS|SECRETS|PWD|CREDENTIALS?|AUTH|SIG|SIGNATURE|SAS|COOKIE"
    r"|DATABASE|DB|DSN|CONNECTION)\d*",  # the address of a database holds its password
    re.IGNORECASE,
)
_HIDDEN = "[hidden: looks like a key]"


def holds_key(text: str) -> bool:
    """Whether a text has the form of a provider's key, or is a URL with one in its user, password or options."""
    return bool(_KEY.search(text)) or _url_holds_key(text)


def names_secret(name: str) -> bool:
    """Whether the name of an environment variable, or of a URL's option, says that it holds a secret.

    Example:
        >>> names_secret("OPENAI_API_KEY2"), names_secret("PGPASS"), names_secret("TOKENIZERS_PARALLELISM")
        (True, True, False)
    """
    return any(_SECRET_WORD.fullmatch(word) for word in re.split(r"[^A-Za-z0-9]+", name))


def without_keys(text: str) -> str:
    """A text, such as a message that quotes a setting, with what has the form of a key left out."""
    return " ".join(_HIDDEN if holds_key(word.strip("'\"(),;")) else word for word in text.split(" "))


def refuse_key(text: str, where: str = "") -> None:
    """Refuse a text with a key in it.

    Args:
        text: a value of a setting or an argument.
        where: the setting, for the message.

    Raises:
        InputError: the text holds a key. The message does not show it.
    """
    if not holds_key(text):
        return
    of_url = "://" in text
    what = f"a URI that begins with {text.partition('://')[0]}://" if of_url and not _KEY.search(text) else "a value"
    raise InputError(
        f"{where + ': ' if where else ''}{what} has a key in it; take it out and set it in the environment (for an "
        "API: in the variable that key_env names; for S3: in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    )


def refuse_keys(settings: Any, where: str) -> None:
    """Refuse settings with a key in any value, at any depth.

    Raises:
        InputError: a value holds a key. The message names the setting.
    """
    for name, text in _texts(settings):
        refuse_key(text, f"{where}: {name}" if name else where)


def _texts(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts of nested settings, names of keys included, with the dotted names of their places."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield name, str(key)
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from _texts(value, f"{name}.{number}" if name else str(number))
    elif isinstance(settings, str):
        yield name, settings


def _url_holds_key(text: str) -> bool:
    scheme, mark, rest = text.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        return False
    # an S3 secret may contain a slash, which URI parsers split at
    if scheme.lower() == "s3" and "@" in rest.partition("?")[0]:
        return True
    try:
        parts = urlsplit(text)
    except ValueError:  # no URL
        return False
    if parts.password is not None or (parts.username is not None and scheme.lower() in ("http", "https")):
        return True
    return any(names_secret(option) for option, _ in parse_qsl(parts.query, keep_blank_values=True))
