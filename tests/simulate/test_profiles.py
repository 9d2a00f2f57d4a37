"""Profiles: what they are drawn from, and that a speech and a seed decide them."""

from pathlib import Path

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.simulate.profiles import TRAITS, Profile, ProfileLists

LISTS = ProfileLists.of(PromptsFile("default"))
SPEECH = Context.of("I cannot sleep.")


def drawn(seed: int = 0, key: str = "3f2a", context: Context = SPEECH) -> Profile:
    return LISTS.draw(seed, key, context)


def test_a_seed_and_a_speech_always_give_the_same_profile() -> None:
    assert drawn() == drawn()
    assert any(drawn(seed=seed) != drawn() for seed in range(1, 4))
    assert any(drawn(key=f"{number:04x}") != drawn() for number in range(4))


def test_every_text_of_every_list_is_drawn() -> None:
    profiles = [drawn(key=f"{number:04x}") for number in range(300)]
    for trait in TRAITS:
        assert {getattr(profile, trait) for profile in profiles} == set(LISTS.texts[trait])


def test_traits_are_drawn_independently() -> None:
    profiles = [drawn(key=f"{number:04x}") for number in range(2000)]
    pairs = {(profile.stage, profile.resistance) for profile in profiles}
    assert len(pairs) == len(LISTS.texts["stage"]) * len(LISTS.texts["resistance"])


def test_the_situation_is_what_the_client_has_said() -> None:
    conversation = SPEECH.answered("What keeps you awake?", "My job.")
    assert drawn(context=conversation).situation == "I cannot sleep.\n\nMy job."


@pytest.mark.parametrize("lists", ["", "profiles: {mood: [sad]}", "profiles: {mood: sad}", "profiles: {mood: [1]}"])
def test_lists_that_are_missing_are_named(tmp_path: Path, lists: str) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(f"respond: {{user: '{{client_speech}}'}}\n{lists}\n")
    with pytest.raises(InputError, match=r"prompts\.yaml: profiles needs (mood|stage), a list of texts"):
        ProfileLists.of(PromptsFile(str(file)))
