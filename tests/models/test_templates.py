"""Chat templates: where turns begin, options, the system role, and what a template refuses."""

import copy
import json
import logging

import pytest
from support.chat_templates import GEMMA, PLAIN, QWEN3, QWEN35, R1, SILENT, with_template

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import Job
from psyco_ray.data import mixture, preferences, speeches
from psyco_ray.models import loading, templates
from psyco_ray.models.encoding import encode_turn
from psyco_ray.models.reward_model import RewardModel
from psyco_ray.run.types import ScoreRequest

ASKED = [{"role": "user", "content": "I cannot sleep since the funeral."}]
SYSTEM = {"role": "system", "content": "Answer as a counsellor."}
GOOD, BAD = "I am sorry. What keeps you awake?", "Sleep more."
THOUGHTFUL = f"<think>\nShe grieves.\n</think>\n\n{GOOD}"


@pytest.fixture(scope="module")
def with_chat_template(tokenizer):
    """One tokenizer, whose template is the last one given."""
    copied = copy.deepcopy(tokenizer)

    def give(template: str, **options):
        copied.chat_template = template
        templates.with_options(copied, options)
        return copied

    return give


@pytest.mark.parametrize(
    ("template", "options", "before"),
    [
        (PLAIN, {}, ""),
        (GEMMA, {}, ""),
        (R1, {}, "\n</think>\n\n"),
        (QWEN3, {}, "<think>\n\n</think>\n\n"),
        (QWEN3, {"enable_thinking": False}, ""),
        (QWEN35, {}, "\n</think>\n\n"),
        (QWEN35, {"enable_thinking": False}, ""),
    ],
    ids=["plain", "gemma", "r1", "qwen3", "qwen3-off", "qwen3.5", "qwen3.5-off"],
)
def test_an_offline_turn_begins_where_a_policy_writes(with_chat_template, template, options, before) -> None:
    tokenizer = with_chat_template(template, **options)
    encoded = encode_turn(tokenizer, ASKED, (GOOD, BAD), None)
    assert list(encoded.prompt_ids) == templates.conversation_ids(tokenizer, ASKED), "the prompt of a rollout"
    turns = [tokenizer.decode(ids) for ids in encoded.response_ids]
    assert turns == [f"{before}{text}<|im_end|>" for text in (GOOD, BAD)]
    sides = zip(encoded.response_ids, encoded.reasoning_tokens, strict=True)
    assert [tokenizer.decode(ids[:k]) for ids, k in sides] == [before, before]


@pytest.mark.parametrize(
    ("template", "turn"),
    [(R1, THOUGHTFUL.removeprefix("<think>\n")), (QWEN35, THOUGHTFUL.removeprefix("<think>\n")), (QWEN3, THOUGHTFUL)],
    ids=["r1", "qwen3.5", "qwen3"],
)
def test_an_offline_turn_keeps_the_reasoning_of_its_text(with_chat_template, template, turn) -> None:
    tokenizer = with_chat_template(template)
    encoded = encode_turn(tokenizer, ASKED, (THOUGHTFUL, THOUGHTFUL), None, finished=(True, False))
    assert [tokenizer.decode(ids) for ids in encoded.response_ids] == [f"{turn}<|im_end|>", turn]
    sides = zip(encoded.response_ids, encoded.reasoning_tokens, strict=True)
    assert [tokenizer.decode(ids[k:]) for ids, k in sides] == [f"{GOOD}<|im_end|>", GOOD]


def test_a_turn_without_text_is_refused(with_chat_template) -> None:
    deaf = with_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(InputError, match="leaves out or changes the text") as raised:
        encode_turn(deaf, ASKED, (GOOD, BAD), None)
    assert "funeral" not in str(raised.value)
    with pytest.raises(InputError, match="leaves out or changes the assistant message"):
        templates.check(deaf, ASKED)


def test_a_turn_is_cut_in_its_prompt_alone(with_chat_template) -> None:
    tokenizer = with_chat_template(R1)
    whole = encode_turn(tokenizer, ASKED, (GOOD, BAD), None)
    length = len(whole.prompt_ids) + max(map(len, whole.response_ids))
    cut = encode_turn(tokenizer, ASKED, (GOOD, BAD), length - 3)
    assert cut.response_ids == whole.response_ids
    bos = int(whole.prompt_ids[0] == tokenizer.bos_token_id)
    assert cut.prompt_ids == whole.prompt_ids[:bos] + whole.prompt_ids[bos + 3 :]
    assert cut.cut == 3


