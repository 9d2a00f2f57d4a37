"""Where a policy's turn ends, in sampling, in training and in a checkpoint."""

import json
from pathlib import Path

import pytest
from support import families

from psyco_ray.models import loading
from psyco_ray.models.encoding import encode_turn
from psyco_ray.models.stop_tokens import end_of_turn, stop_tokens

ASKED = [{"role": "user", "content": "I cannot sleep."}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
OPENING = (  # GLM-4's way: a turn ends where the next one opens
    "{% for m in messages %}<|{{ 'im_start' if m.role == 'user' else 'im_end' }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>{% endif %}"
)
TWICE = (  # Phi-3's way: the end of text follows the last end of turn
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)


def tokenizer_of(path: Path, eos: str = "</s>", template: str = families.TEMPLATE, **configured):
    families.new_tokenizer(eos, template).save_pretrained(path)
    for name, settings in configured.items():
        (path / f"{name}.json").write_text(json.dumps(settings))
    return loading.load_tokenizer(path)


@pytest.mark.parametrize(
    ("eos", "template", "configured", "expected"),
    [
        ("</s>", families.TEMPLATE, {}, [families.EOS, families.END]),
        ("<|im_end|>", families.TEMPLATE, {}, [families.END]),
        ("</s>", PLAIN, {}, [families.EOS]),
        ("</s>", PLAIN, {"generation_config": {"eos_token_id": [2, 4, 3]}}, [2, 3, 4]),
        ("</s>", PLAIN, {"generation_config": {"eos_token_id": 4}, "config": {"eos_token_id": 9}}, [2, 4]),
        ("</s>", PLAIN, {"generation_config": {"temperature": 0.5}, "config": {"eos_token_id": 9}}, [2]),
        ("</s>", PLAIN, {"config": {"text_config": {"eos_token_id": [9, 7]}}}, [2, 7, 9]),
        ("</s>", TWICE, {}, [families.EOS, families.END]),
    ],
)
def test_stop_tokens_are_those_of_all_three_sources(tmp_path, eos, template, configured, expected) -> None:
    assert list(stop_tokens(tokenizer_of(tmp_path, eos, template, **configured))) == expected


def test_another_template_has_its_own_stop_token(tmp_path) -> None:
    tokenizer = tokenizer_of(tmp_path, template=PLAIN)
    assert stop_tokens(tokenizer) == (families.EOS,)
    tokenizer.chat_template = families.TEMPLATE
    assert stop_tokens(tokenizer) == (families.EOS, families.END)


def test_invalid_stop_tokens_are_named(tmp_path) -> None:
    tokenizer = tokenizer_of(tmp_path, generation_config={"eos_token_id": "<|im_end|>"})
    with pytest.raises(ValueError, match=r"generation_config.json has the eos_token_id .*im_end.*; give token ids"):
        stop_tokens(tokenizer)


@pytest.mark.parametrize("template", [families.TEMPLATE, TWICE])
@pytest.mark.parametrize("eos", ["</s>", "<|im_end|>"])
def test_what_a_template_writes_after_the_end_of_turn_is_not_trained(tmp_path, template, eos) -> None:
    tokenizer = tokenizer_of(tmp_path, eos, template)
    turn = encode_turn(tokenizer, ASKED, ("Why?", "Since when?"), None, finished=(True, False))
    whole, cut = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Why?", "Since when?"))
    assert [list(ids) for ids in turn.response_ids] == [[*whole, families.END], cut]


@pytest.mark.parametrize(
    ("template", "configured", "end"),
    [(OPENING, [families.OPEN, families.EOS], families.OPEN), (PLAIN, [], families.EOS), (OPENING, [], families.EOS)],
)
def test_a_template_without_an_end_of_turn_gets_one(tmp_path, template, configured, end) -> None:
    tokenizer = tokenizer_of(tmp_path, template=template, generation_config={"eos_token_id": configured})
    assert end_of_turn(tokenizer) == end
    turn = encode_turn(tokenizer, ASKED, ("Why?", "When?"), None, finished=(True, False))
    assert [ids[-1] for ids in turn.response_ids] == [end, turn.response_ids[1][-1]]
    assert turn.response_ids[1][-1] not in stop_tokens(tokenizer)
    assert families.new_tokenizer().decode(turn.response_ids[0][:-1]).strip().endswith("Why?")
