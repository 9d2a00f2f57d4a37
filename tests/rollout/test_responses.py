"""Sampled tokens of thinking models: answer, reasoning, lengths."""

import copy

import pytest
from support.chat_templates import QWEN3, QWEN35, R1

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.data.respond import ApiStage
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.models.encoding import encode_turn
from psyco_ray.rollout.responses import ResponseReader
from psyco_ray.run.schemas import group_tables, groups_from_tables
from psyco_ray.run.types import Group, Prompt, PromptBatch
from psyco_ray.training import guards, pairs

THOUGHTS, ANSWER = "She grieves; “ask” her.\n</think>", "I am sorry for your loss. 💙"
PLAIN_PROMPT, OPEN_PROMPT = "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"


def read(tokenizer, prompt: str, sampled: str, stopped: bool = True):
    ids = tokenizer(sampled, add_special_tokens=False)["input_ids"]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)  # as vLLM gives it
    return ResponseReader(tokenizer).read(prompt_ids, text, ids, stopped)


@pytest.mark.parametrize(("prompt", "opening"), [(PLAIN_PROMPT, "<think>\n"), (OPEN_PROMPT, "")])
def test_a_response_is_what_a_client_reads(tokenizer, prompt, opening) -> None:
    response = read(tokenizer, prompt, f"{opening}{THOUGHTS}\n\n{ANSWER}<|im_end|>")
    assert (response.text, response.reasoning, response.finished) == (ANSWER, opening + THOUGHTS, True)
    assert tokenizer.decode(response.token_ids[: response.reasoning_tokens]) == f"{opening}{THOUGHTS}\n\n"
    assert tokenizer.decode(response.token_ids[response.reasoning_tokens :]) == f"{ANSWER}<|im_end|>"


@pytest.mark.parametrize(
    ("sampled", "rest"),
    [
        ("<think>Hm.</think> Oh.<|im_end|>", " Oh.<|im_end|>"),  # one token has the space and the answer's first word
        ("<think>Hm.</think>\n💙 Oh.", "💙 Oh."),  # several tokens are one character
        ("<think>Hm.</think>\n\n<|im_end|>", "<|im_end|>"),
        ("<think>Hm.<|im_end|>", ""),
    ],
)
def test_the_tokens_after_the_reasoning_are_the_answer(tokenizer, sampled, rest) -> None:
    response = read(tokenizer, PLAIN_PROMPT, sampled)
    assert tokenizer.decode(response.token_ids[response.reasoning_tokens :]) == rest


@pytest.mark.parametrize("template", [R1, QWEN3, QWEN35], ids=["r1", "qwen3", "qwen3.5"])
@pytest.mark.parametrize("text", [ANSWER, f"<think>\n{THOUGHTS}\n\n{ANSWER}"], ids=["answer", "both"])
def test_a_sampled_and_an_offline_response_begin_their_answers_alike(tokenizer, template, text) -> None:
    thinker = copy.deepcopy(tokenizer)
    thinker.chat_template = template
    encoded = encode_turn(thinker, [{"role": "user", "content": "I feel lost."}], [text], None)
    [ids], [before] = encoded.response_ids, encoded.reasoning_tokens
    response = ResponseReader(thinker).read(encoded.prompt_ids, thinker.decode(ids, True), ids, True)
    assert (response.text, response.reasoning_tokens) == (ANSWER, before)
    assert before > 0


@pytest.mark.parametrize(("prompt", "opening"), [(PLAIN_PROMPT, "<think>\n"), (OPEN_PROMPT, "")])
@pytest.mark.parametrize("stopped", [True, False])
def test_reasoning_that_never_closes_is_no_answer(tokenizer, prompt, opening, stopped) -> None:
    response = read(tokenizer, prompt, f"{opening}She grieves", stopped)
    assert (response.text, response.finished, response.tokens) == ("", False, 0)
    group = Group(Prompt("s", (5,), 0), (response, read(tokenizer, prompt, "x</think>Oh.")), 0, {"reward": (2.0, 1.0)})
    assert pairs.pair_of(group) is None, "the unfinished one has the higher reward and is not chosen"


def test_tags_that_are_special_tokens_are_found(tokenizer) -> None:
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    response = read(special, PLAIN_PROMPT, f"[THINK]She grieves.[/THINK]{ANSWER}<|im_end|>")
    assert (response.text, response.reasoning) == (ANSWER, "[THINK]She grieves.[/THINK]")
    assert special.decode(response.token_ids[response.reasoning_tokens :]) == f"{ANSWER}<|im_end|>"


def test_a_text_without_reasoning_stays_as_it_was_sampled(tokenizer) -> None:
    response = read(tokenizer, PLAIN_PROMPT, f" {ANSWER}<|im_end|>")
    assert (response.text, response.reasoning, response.reasoning_tokens) == (f" {ANSWER}", "", 0)


def test_lengths_are_those_of_answers_and_samples_keep_both_texts(tokenizer) -> None:
    long, short = "word " * 40, "word "
    responses = [
        read(tokenizer, PLAIN_PROMPT, f"<think>{thoughts}</think>{answer}<|im_end|>")
        for thoughts, answer in ((long, "Oh."), (short, "Oh. I see, tell me more of it."))
    ]
    group = Group(Prompt("s", (5,), 3), tuple(responses), 1, {"reward": (0.0, 1.0)})
    assert responses[0].tokens < responses[1].tokens
    assert guards.length_effect([guards.Outcome.of(group)], "exclude").slope > 0, (
        "the longer answer has the higher reward"
    )
    assert groups_from_tables(PromptBatch("k", (group.prompt,)), **group_tables([group])) == [group]


def test_an_api_model_answers_without_its_reasoning() -> None:
    stage = ApiStage(Endpoint(model="thinker"), None)
    assert stage.check(None, f"<think>{THOUGHTS}\n{ANSWER} ") == ANSWER
    with pytest.raises(UnreadableAnswerError):
        stage.check(None, "<think>She grieves")