def test_options_are_saved_with_the_template(with_chat_template, tmp_path) -> None:
    off = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    tokenizer = with_chat_template(QWEN3, enable_thinking=False)
    tokenizer.save_pretrained(tmp_path)
    saved = loading.load_tokenizer(tmp_path)
    assert saved.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True).endswith(off)
    asked_for = saved.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert asked_for.endswith("<|im_start|>assistant\n"), "a server's client decides"
    again = loading.load_tokenizer(tmp_path, template_options={"enable_thinking": True})
    assert again.decode(templates.conversation_ids(again, ASKED)) == asked_for


def test_an_option_changes_nothing_else_of_a_template(with_chat_template) -> None:
    for template in ("\n{{ messages[0].content }} {{ style }}", "  {% if style %}{{ messages[0].content }}{% endif %}"):
        expected = with_chat_template(template).apply_chat_template(ASKED, tokenize=False, style="calm")
        assert with_chat_template(template, style="calm").apply_chat_template(ASKED, tokenize=False) == expected


@pytest.mark.parametrize("name", ["enable_thinkin", "tools", "eos_token"])
def test_an_option_that_the_template_does_not_use_is_refused(with_chat_template, name) -> None:
    with pytest.raises(InputError, match=f"template_options has {name}, .*its options: enable_thinking"):
        with_chat_template(QWEN3, **{name: True})


@pytest.mark.parametrize("template", [GEMMA, SILENT], ids=["refused", "left out"])
def test_a_system_message_without_a_role_stands_before_the_first_user_message(
    with_chat_template, template, caplog
) -> None:
    tokenizer = with_chat_template(template)
    folded = [{"role": "user", "content": f"{SYSTEM['content']}\n\n{ASKED[0]['content']}"}]
    assert templates.conversation_ids(tokenizer, [SYSTEM, *ASKED]) == templates.conversation_ids(tokenizer, folded)
    with caplog.at_level(logging.INFO):
        templates.check(tokenizer, [SYSTEM, *ASKED])
        templates.check(tokenizer, ASKED)
    assert caplog.text.count("has no system role") == 1


def test_roles_that_a_template_refuses_are_named_without_the_words(with_chat_template) -> None:
    tokenizer = with_chat_template(GEMMA)
    with pytest.raises(InputError, match=r"refuses a conversation of user, user: .*must alternate") as raised:
        templates.conversation_ids(tokenizer, ASKED * 2)
    assert "funeral" not in str(raised.value)
    quoting = with_chat_template("{{ raise_exception('not this: ' + messages[0].content) }}")
    with pytest.raises(InputError, match="refuses a conversation of user: not this: Is this text kept") as raised:
        templates.conversation_ids(quoting, ASKED)
    assert "funeral" not in str(raised.value)


def test_a_refused_prompt_ends_a_job_before_anything_starts(tiny_model, tmp_path) -> None:
    refusing = (
        "{% if messages | length > 1 %}{{ raise_exception('One message only') }}{% endif %}{{ messages[0].content }}"
    )
    model = with_template(tiny_model, refusing, tmp_path / "model")
    for start in (speeches.check_prompt, mixture.Encoder):
        with pytest.raises(InputError, match=r"refuses a conversation of .*: One message only"):
            start(Job(model=str(model)))


def test_a_pair_that_a_template_refuses_is_named(tiny_model, tmp_path) -> None:
    model = with_template(tiny_model, GEMMA, tmp_path / "model")
    asked = [*ASKED, *ASKED]
    row = {"prompt": asked, "chosen": GOOD, "rejected": BAD, "id": "p7"}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row))
    table = preferences.read(str(file)).table
    for for_policy in (True, False):
        [encoded] = mixture._encode_rows(table, Job(model=str(model)), 512, for_policy).to_pylist()
        assert encoded["problem"].startswith("pair p7: the chat template of")
        assert "funeral" not in encoded["problem"]


def test_a_reward_model_reads_answers_and_folds_the_system_message(tiny_reward_model, tmp_path) -> None:
    model = RewardModel(
        str(with_template(tiny_reward_model, GEMMA, tmp_path / "gemma")), Scorers(dtype="float32"), None
    )
    folded = ({"role": "user", "content": f"{SYSTEM['content']}\n\n{ASKED[0]['content']}"},)
    [thoughtful] = model.score([ScoreRequest("a", (SYSTEM, *ASKED), (THOUGHTFUL, BAD))])
    [plain] = model.score([ScoreRequest("b", folded, (GOOD, BAD))])
    assert thoughtful.values == pytest.approx(plain.values, abs=1e-6)


def test_a_reward_model_whose_template_refuses_a_conversation_does_not_load(tiny_reward_model, tmp_path) -> None:
    refusing = "{{ raise_exception('Only tools speak here') }}"
    path = with_template(tiny_reward_model, refusing, tmp_path / "refusing")
    with pytest.raises(InputError, match="refuses a conversation of user: Only tools speak here"):
        RewardModel(str(path), Scorers(dtype="float32"), None)
