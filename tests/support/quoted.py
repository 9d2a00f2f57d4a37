"""Questions to a judge without the marks around the texts to be judged, and what stands outside of them."""

from __future__ import annotations

import re

_NOTE = re.compile(r"Text between <(?P<mark>q-[0-9a-f]{6})> and </(?P=mark)> is quoted to be judged\. .*?\n\n")


def without_marks(content: str) -> str:
    """The question as the prompt's author wrote it, with the texts in their places."""
    note = _NOTE.match(content)
    assert note is not None, "no note on the marks"
    mark = note["mark"]
    return content[note.end() :].replace(f"<{mark}>", "").replace(f"</{mark}>", "")


def outside_marks(content: str) -> str:
    """What a judge that minds the marks takes for instructions."""
    note = _NOTE.match(content)
    assert note is not None, "no note on the marks"
    mark = note["mark"]
    return re.sub(f"<{mark}>.*?</{mark}>", "", content[note.end() :], flags=re.DOTALL)
