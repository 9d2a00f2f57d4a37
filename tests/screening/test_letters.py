"""The letters of texts."""

from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.screening.letters import letters, placed_letters

PIECES = st.sampled_from(
    [*"aZß9 .é睡<>&;\\\n", "\\n", "\\\\n", "\\u00e9", "&amp;", "&lt;", "&euml;", "&none;", "<b>", "</p>", "İ"]
)


@given(st.lists(PIECES, max_size=40).map("".join), st.booleans())
def test_letters_with_and_without_places_are_the_same(text, tags) -> None:
    found, places = placed_letters(text, tags)
    assert found == letters(text, tags)
    assert len(found) == len(places)
    assert places == sorted(places)
    assert all(0 <= begin < end <= len(text) for begin, end in places)


def test_words_are_the_same_in_every_form() -> None:
    words = "leftmezoë"
    forms = ("Left me, Zoë", "LEFT\\nME Zo\\u00eb", "<p>left</p>me Zo&euml;", "left\\\\nme zoë")
    assert {letters(form, tags=True) for form in forms} == {words}
    assert letters("a <left me> b", tags=True) == "ab"
    assert letters("a <left me> b", tags=False) == "aleftmeb"
