import pytest

from psyco_ray.data import crisis


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I have thought about suicide.", "self-harm"),
        ("I would NEVER kill myself, but I think of it", "self-harm"),
        ("I don’t want to live like this", "self-harm"),
        ("Sometimes I wish I had never been born.", "self-harm"),
        ("They'd all be better off without me", "self-harm"),
        ("i just want it all to end. i want to die", "self-harm"),
        ("there is no reason left to go on", "self-harm"),
        ("I can't do this anymore, I don't want to be here anymore", "self-harm"),
        ("I started cutting my arms again, self harm is my relief", "self-harm"),
        ("My friend says he took a bottle of pills", "self-harm"),
        ("I have urges to hurt people", "violence"),
        ("Some days I could kill him", "violence"),
        ("I am afraid that I will harm my baby", "violence"),
        ("Last night I hit my wife and I am ashamed", "violence"),
        ("He brought a gun to school", "violence"),
        ("My boyfriend hits me when he drinks", "abuse"),
        ("My mother used to beat me", "abuse"),
        ("I was raped when I was nine", "abuse"),
        ("he put his hands on me", "abuse"),
        ("My uncle touched me when I was small", "abuse"),
        ("I do not feel safe at home, he threatened to kill me", "abuse"),
        ("She won't let me leave the house", "abuse"),
    ],
)
def test_signs_of_danger_are_flagged(text: str, kind: str) -> None:
    assert kind in crisis.signs(text)


@pytest.mark.parametrize(
    "text",
    [
        "This homework is killing me.",
        "I am dying to see her again.",
        "I nearly died of embarrassment; we were killing time.",
        "I beat myself up over small things and shot myself in the foot at work.",
        "My feet are killing me and my skills are poor.",
        "I feel anxious at work and cannot sleep. What can I do to relax?",
        "It hit me that I cut down on sugar for nothing.",
    ],
)
def test_figures_of_speech_are_not_flagged(text: str) -> None:
    assert crisis.signs(text) == []


def test_each_kind_is_listed_once_and_in_order() -> None:
    text = "He hits me, he abuses me. I want to die, suicide. I could kill him."
    assert crisis.signs(text) == list(crisis.KINDS) == ["self-harm", "violence", "abuse"]
