"""What one would script today for an iteration of DPO: one process to sample, one to score, one to train.

python benchmarks/scripted.py sample|score|train SETTINGS.json

vLLM, transformers and TRL as their manuals show them, nothing of ours; each process loads what it needs and leaves a
file for the next. The last line says at which moment (`time.time()`) its models were loaded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


def sample(given: Settings) -> float:
    """Responses of the policy to every speech; the moment when the engine was loaded."""
    from vllm import LLM, SamplingParams

    llm = LLM(given["policy"], **given["engine"])
    loaded = time.time()
    how = {"n": given["responses"], "temperature": given["temperature"], "max_tokens": given["max_tokens"]}
    asked = [SamplingParams(**how, seed=number) for number in range(len(given["conversations"]))]
    outputs = llm.chat(given["conversations"], asked, use_tqdm=False)
    write(given["sampled"], [{"responses": [one.text for one in output.outputs]} for output in outputs])
    return loaded


def score(given: Settings) -> float:
    """Best and worst response to every speech by the reward model, as pairs for TRL."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(given["threads"])
    model = AutoModelForSequenceClassification.from_pretrained(given["reward"], dtype=given["score_dtype"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(given["reward"])
    loaded = time.time()
    sampled = [row["responses"] for row in read(given["sampled"])]
    texts = [
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False)
        for messages, responses in zip(given["conversations"], sampled, strict=True)
        for text in responses
    ]
    scores: list[float] = []
    for first in range(0, len(texts), given["score_batch"]):
        part = texts[first : first + given["score_batch"]]
        batch = tokenizer(part, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            scores += model(**batch).logits[:, 0].float().tolist()
    pairs = []
    for messages, responses in zip(given["conversations"], sampled, strict=True):
        values, scores = scores[: len(responses)], scores[len(responses) :]
        ends = {"chosen": values.index(max(values)), "rejected": values.index(min(values))}
        if max(values) > min(values) and len({responses[end] for end in ends.values()}) == 2:
            sides = {side: [{"role": "assistant", "content": responses[end]}] for side, end in ends.items()}
            pairs.append({"prompt": messages, **sides})
    write(given["pairs"], pairs)
    return loaded


def train(given: Settings) -> float:
    """One round of DPO on the pairs, and the policy that it leaves."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(given["threads"])
    settings = DPOConfig(**given["trl"])
    trainer = DPOTrainer(
        model=given["policy"],
        ref_model=AutoModelForCausalLM.from_pretrained(given["base"], **settings.model_init_kwargs),
        args=settings,
        train_dataset=datasets.Dataset.from_list(read(given["pairs"])),
        processing_class=AutoTokenizer.from_pretrained(given["policy"]),
    )
    loaded = time.time()
    trainer.train()
    trainer.model.to(torch.bfloat16)  # which is what the engine reads
    trainer.save_model(given["trained"])
    return loaded


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    stage = {"sample": sample, "score": score, "train": train}[sys.argv[1]]
    print(json.dumps({"loaded": stage(json.loads(Path(sys.argv[2]).read_text()))}))
