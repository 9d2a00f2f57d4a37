"""The names that people give as their own, and of those they greet, in a `normalised` text.

A word is a name by where it stands, how it is written and whether it is in the lists of names.yaml. After "my name is"
any word is one that people do not write there instead ("not important"). After "I am" it must be a known first name or,
with a capital after a greeting, no known adjective: "Hi, I am Depressed" has no name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import yaml

from psyco_ray.screening.spans import LETTER, Span

_TOKEN = rf"{LETTER}(?:{LETTER}|['-](?={LETTER})|[\u0300-\u036f\u064b-\u0652\u0900-\u0963])*"
_TOKENS = re.compile(_TOKEN)
# Patterns look ahead to the name, so that another one may begin in it.
_NAME = rf"(?P<name>{_TOKEN}(?: {LETTER}\.(?= ))?(?: {_TOKEN}){{0,2}})"
_START = rf"(?<!{LETTER})(?<!')"

_GREETING = (
    r"(?:hi|hello|hey|hiya|howdy|greetings|good (?:morning|evening|day|afternoon)|hola|buen[oa]s(?: d[ií]as"
    r"| tardes| noches)?"
    r"|hallo|guten (?:tag|morgen|abend)|moin|servus|bonjour|bonsoir|salut|coucou|oi|ol[áa]|bom dia|boa (?:tarde"
    r"|noite)|ciao"
    r"|привет|здравствуйте|добрый (?:день|вечер)|नमस्ते|नमस्कार|مرحبا|السلام عليكم|أهلا)"
    r"(?: there| all| everyone| everybody| guys| friends| a tod[oa]s| zusammen| à tous| pessoal| всем)?[,.!،]*"
)
_GREETING_BEFORE = re.compile(rf"{_START}{_GREETING} \Z", re.IGNORECASE)
_DECLARED = re.compile(
    rf"{_START}(?:my (?:first |full |real |last |own |nick ?)?name(?: is|'s|:)|name:|me llamo|mi nombre es"
    rf"|ich hei(?:ß|ss)e|mein name ist|je m'appelle|mon (?:pr[ée])?nom est"
    r"|me chamo|chamo-me|meu nome [ée]|moi,? c'est|mi chiamo|il mio nome è|mijn naam is|ik heet|меня зовут|мо[её] имя"
    rf"|اسمي(?: هو)?|mera naam|मेरा नाम):? (?={_NAME})",
    re.IGNORECASE,
)
_DECLARED_HINTS = (
    "name",
    "call me",
    "calls me",
    "i go by",
    "called ",
    "llaman",
    "moi",
    "nombre",
    "llamo",
    "heiß",
    "heiss",
    "appelle",
    "nom est",
    "chamo",
    "nome",
    "naam",
    "heet",
)
_DECLARED_HINTS_ELSEWHERE = (*_DECLARED_HINTS, "зовут", "имя", "اسمي", "नाम")
_CALLED = re.compile(rf"{_START}(?:calls? me|i go by|i'?m called|i am called|me llaman) (?={_NAME})", re.IGNORECASE)
_I_AM = re.compile(rf"[iI](?<!{LETTER}[iI])(?<!'[iI])(?P<verb>'?[mM]| [aA][mM]) (?={_NAME})")
_INTRODUCED = re.compile(
    rf"{_START}(?P<verb>this is|it's|ich bin(?: die| der)?|je suis|soy|(?:eu )?sou(?: [ao])?|sono|я(?: -)?|أنا|मैं)"
    rf" (?={_NAME})",
    re.IGNORECASE,
)
_INTRODUCED_HINTS: tuple[str, ...] = (
    "this is",
    "hi it's",
    "hi, it's",
    "hey it's",
    "hey, it's",
    "hello it's",
    "hello, it's",
    "ich bin",
    "je suis",
)
_INTRODUCED_HINTS += ("soy ", "sou ", " sono ", "я ", "أنا", "मैं")
_WITH_ADJECTIVES = ("soy", "sou", "eu sou", "sono", "je suis", "ich bin")  # "soy clara", "je suis claire" are no names
_OF_OTHERS = ("this is", "it's")
_GREETED = re.compile(
    rf"(?:^|\n)(?:{_GREETING}|(?P<letter>dear|(?:quer|estim)[ia]d[oa]|lieber?|sehr geehrter?|ch(?:er|ère)|car[oa]"
    rf"|дорог(?:ой|ая)"
    rf"|уважаем(?:ый|ая))) (?P<title>(?:dr|mrs?|ms|miss|prof|frau|herr|se[ñn]ora?|mme)\.? )?(?={_NAME}\s?[,!:.;\n-])",
    re.IGNORECASE,
)
_CLOSING = (
    r"(?:(?:many|kind|best|warm|much|with|all my|lots of|yours) )*(?:thanks|thank you|thank u|thx|ty|regards|best"
    r"|wishes|sincerely"
    r"|yours|love|cheers|signed|(?:xo)+x?|x+|hugs|respectfully|(?:muchas )?gracias|saludos|(?:un )?abrazos?|besos"
    r"|atentamente|danke|(?:(?:liebe|viele|beste|herzliche|mit freundlichen) )?gr(?:ü|ue)(?:ß|ss)en?|gru(?:ß|ss)"
    r"|lg|vg|mfg"
    r"|merci(?: beaucoup| d'avance)?|cordialement|bisous|amicalement|(?:muito )?obrigad[oa]|abraços?|beijos"
    r"|atenciosamente"
    r"|grazie|saluti|спасибо|с уважением|شكرا|धन्यवाद)"
    r"(?: in advance| sincerely| faithfully| so much| a lot| again| truly| everyone| all| de antemano| im voraus)?"
)
_SIGNED = re.compile(
    rf"(?:(?:^|\n|[.!?] ){_CLOSING}(?P<link>,|!|\n|\.| -| ~|:|،)?\s?[-~]*\s?|(?P<dash>(?:\n|[.!?] )[-~]+ ?))"
    rf"(?={_NAME}(?: x+o*x*)?\.?\s*(?:\Z|\n))",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"(?:[.!?] |\n){_NAME}[.!]?\s*\Z")
_HERE = re.compile(rf"(?:^|\n)(?={_NAME} here\b[,.! ])", re.IGNORECASE)
_KISSES = re.compile(r"(?:xo*)+")
_SIGNATURE_CHARS = 100
_AGE = re.compile(
    r"(?:,| and| -)? ?(?:\(?\d\d? ?[mf]?\b|(?:and )?(?:i'?m|i am|am|a|aged?) \d\d|tengo \d\d|und \d\d|мне \d\d)",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"\s*(?:\Z|[.,;:!?()\n&\d/،।\"-]|(?:and|i|i'?m|from|but|aged?|y|und|et|e|и|hai|hoon)\b|है|हूँ|हूं|و|من )", re.IGNORECASE
)  # fmt: skip

_CHINESE_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟"
    "熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_CHINESE = re.compile(
    rf"(?:我(?:的名字)?(?:叫做?|是叫)|我的(?:名字|姓名)[是叫]|我?名字叫|叫我|本人"
    rf"|(?:大家|你们?|您)好[,! ]*我[叫是]|姓名[:是]"
    rf"|我是(?=[\u4e00-\u9fff]{{2,3}},?(?:今年|[男女]|\d))) ?"
    rf"(?P<name>(?:欧阳|上官|司马|诸葛|(?!高[一二三中考]|马上|何必|任何|于是|白天|万一)[{_CHINESE_SURNAMES}])[\u4e00-\u9fff]{{1,2}}"
    r"|(?!小[三学时孩妹弟姐])[小阿][\u4e00-\u9fff])(?=[,.!;、\s(\d]|今年|来自|\Z)"
)

_ORIGIN = re.compile(r"(?:an|ic|im|ew|ist)\Z")

_ADJECTIVE = re.compile(
    r"..+(?:ed|ing|less|ful|ous|ive|able|ible|al|ally|ish|ese|ist|ics?|ly|ness|ment|tion|ety|ent|ant)\Z"
)


@dataclass(frozen=True)
class _Words:
    names: frozenset[str]
    """First names that are rarely anything else."""
    ambiguous: frozenset[str]
    others: frozenset[str]
    """No names."""


@functools.cache
def _words() -> _Words:
    lists = yaml.safe_load(files("psyco_ray.screening").joinpath("names.yaml").read_text(encoding="utf-8"))
    names = frozenset(" ".join(lists["names"].values()).split())
    ambiguous = frozenset(lists["ambiguous"].split())
    others = frozenset(" ".join(lists["not_names"].values()).split())
    return _Words(names - ambiguous - others, ambiguous - others, others)


class _Word:
    """A word of a text that may be a name."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.start, self.end, self.folded = start, end, text[start:end].lower()
        words = _words()
        self.known = self.folded in words.names
        self.ambiguous = self.folded in words.ambiguous
        self.other = self.folded in words.others or len(self.folded) < 2
        self._text = text

    @functools.cached_property
    def capital(self) -> bool:
        """Whether its case says that it is a name or begins a sentence."""
        word = self._text[self.start : self.end]
        return word[0].isupper() and (len(word) == 1 or not word.isupper()) and not _is_titled(self._text)

    @functools.cached_property
    def adjective(self) -> bool:
        """Whether it ends as adjectives do."""
        return not self.known and _ADJECTIVE.match(self.folded) is not None

    @property
    def likely(self) -> bool:
        """Whether a capital makes it a name."""
        return self.known or (self.capital and not self.adjective)


