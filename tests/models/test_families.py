"""Every family is computed as transformers computes each conversation alone, packed or plain, or it is refused."""

import pytest
import torch
from support import families
from support.family_paths import computed
from transformers import AutoModelForSequenceClassification

from psyco_ray.config.resources import Scorers
from psyco_ray.models import templates
from psyco_ray.rollout.scorer import ScorerActor

QUICK = ["llama", "mistral", "gemma2", "gemma3-images", "glm4-moe", "granite", "lfm2", "qwen3-next"]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in families.CAUSAL]
)
def test_a_family_is_computed_right_and_starts_at_its_reference(tmp_path, name: str) -> None:
    found = computed(name, tmp_path)
    assert found.way != "refused", found.reason
    assert (found.way == "plain") is bool(found.reason)
    assert found.difference < 1e-5, found
    assert found.margin < 1e-5, found


def test_a_reward_model_with_a_state_scores_each_response_as_alone_and_says_how(tmp_path) -> None:
    config, _ = families.build("qwen3-next")
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    tokenizer = families.new_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    actor = ScorerActor("scorer-0", {"reward": str(tmp_path)}, None, Scorers(dtype="float32"))
    actor.ready()
    messages, responses = (
        [{"role": "user", "content": "I cannot sleep."}],
        ["Why?", "How long has that been so?", "Oh."],
    )
    scores = actor.score_texts("reward", messages, responses)
    turns = [{"role": "assistant", "content": response} for response in responses]
    with torch.no_grad():
        ids = [templates.conversation_ids(tokenizer, [*messages, turn]) for turn in turns]
        expected = [model(torch.tensor([own])).logits.item() for own in ids]
    assert scores == pytest.approx(expected, abs=1e-5)
    [note] = actor.notes
    assert note.startswith(f"reward model {tmp_path} is computed one conversation a row")
    assert "running state (linear_attention)" in note
