"""What the name of a speaker says about who speaks: the client, somebody who answers, or a system prompt."""

from __future__ import annotations

import re
from typing import Any

_CLIENTS = "user human client patient seeker usr customer prompter asker caller texter visitor"
_CLIENTS += " cliente paciente usuario usuário utilisateur nutzer klient klientin patientin patiente"
_CLIENTS += " 用户 来访者 求助者 患者 病人 пользователь клиент пациент مستخدم عميل उपयोगकर्ता ग्राहक"
_THERAPISTS = "assistant therapist counsellor counselor supporter doctor dr psychologist psychiatrist psychotherapist"
_THERAPISTS += " listener clinician bot chatbot gpt chatgpt ai llm claude gemini llama gemma phi mistral vicuna"
_THERAPISTS += " terapeuta psicólogo psicóloga asistente assistente thérapeute psychologue berater beraterin therapeut"
_THERAPISTS += (
    " therapeutin assistent 助手 咨询师 心理咨询师 医生 ассистент терапевт психолог مساعد معالج طبيب सहायक चिकित्सक"
)
STRONG = dict.fromkeys(_CLIENTS.split(), "user") | dict.fromkeys(_THERAPISTS.split(), "assistant")
"""Names that are a speaker's wherever they stand."""
_ASKS = "q question instruct instruction input prompt query person poster op me pt h u c p"
_REPLIES = "a answer response output completion model agent helper expert sys reply comment coach th t d"
WEAK = dict.fromkeys(_ASKS.split(), "user") | dict.fromkeys(_REPLIES.split(), "assistant")
"""Names that are a speaker's only if nothing else stands beside them."""
_SYSTEM = dict.fromkeys(("system", "developer", "system prompt", "system message"), "system")
_ROLES = STRONG | WEAK | _SYSTEM
_OF_APIS = {"tool", "function"}  # roles whose messages are neither the client's nor the therapist's
_NUMBERED = re.compile(r"(\D+?)[\s_.:#*-]*\d{0,3}[\s.:]*")
OPENING = {*_CLIENTS.split(), "q", "question", "instruct", "instruction", "input"}
"""Labels that may stand alone, without one of who answers."""
LETTER_PAIRS = ({"q", "a"}, {"c", "t"}, {"p", "t"}, {"p", "d"}, {"h", "a"}, {"u", "a"})
"""Labels of one letter go in pairs."""
DETERMINERS = {"my", "his", "her", "our", "their", "your", "the", "a", "an", "this", "one", "another", "new", "old"}
"""Words before a name that make it a person's in a story, as in `my doctor`."""


def role_of(name: Any) -> str | None:
    """The role that a name stands for: user (the client), assistant, system; None: unknown.

    Case, digits and a given name do not matter: `Counsellor 2`, `Dr. Lee`.
    """
    words = words_of(name)
    if not words or len(words) > 4:
        return None
    if (role := _ROLES.get(" ".join(words))) is not None or words[0] in DETERMINERS:
        return role
    return strong(words)


def is_role(name: str) -> bool:
    """Whether a name is a role alone, perhaps with a number, or a code for one, and may be shown.

    Other names of speakers are those of people, or hold remarks on what they say.

    Example:
        >>> [is_role(name) for name in ("Counsellor 2", "client", "1", "Client Anna", "Client (cries)")]
        [True, True, True, False, False]
    """
    found = _NUMBERED.fullmatch(name)
    if found is None:
        return name.isdecimal() and len(name) <= 3
    return " ".join(found[1].casefold().split()) in _ROLES.keys() | _OF_APIS


def strong(words: list[str]) -> str | None:
    """The role of the words of a name if one of `STRONG` is among them."""
    return STRONG.get(" ".join(words), STRONG.get(words[-1], STRONG.get(words[0])))


def words_of(name: Any) -> list[str]:
    """The words of a name in small letters, without digits, marks and remarks in brackets; none if it is long."""
    if not isinstance(name, str) or len(name) > 60:
        return []
    return re.sub(r"\(.*?\)|['’]s\b|[\d_.:#*-]+", " ", name.casefold()).split()


def label_role(words: list[str]) -> str | None:
    """The role of a label; stricter than `role_of`, as `Quick question:` is a client's."""
    if not words or len(words) > 3:
        return None
    name = " ".join(words)
    if name in _ROLES or words[0] in DETERMINERS:
        return _ROLES.get(name)
    return strong(words)