_Accepts = Callable[[str, re.Match[str], _Word, int], bool]
"""Whether the word that follows a pattern's match is a name; the number is where the whole name ends."""


def own_names(text: str, others: Collection[str] = ()) -> Iterator[Span]:
    """Names that the writer gives, and each further place of such a name or of the others."""
    spans = list(_given(text))
    yield from spans
    for name in sorted(_first_names(text, spans).union(others)):
        yield from (Span(*match.span(), "NAME") for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def first_names(text: str) -> set[str]:
    """The first names that a writer gives and that stand for a person wherever they are repeated."""
    return _first_names(text, _given(text))


def _first_names(text: str, spans: Iterable[Span]) -> set[str]:
    names = set()
    for span in spans:
        first = text[span.start : span.end].split()[0]
        word = _Word(first, 0, len(first))
        if len(first) > 2 and (word.known or (word.capital and not word.ambiguous and not word.adjective)):
            names.add(first)
    return names


def _given(text: str) -> Iterator[Span]:
    lowered = text.lower()
    if any(hint in lowered for hint in (_DECLARED_HINTS if text.isascii() else _DECLARED_HINTS_ELSEWHERE)):
        yield from _spans(text, _DECLARED.finditer(text), _is_declared, extend=True)
        yield from _spans(text, _CALLED.finditer(text), _is_called)
    yield from _spans(text, _I_AM.finditer(text), _is_introduced)
    if any(hint in lowered for hint in _INTRODUCED_HINTS):
        yield from _spans(text, _INTRODUCED.finditer(text), _is_introduced)
    yield from _spans(text, _GREETED.finditer(text), _is_greeted)
    if " here" in lowered:
        yield from _spans(text, _HERE.finditer(text), _is_known)
    tail = 0 if "\n" in text else max(0, len(text) - _SIGNATURE_CHARS)
    yield from _spans(text, _SIGNED.finditer(text, tail), _is_signed, whole=True)
    yield from _spans(text, _ALONE.finditer(text, max(0, len(text) - _SIGNATURE_CHARS)), _is_alone, whole=True)
    if not text.isascii():
        yield from (Span(*match.span("name"), "NAME") for match in _CHINESE.finditer(text))


def _spans(
    text: str, matches: Iterator[re.Match[str]], accepts: _Accepts, extend: bool = False, whole: bool = False
) -> Iterator[Span]:
    """The names at matches of a pattern.

    Args:
        text: the text.
        matches: matches with a group `name` of up to three words.
        accepts: what decides on the first word.
        extend: a word in small letters may follow the first one.
        whole: all words must be a name's.
    """
    for match in matches:
        tokens = _TOKENS.finditer(text, *match.span("name"))
        words = [_Word(text, *next(tokens).span())]
        if words[0].other:
            continue
        words += [_Word(text, *token.span()) for token in tokens if not _KISSES.fullmatch(token[0])]
        count = 1
        while count < len(words) and _continues(text, words[0], words[count], extend):
            count += 1
        end = words[count - 1].end
        if (whole and count < len(words)) or not accepts(text, match, words[0], end):
            continue
        yield Span(words[0].start, end, "NAME")


def _continues(text: str, first: _Word, word: _Word, extend: bool) -> bool:
    if word.other and len(word.folded) > 1:
        return False
    if first.capital:
        return word.capital
    if not extend or word.adjective or (word.folded[0] == "و" and not word.known):  # "and"
        return False
    return word.known or _ENDS.match(text, word.end) is not None


def _is_declared(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    if word.known or word.ambiguous or word.capital:
        return True
    return not word.adjective and _ENDS.match(text, end) is not None


def _is_called(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    return (word.known and (word.capital or _ENDS.match(text, end) is not None)) or (
        word.capital and not word.adjective
    )


def _is_introduced(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    verb, before = match["verb"].lower(), text[max(0, match.start() - 45) : match.start()]
    greeted = _GREETING_BEFORE.search(before) is not None
    if verb in _OF_OTHERS and not greeted and (verb == "it's" or before.strip(" ")[-1:] not in ("", "\n")):
        return False
    if not (_ENDS.match(text, end) or (greeted and word.known and word.capital)):
        return False
    if verb.strip().lower() in ("'m", "m", "am") and _is_full_name(text[word.start : end]):
        return True
    if not greeted and not _AGE.match(text, end):
        return word.known and (word.capital or not verb.startswith(_WITH_ADJECTIVES))
    if verb.startswith(("я", "ich bin")):  # nouns have capitals, and endings of adjectives are not known
        return word.known or (word.ambiguous and word.capital)
    return word.likely


def _is_full_name(text: str) -> bool:
    """Whether a text is two words or more with capitals that name nobody's origin or faith: "African American" does."""
    words = [_Word(word, 0, len(word)) for word in text.split()]
    return len(words) > 1 and all(word.likely and not _ORIGIN.search(word.folded) for word in words)


def _is_greeted(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    if match["title"] or (match["letter"] and not match["letter"].lower().startswith(("lieb", "sehr"))):
        return word.likely
    return word.known or (word.ambiguous and word.capital)


def _is_signed(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    if word.known:
        return True
    if match["dash"]:  # else an item of a list
        return word.likely and not text[end:].strip(". \n") and text.count("\n-") < 2
    if match["link"] in (None, "."):
        return False
    return word.likely or (match["link"] in (",", "\n") and not word.adjective and len(word.folded) > 2)


def _is_known(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    return word.known


def _is_alone(text: str, match: re.Match[str], word: _Word, end: int) -> bool:
    return word.known and word.capital


@functools.lru_cache(maxsize=4)
def _is_titled(text: str) -> bool:
    """Whether most words begin with a capital, as in a title."""
    words = text.split()
    return len(words) > 12 and sum(word[0].isupper() for word in words) > 0.6 * len(words)
