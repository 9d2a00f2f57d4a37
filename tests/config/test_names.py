"""Names and short settings are shown in messages; what a client may have said is told by its length."""

import pytest

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.names import is_id, is_key, is_label, is_name, named_file, setting
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.config.training import Job

WORDS = "My husband left me in May"


@pytest.mark.parametrize(
    "name", ["id", "chosen-rating", "Client story", "utterance_text", "来访者", "0", "Age (years)"]
)
def test_names_of_columns_are_names(name) -> None:
    assert is_name(name) == (name != "0"), "a number may be a cell"
    assert is_label(name)


@pytest.mark.parametrize("text", ["I want to die", "Help me!", "我最近总是失眠", "2024-05-01", "one\ntwo", "x" * 41])
def test_sentences_and_numbers_are_no_names(text) -> None:
    assert not is_name(text)
    assert not is_key(text)


def test_labels_and_ids_are_no_texts() -> None:
    labels = ("Grief and loss", "alpacaeval-easy", "7", "https://example.org/a/list/of/conversations/2024", "Hopeless")
    assert [label for label in labels if not is_label(label)] == []
    texts = (WORDS, "I cannot sleep.", "我最近总是失眠，觉得没有人理解我", "a\nb")
    assert [text for text in texts if is_label(text)] == []
    assert [is_id(text) for text in ("sample-142-1", "a" * 80, "a" * 81, "Anna Meier", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_settings_and_files_are_shown_unless_they_are_words() -> None:
    assert [setting(value) for value in ("many", 3, None, [1], {"a": "b c"})] == [
        "'many'",
        "3",
        "None",
        "[1]",
        "{'a': 'b c'}",
    ]
    assert [setting(value) for value in (WORDS, [WORDS], {WORDS: 1})] == [
        "of 27 characters",
        "of 29 characters",
        "of 32 characters",
    ]
    for path in ("/data/my notes/of the year/a.csv", "the notes of May.csv", "runs/demo", "no spaces"):
        assert named_file(path) == path
    assert named_file(WORDS) == "with a name of 25 characters"
    assert named_file("a" * 300) == "with a name of 300 characters"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{WORDS}: 1", r"unknown key \(a text of 25 characters\); known here: "),
        (f"sampling: {{{WORDS}: 1}}", r"unknown key sampling\.\(a text of 25 characters\); known here"),
        (f"seed: {WORDS}", "seed: invalid value of 27 characters: "),
        (f"data: [{WORDS}]", "data: invalid value of 29 characters: "),
        ("seed: *husband", r"line 1: found undefined alias \[…\]"),
        ("sampling: {temprature: 1}", r"unknown key sampling\.temprature; did you mean sampling\.temperature"),
        ("seed: many", "seed: invalid value 'many'"),
        ("a: b: c", "line 1: mapping values are not allowed here"),
    ],
)
def test_words_in_a_job_file_are_told_by_their_length(tmp_path, text, message) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as found:
        job_file.load_as(Job, path)
    assert "husband" not in str(found.value)


def test_words_in_an_override_or_in_place_of_a_job_file_are_not_shown() -> None:
    for job, overrides in ((None, [WORDS]), (None, [f"seed={WORDS}"]), (WORDS, [])):
        with pytest.raises(InputError, match=r"of \d+ characters") as found:
            job_file.load_as(Job, job, overrides)
        assert "husband" not in str(found.value)
    with pytest.raises(InputError, match="override 'resume' is not of the form key=value"):
        job_file.load_as(Job, None, ["resume"])


def test_keys_of_a_prompts_file_are_shown_unless_they_are_words(tmp_path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(f"mine: a\njudge-conversation: b\n{WORDS}: c\n")
    with pytest.raises(InputError, match=r"it has mine, judge-conversation, \(a text of 25 characters\)$"):
        PromptsFile(str(path)).entry("yours")
