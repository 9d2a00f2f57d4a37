"""Whose words message lists and texts hold."""

import contextlib
import json
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.data import chat_marks, speakers
from psyco_ray.data.roles import role_of

WORDS = "Since my mother moved in I cannot sleep,\nand I do not know what to do: nothing helps (not even tea)."
LINE = WORDS.replace("\n", " ")

LAYOUTS = {
    "ChatML": f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{WORDS}<|im_end|>\n"
    "<|im_start|>assistant\nREPLY<|im_end|>",
    "Phi-4": f"<|im_start|>user<|im_sep|>{WORDS}<|im_end|><|im_start|>assistant<|im_sep|>REPLY<|im_end|>",
    "Llama 2": f"<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{WORDS} [/INST] REPLY </s><s>[INST] more [/INST]",
    "Mistral": f"<s>[INST] {WORDS} [/INST]REPLY</s>",
    "Llama 3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{WORDS}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nREPLY",
    "Gemma": f"<bos><start_of_turn>user\n{WORDS}<end_of_turn>\n<start_of_turn>model\nREPLY<end_of_turn>",
    "Phi-2": f"Instruct: {WORDS}\nOutput: REPLY",
    "Phi-3": f"<|system|>\nBe kind.<|end|>\n<|user|>\n{WORDS}<|end|>\n<|assistant|>\nREPLY<|end|>",
    "Zephyr": f"<|user|>\n{WORDS}</s>\n<|assistant|>\nREPLY</s>",
    "DeepSeek": f"<｜begin▁of▁sentence｜>Be kind.<｜User｜>{WORDS}<｜Assistant｜>REPLY",
    "Harmony": f"<|start|>user<|message|>{WORDS}<|end|><|start|>assistant<|channel|>final<|message|>REPLY<|return|>",
    "Command R": f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{WORDS}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>REPLY",
    "Baize": f"[|Human|] {WORDS}\n[|AI|] REPLY\n[|Human|] more",
    "Vicuna": f"A chat between a curious user and an assistant. USER: {LINE} ASSISTANT: REPLY</s>USER: more",
    "Vicuna in lines": f"USER: {WORDS}\nASSISTANT: REPLY",
    "Alpaca": f"Below is an instruction that describes a task.\n\n### Instruction:\n{WORDS}\n\n### Response:\nREPLY",
    "Alpaca with input": "Below is an instruction, paired with an input. Write a response.\n\n"
    f"### Instruction:\nBe a counsellor.\n\n### Input:\n{WORDS}\n\n### Response:\nREPLY",
    "Alpaca with an empty input": f"### Instruction:\n{WORDS}\n\n### Input:\n\n### Response:\nREPLY",
    "tags": f"<HUMAN>: {WORDS}\n<ASSISTANT>: REPLY",
    "closed tags": f"<user>{WORDS}</user><assistant>REPLY</assistant>",
    "hashes": f"###Human: {WORDS}\n\n###Assistant: REPLY",
    "headings": f"### User\n{WORDS}\n\n### Assistant\nREPLY",
    "one line": f"Human: {LINE} Assistant: REPLY Human: more",
    "Patient/Doctor": f"Patient: {WORDS}\nDoctor: REPLY",
    "Patient/Dr. X": f"Patient: {WORDS}\nDr. Miller: REPLY",
    "Seeker/Supporter": f"Seeker: {WORDS}\nSupporter: REPLY",
    "Client/Therapist": f"Therapist: What brings you here?\nClient: {WORDS}\nTherapist: REPLY",
    "Client/Counselor with numbers": f"Client 1: {WORDS}\nCounselor 1: REPLY\nClient 2: more",
    "Client with a name": f"Client (Anna): {WORDS}\nTherapist (Lee): REPLY",
    "User/Assistant in bold": f"**User:** {WORDS}\n\n**Assistant:** REPLY",
    "brackets": f"[Client]: {WORDS}\n[Counsellor]: REPLY",
    "times": f"[00:12] Client: {WORDS}\n[01:10] Therapist: REPLY",
    "User/Chatbot": f"User: {WORDS}\nChatbot: REPLY",
    "Human/GPT": f"Human: {WORDS}\nGPT: REPLY",
    "Q/A": f"Q: {WORDS}\nA: REPLY",
    "Q/A in a line": f"Q: {LINE} A: REPLY",
    "Question/Answer": f"Question: {WORDS}\n\nAnswer: REPLY",
    "C/T": f"T: hello\nC: {WORDS}\nT: REPLY",
    "arrows": f"User> {WORDS}\nBot> REPLY",
    "lines of their own": f"Patient\n{WORDS}\n\nTherapist\nREPLY",
    "Spanish": f"Paciente: {WORDS}\nTerapeuta: REPLY",
    "Chinese": f"来访者：{WORDS}\n咨询师：REPLY",
    "JSON": json.dumps([{"role": "user", "content": WORDS}, {"role": "assistant", "content": "REPLY"}]),
    "Python": str([{"from": "human", "value": WORDS}, {"from": "gpt", "value": "REPLY"}]),
    "NumPy": str([{"from": "human", "value": WORDS}, {"from": "gpt", "value": "REPLY"}]).replace("}, {", "}\n {"),
    "HH-RLHF": f"\n\nHuman: {WORDS}\n\nAssistant: REPLY\n\nHuman: more",
    "System/User/Assistant in a line": f"SYSTEM: Be kind. USER: {LINE} ASSISTANT: REPLY",
    "small letters in a line": f"user: {LINE} assistant: REPLY",
    "closed brackets": f"[USER] {WORDS} [/USER] [ASSISTANT] REPLY [/ASSISTANT]",
    "Question/Answer tags": f"<question>{WORDS}</question>\n<answer>REPLY</answer>",
    "Input/Output": f"Input: {WORDS}\nOutput: REPLY",
    "Prompt/Completion": f"Prompt: {WORDS}\nCompletion: REPLY",
    "Me/Therapist": f"Me: {WORDS}\nTherapist: REPLY",
    "Pt/Dr": f"Pt: {WORDS}\nDr: REPLY",
    "bold names": f"**Patient**: {WORDS}\n\n**Doctor**: REPLY",
    "dashes": f"Patient - {WORDS}\nDoctor - REPLY",
    "possessives": f"Client's message: {WORDS}\nTherapist's response: REPLY",
    "sentence marks": f"<s>Human: {WORDS}\n</s><s>Assistant: REPLY\n</s>",
    "Chinese in a line": f"用户：{LINE}助手：REPLY",
    "slashes": f"Client: {LINE} // Therapist: REPLY",
    "JSON of one object": json.dumps({"user": WORDS, "assistant": "REPLY"}),
    "two clients": f"Client 1: {WORDS}\nClient 2: more",
    "ESConv": json.dumps([{"speaker": "supporter", "content": "Hi"}, {"speaker": "seeker", "content": WORDS}]),
    "only the client": f"Patient: {WORDS}",
    "an end marker": f"{WORDS}<|endoftext|>",
}

