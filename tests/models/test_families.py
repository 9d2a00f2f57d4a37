"""Every family is computed as transformers computes each conversation alone, packed or plain, or it is refused."""

import pytest
from support import families
from support.family_paths import computed

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
