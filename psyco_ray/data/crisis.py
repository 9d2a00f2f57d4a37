"""Screening for speeches that may mention self-harm, violence or abuse.

This is triage, never diagnosis: the patterns favour recall, so many flagged speeches are harmless. A negation ("I would
never kill myself") and the crisis of a friend are flagged as well.
"""

from __future__ import annotations

import re

from psyco_ray.data.splits import fold

# One pattern per line, matched from the start of a word in folded text; names in capitals are defined in _WORDS.
_WORDS = {
    "SELF": r"(?:myself|himself|herself|themsel(?:f|ves)|yourself|ourselves|oneself)",
    "KIN": r"(?:husband|wife|spouse|partner|boy ?friend|girl ?friend|fianc\w+|ex|father|mother|dad|daddy|mom|mum"
    r"|step\w+|brother|sister|uncle|aunt|grand\w+|cousin|son|daughter|kids?|child|children|baby|boss|teacher|parents?)",
    "SOMEBODY": r"(?:him|her|them|someone|somebody|people|others|everyone|everybody|another|(?:my|the|his|their) \w+)",
}
_PHRASES = {
    "self-harm": r"""
        suicid
        self[- ]?(?:harm|injur|mutilat|destruct)
        (?:kill|hurt|harm|cut|injur|burn|starv|drown|hang|hung|shoot|stab|poison|hit|punch)\w* SELF
        harm to SELF
        (?:hit|hitting|bang|banging) my head
        dead inside
        (?:cut|slit)(?:ting)? my (?:wrist|arm|leg|thigh|skin)
        (?:end|ending|ended) (?:it\b|things|everything|(?:my|his|her|their) (?:own )?(?:life|lives))
        (?:take|taking|took|taken) (?:my|his|her|their) (?:own )?(?:life|lives)
        (?:want|wish|hope|plan|try|tried|like|ready|going|rather|better|wanna)\w*(?: \w+){0,3} (?:die\b|be dead|be gone)
        wish\w* (?:\w+ ){0,4}(?:dead|alive|here|born|die|disappear)\b
        (?:better off|rather be) (?:dead|without me|if i)
        (?:reason|point|will|desire|purpose)(?: \w+){0,3} (?:live|living|alive|go on|going on)\b
        (?:want|wanna|wanting|deserve|care)(?: \w+){0,2} (?:live|be alive|be here|exist|wake up)\b
        (?:tired|sick) of (?:living|life|being alive|existing)
        (?:live|living|be|being|go|going) (?:here |on |alive |around )?any ?more
        life (?:is|isn't|is not|was)(?: not| no longer)? (?:worth|pointless|worthless|meaningless)
        (?:thoughts?|thinking|think|thought|dream\w*|fantas\w+) (?:of|about) (?:death|dying|ending|not being here)
        overdos
        (?:swallow|took|take|taking)\w* (?:\w+ ){0,4}(?:pills|tablets|bottle of)
        why i(?:'m| am) alive
        jump(?:ed|ing)? (?:off|from|in front of)
        (?:goodbye|farewell) (?:note|letter)
        can(?:'t|not) (?:go on|do this any|take it any|live like this)
        (?:unaliv|kms\b)
    """,
    "violence": r"""
        (?:kill|murder|strangl|chok|stab|shoot|poison|slaughter|attack)(?:e|ing|ed)? SOMEBODY
        (?:hurt|harm|hit|punch|beat|slap)(?:t?ing)? (?:him|her|them|some\w+|people|others|every\w+|my KIN|those)
        hurt(?:ing)? the ones
        harm to (?:my|others|someone|somebody|SELF or others)
        i (?:hit|slapped|punched|choked|beat|shoved|strangled|attacked)\b
        (?:homicid|murder)
        violen(?<!domestic violen)
        (?:urges?|thoughts?) (?:to|of|about) (?:hurt|kill|harm|attack)
        (?:guns?|knife|knives|weapons?)\b
        shoot(?:ing)? up
        (?:school|mass) shoot
    """,
    "abuse": r"""
        abus
        (?:molest|incest|traffick|assault)
        rap(?:e|ed|es|ist|ing)\b
        stalk(?:s|ed|er|ing)\b
        domestic violence
        touch(?:ed|es|ing) me
        forc(?:e|ed|es|ing) (?:me|himself|herself)
        (?:hit|beat|slap|chok|strangl|punch|kick|shov|push|burn|grab|threaten)\w* (?:me|us|my KIN)\b
        (?:put|puts|putting|lay|lays|laid|laying) (?:his|her|their) hands on
        be(?:ing|en)? (?:hit|beaten|hurt|killed|choked|threatened) by
        (?:kill|hurt|harm|murder|attack)(?:s|ed|ing)? (?:me|us)\b
        physically (?:hurt|violent|aggressive|fight)
        (?:afraid|scared|terrified|frightened) of (?:him|her|my KIN)
        (?:fear|afraid|scared) for my (?:life|safety)
        (?:not|don't|doesn't|never) (?:feel )?safe (?:at home|in my|with|around)
        unsafe (?:at home|in my|with|around)
        (?:won't|doesn't|never) let(?:s)? me (?:leave|go|out|see)
        lock(?:s|ed) me
        in danger
        (?:bruise|black eye)
    """,
}

# Figures of speech, removed before the search.
_IDIOMS = r"""
    (?:die|died|dying|dead) (?:of|from|with) (?:embarrassment|laugh|boredom|shame|curiosity|happiness)
    (?:killing|kill|killed) (?:some |the )?(?:time|two birds|mood|vibe)
    (?:homework|work|job|school|back|head|feet|heat|suspense|schedule|waiting|exams?|stress) (?:is|are|was) killing me
    cut(?:ting)? (?:myself )?(?:shaving|some slack|a break)
    shoot(?:ing)? (?:myself|himself|herself|yourself) in the foot
    shoot (?:me|him|her|them) an? (?:e-?mail|text|message)
    beat(?:ing)? (?:myself|himself|herself|yourself) up
    it hit me (?:that|how|when)
    (?:alcohol|drug|substance) abuse
    abus(?:e|es|ed|ing)(?: of)? (?:alcohol|drugs|substances|pills|medication)
"""


def _phrases(lines: str) -> re.Pattern[str]:
    """One pattern of all phrases, grouped by first letter so that each word is compared with few of them."""
    for name, words in _WORDS.items():
        lines = lines.replace(name, words)
    by_letter: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, lines.split("\n"))):
        group = re.fullmatch(r"\(\?:([^()]*)\)(?![?*+{])(.*)", line)  # (?:kill|hurt) me: kill me, hurt me
        for phrase in [start + group[2] for start in group[1].split("|")] if group else [line]:
            assert phrase[0].isalpha()
            by_letter.setdefault(phrase[0], []).append(phrase[1:])
    phrases = "|".join(f"{letter}(?:{'|'.join(rests)})" for letter, rests in by_letter.items())
    return re.compile(rf"\b(?:{phrases})")


_PATTERNS = {kind: _phrases(lines) for kind, lines in _PHRASES.items()}
_IDIOM = _phrases(_IDIOMS)

KINDS = tuple(_PATTERNS)
"""The kinds that `signs` distinguishes."""


def signs(text: str) -> list[str]:
    """The KINDS that a speech may mention, in their order; favours recall over precision."""
    folded = _IDIOM.sub(" ", fold(text).replace("’", "'"))
    return [kind for kind, pattern in _PATTERNS.items() if pattern.search(folded)]
