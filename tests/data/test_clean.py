"""Cleaning of raw texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.data.clean import clean


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<p>I feel sad.</p><p>Very&nbsp;sad.</p>", "I feel sad.\nVery sad."),
        ("one<br>two<BR />three<br/><br/>four", "one\ntwo\nthree\nfour"),
        ("<div class=\"a b\"><b>No</b>body <a href='https://x.org/?a=1'>calls</a> me</div>", "Nobody calls me"),
        ("a<script type='x'>var a = '<b>';</script>b<style>p {}</style>c<!-- no -->d", "a b c d"),
        ("I feel < 3 and > 5", "I feel < 3 and > 5"),
        ("x<y and y>z, I <3 you, <name> <I feel bad>", "x<y and y>z, I <3 you, <name> <I feel bad>"),
        ("Tom &amp; I &lt;3 you &#39;now&#x27; &copy R&B &amp;amp;", "Tom & I <3 you 'now' &copy R&B &"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
        ("a \u00a0 b\u200b\u2060c\ufeff \x00d\x07", "a bc d"),
        ("  a\r\n\r\n \t b\rc\u2028d  ", "a\nb\nc\nd"),
        ("cafe\u0301", "café"),
        ("I donâ€™t â€œknowâ€\x9d â€” cafÃ© Â£5 â€¦", "I don’t “know” — café £5 …"),
        ("itÃ¢â‚¬â„¢s", "it’s"),
        ("ðŸ˜€ ok", "😀 ok"),
        ("I don\x92t", "I don’t"),
        ("Ünïcödé stays: 日本語 😀 naïve â la carte À propos", "Ünïcödé stays: 日本語 😀 naïve â la carte À propos"),
        ("half \ud83d character", "half character"),
        (" \n\u200b<p></p>", ""),
        ("**Help.** I am ***so*** sad, __really__ sad **at it all**!", "Help. I am so sad, really sad at it all!"),
        ("total b***h, f**k, s**t ** and 2**3 and snake__case", "total b***h, f**k, s**t ** and 2**3 and snake__case"),
        ("he\\_she said \\*no\\* \\#1, it\\-s :\\( and :\\", "he_she said *no* #1, it-s :\\( and :\\"),
        ("From a teen in the U.S.: I cannot sleep.", "I cannot sleep."),
        ("From a woman in Canada: “My mother” left.", "“My mother” left."),
        ("<p>From an 18-year-old in New York, USA:</p><p>I left.</p>", "I left."),
        ("From the Philippines: My name is hidden.", "My name is hidden."),
        ("From my view: fine. From a teen in Ohio: I left.", "From my view: fine. From a teen in Ohio: I left."),
        ("From Monday on I felt worse: I cried.", "From Monday on I felt worse: I cried."),
    ],
)
def test_cleaning(raw: str, text: str) -> None:
    assert clean(raw) == text


FRAGMENTS = (
    "<p>",
    "</p",
    ">",
    "<",
    "&",
    "amp;",
    "lt;",
    "#39;",
    "&#x26;",
    "**",
    "\\",
    "_",
    "From Ohio: ",
    "â€™",
    "Ã",
    "â",
    "€",
    "\x92",
    "\u0301",
    "\n",
    " ",
    "b",
)


@given(st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_cleaning_is_idempotent(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert not once.startswith(("\n", " "))
    assert "  " not in once
    assert "\n\n" not in once
    once.encode()