PLAIN = (
    WORDS,
    "I told him: leave me alone. He said: no. Therapist: a word I dislike.",
    "Quick question: how do I tell my doctor that the pills do not help?",
    "My week:\nMonday: cried\nTuesday: cried\nMonday: cried again",
    "My therapist: she is nice.\nMy doctor: he is not.",
    "Age: 24\nGender: female\nProblem: I cannot sleep",
    "Title: Help\nBody: I cannot sleep",
    "[Trigger warning] I was hurt. <3 <tired> and [sad]",
    "I have options: A: leave, B: stay, C: wait",
    "A: leave\nB: stay\nC: wait\nWhat should I do?",
    "{so tired} I wrote ['a', 'b'] on the wall",
    "10:30 woke up\n11:00 cried - again\nEdit: thank you all",
    "People around me:\nDoctor\nNurse\nMother\nNone of them listens.",
)

UNKNOWN = (
    "<|speaker_1|>I cannot sleep<|speaker_2|>REPLY",
    "<|im_start|>narrator\nI cannot sleep<|im_end|>\n<|im_start|>assistant\nREPLY<|im_end|>",
    "Therapist: I see.\nDoctor: REPLY",
    "I cannot sleep.\nTherapist: REPLY",
    "Anna: I cannot sleep.\nEliza: REPLY\nAnna: more",
    "Anna: I cannot sleep.\nEliza: REPLY",
    "Speaker 1: I cannot sleep.\nSpeaker 2: REPLY\nSpeaker 1: more",
    "A: I cannot sleep.\nB: REPLY\nA: more",
    "Patient: I cannot sleep.\nEliza: REPLY",
    "['I cannot sleep', 'and I cannot eat']",
    '[{"role": "assistant", "content": "REPLY"}]',
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_turn_of_a_conversation_is_the_clients(name) -> None:
    assert speakers.client_words(LAYOUTS[name]) in (WORDS, LINE)


@pytest.mark.parametrize("text", PLAIN)
def test_a_clients_text_stays_whole(text) -> None:
    assert speakers.client_words(text) == text


@pytest.mark.parametrize("text", UNKNOWN)
def test_an_unknown_layout_is_refused_without_its_words(text) -> None:
    with pytest.raises(speakers.UnknownSpeakerError, match=r"^a (conversation|list)") as caught:
        speakers.client_words(text)
    assert "REPLY" not in str(caught.value)
    assert "sleep" not in str(caught.value)


NAMES = (
    "Patient",
    "doctor",
    "USER",
    "Q",
    "A",
    "psicólogo",
    "求助者",
    "Dr. Lee",
    "ChatGPT",
    "my doctor",
    "Anna 2",
    "Edit",
)
SIGNS = (
    ":",
    "：",
    ": ",
    " :",
    ">",
    " - ",
    " – ",
    "\n",
    "\t",
    " ",
    "  ",
    "1. ",
    "(2) ",
    "## ",
    "**",
    "12",
    "<|im_end|>",
)
WHOLES = ("x", "睡不着", "I cannot sleep.", "word " * 25, "[INST]")
PIECES = st.sampled_from((*NAMES, *SIGNS, *WHOLES))


@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_quick_look_at_a_text_misses_no_label(text) -> None:
    def words() -> str:
        try:
            return speakers.client_words(text)
        except speakers.UnknownSpeakerError as error:
            return f"error: {error}"

    quick = words()
    with (
        patch.object(chat_marks, "_may_begin_with_label", lambda line: True),
        patch.object(chat_marks, "_may_have_inline_label", lambda text: True),
    ):
        assert quick == words()


@pytest.mark.parametrize("who", speakers.ROLE_KEYS)
@pytest.mark.parametrize("what", speakers.TEXT_KEYS)
def test_messages_are_read_under_every_known_key(who, what) -> None:
    for client, other in (("client", "therapist"), ("seeker", "supporter"), ("usr", "sys"), ("human", "gpt")):
        messages = [{who: other, what: "Hello"}, {who: client, what: ""}, {who: client.upper(), what: WORDS}]
        assert speakers.first_turn(messages) == WORDS
        assert speakers.first_turn({"id": 1, "messages": messages}) == WORDS


def test_other_forms_of_messages() -> None:
    assert speakers.first_turn([{"human": WORDS, "gpt": "REPLY"}]) == WORDS
    assert speakers.first_turn({"patient": WORDS, "doctor": "REPLY"}) == WORDS
    assert speakers.first_turn([WORDS]) == WORDS
    parts = [{"type": "text", "text": WORDS[:20]}, {"type": "image"}, {"type": "text", "text": WORDS[20:]}]
    assert speakers.first_turn([{"role": "user", "content": parts}]) == WORDS
    for messages, reason in (
        (["one", "two"], "a list of values that name no speaker"),
        ([], "a list without a message of the client"),
        (
            [{"role": "narrator", "content": "x"}, {"role": "tool", "content": "y"}],
            "a list without a message of the client; its speakers are tool and 1 other value",
        ),
        (
            [{"role": "I wrote my whole story into this field", "content": "x"}],
            "a list without a message of the client; its speakers are 1 other value",
        ),
    ):
        with pytest.raises(speakers.UnknownSpeakerError) as caught:
            speakers.first_turn(messages)
        assert str(caught.value) == reason


def test_only_roles_are_listed() -> None:
    assert speakers.listed(["therapist", "Client 1", "2", "Client Anna", "I want to die"]) == (
        "therapist, Client 1, 2 and 2 other values"
    )
    assert speakers.listed(["Anna", "Client (cries: he left)"]) == "2 other values"
    assert speakers.listed(f"client {n}" for n in range(30)).endswith("client 7 and 22 other values")


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (("User", " HUMAN ", "client", "Patient 2", "help-seeker", "help_seeker", "seeker", "usr", "来访者"), "user"),
        (
            ("assistant", "GPT", "Dr. Lee", "therapist", "Counsellor", "mental health counselor", "supporter"),
            "assistant",
        ),
        (("system", "developer"), "system"),
        (("narrator", "my doctor", "", None, 3, "Anna", "the client who wrote this long text to us"), None),
    ],
)
def test_roles(names, role) -> None:
    assert {name: role_of(name) for name in names} == dict.fromkeys(names, role)


PIECES = [
    "User: ",
    "Assistant: ",
    "Q:",
    "A:",
    "\n",
    "[INST]",
    "<|im_start|>",
    "user",
    "<|end|>",
    "### Input:",
    "Dr. Lee:",
]
PIECES += ["[{'role': 'user', 'content': '", "'}]", "words", " ", "Anna: ", "<|x|>", "**", "client\n", "(12)", ">"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text())
def test_any_text_gives_a_part_of_itself_or_a_reason(text) -> None:
    with contextlib.suppress(speakers.UnknownSpeakerError):
        assert speakers.client_words(text) in text


KEYS = st.sampled_from(["role", "content", "user", "assistant", "messages", "text", "from"])
MESSAGES = st.dictionaries(
    KEYS, st.none() | st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=2), max_size=3
)


@given(
    st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner, max_size=3) | MESSAGES)
)
def test_any_value_of_a_list_gives_a_text_or_a_reason(value) -> None:
    with contextlib.suppress(speakers.UnknownSpeakerError):
        assert isinstance(speakers.first_turn(value if isinstance(value, list | dict) else [value]), str)
