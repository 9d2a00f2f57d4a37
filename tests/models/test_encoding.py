"""Conversations as token ids: where an unfinished response ends, and where its score is read."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from psyco_ray.config.resources import Scorers
from psyco_ray.models import loading, templates
from psyco_ray.models.encoding import encode, encode_turn
from psyco_ray.models.reward_model import RewardModel
from psyco_ray.rollout.scorer import GroupBatch, ScorerActor
from psyco_ray.run.types import Group, Prompt, Response, ScoreRequest

ASKED = [{"role": "user", "content": "I cannot sleep and nobody knows why."}]
CUT = "That sounds tiring, and I would like"
WHOLE = "That sounds tiring. What goes through your mind?"
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ids_of(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", [None, TRIMMING])
def test_an_unfinished_response_ends_with_its_last_text_token(tiny_model, template) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    tokenizer.chat_template = template or tokenizer.chat_template
    encoded = encode(tokenizer, ASKED, (CUT, WHOLE), None, finished=(False, True))
    cut, whole = ([*encoded.prompt_ids, *ids] for ids in encoded.response_ids)
    assert tuple(cut[-len(ids_of(tokenizer, CUT)) :]) == ids_of(tokenizer, CUT)
    assert tokenizer.eos_token_id in whole[-2:]
    assert encode(tokenizer, ASKED, (CUT, WHOLE), None).response_ids[1] == encoded.response_ids[1]

    turn = encode_turn(tokenizer, ASKED, (CUT, WHOLE), None, finished=(False, True))
    end = (tokenizer.eos_token_id,)
    assert turn.response_ids == (ids_of(tokenizer, CUT), ids_of(tokenizer, WHOLE) + end)
    assert list(turn.prompt_ids) == templates.conversation_ids(tokenizer, ASKED)
    assert encode_turn(tokenizer, ASKED, (CUT, WHOLE), None).response_ids[0] == ids_of(tokenizer, CUT) + end


def test_an_unfinished_response_without_text_is_the_open_turn(tokenizer) -> None:
    encoded = encode(tokenizer, ASKED, ("", WHOLE), None, finished=(False, True))
    empty = [*encoded.prompt_ids, *encoded.response_ids[0]]
    assert empty == templates.conversation_ids(tokenizer, ASKED)


def test_a_template_that_drops_an_unfinished_text_is_named_without_the_text(tiny_model) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    tokenizer.chat_template = "{{ messages[0].content }} {{ messages[-1].content | upper }}"
    with pytest.raises(ValueError, match="changes the text of a response that was cut") as raised:
        encode(tokenizer, ASKED, (CUT,), None, finished=(False,))
    assert "tiring" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_score_of_an_unfinished_response_is_read_at_its_last_text_token(tiny_reward_model) -> None:
    model = RewardModel(str(tiny_reward_model), Scorers(dtype="float32"), None)
    tokenizer = loading.load_tokenizer(tiny_reward_model)
    conversation = templates.conversation_ids(tokenizer, [*ASKED, {"role": "assistant", "content": CUT}])
    text_end = len(conversation) - 1 - conversation[::-1].index(tokenizer.eos_token_id)
    by_transformers = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [
            by_transformers(torch.tensor([ids])).logits.item() for ids in (conversation[:text_end], conversation)
        ]
    assert abs(expected[0] - expected[1]) > 0.01, "the end of turn matters to the score"
    cut, whole = (
        model.score([ScoreRequest("key", tuple(ASKED), (CUT, WHOLE), finished)])[0].values
        for finished in ((False, True), ())
    )
    assert [cut[0], whole[0]] == pytest.approx(expected, abs=1e-5)
    assert cut[1] == pytest.approx(whole[1], abs=1e-5)


def test_a_scorer_scores_the_cut_responses_of_a_group_as_cut(tiny_reward_model) -> None:
    scorer = ScorerActor("scorer-0", {"reward": str(tiny_reward_model)}, None, Scorers(dtype="float32"))
    scorer.ready()
    responses = (Response(CUT, (9,), False), Response(WHOLE, (9,), True))
    [scored] = scorer.score(GroupBatch(((Group(Prompt("s", (1,), 0), responses, 0), ASKED),), ("reward",)))
    alone = [
        scorer.score_texts("reward", ASKED, [text], [finished])[0] for text, finished in ((CUT, False), (WHOLE, True))
    ]
    assert scored.scores["reward"] == pytest.approx(alone, abs=1e-5)
    assert scored.scores["reward"][0] != pytest.approx(scorer.score_texts("reward", ASKED, [CUT])[0], abs=1e-3)
