"""The reasoning of thinking models, apart from their answers."""

import pytest

from psyco_ray.run import reasoning

HI = "I am sorry."


@pytest.mark.parametrize(
    ("text", "opened", "answer"),
    [
        (HI, False, HI),
        (f"<think>a</think>\n\n{HI}", False, HI),
        (f"a</think>{HI}", True, HI),
        (f"a</think>{HI}", False, HI),
        (f"<thinking>a</think> b</thinking>{HI}", False, HI),
        (f"<reasoning>a</reasoning> {HI}", False, HI),
        (f"[THINK]a[/THINK]{HI}", False, HI),
        (
            f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>{HI}",
            False,
            HI,
        ),
        ("<think>a", False, ""),
        ("a", True, ""),
        ("I wonder what you think> of it", False, "I wonder what you think> of it"),
    ],
)
def test_the_answer_follows_the_last_closing_tag(text, opened, answer) -> None:
    thoughts, said = reasoning.split(text, opened)
    assert said == answer
    assert (thoughts + text[len(thoughts) :]) == text
    assert text[len(thoughts) :].strip() == answer


@pytest.mark.parametrize(
    ("prompt", "text", "written"),
    [
        ("assistant\n", HI, HI),
        ("assistant\n", f"<think>a</think>{HI}", f"<think>a</think>{HI}"),
        ("assistant\n<think>\n", HI, f"\n</think>\n\n{HI}"),
        ("assistant\n<think>", HI, f"\n\n</think>\n\n{HI}"),
        ("assistant\n<think>\n", f"<think>\na\n</think>\n\n{HI}", f"a\n</think>\n\n{HI}"),
        ("assistant\n<think>\n\n</think>\n\n", f"<think>a</think>{HI}", HI),
    ],
)
def test_a_policy_continues_the_reasoning_that_its_prompt_opened(prompt, text, written) -> None:
    assert reasoning.continued(prompt, text) == written
