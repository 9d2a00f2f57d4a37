"""An iteration of DPO as separate scripts: one process samples, one scores, one trains.

python benchmarks/scripted.py sample|score|train SETTINGS.json

Uses vLLM, transformers and TRL as their documentation shows, and nothing of psyco_ray. Each process loads its models
and writes a file for the next. The last line has the time (`time.time()`) at which its models were loaded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


def sample(inputs: Settings) -> float:
    """Samples the policy's responses to every speech; returns when the engine was loaded."""
    from vllm import LLM, SamplingParams

    llm = LLM(inputs["policy"], **inputs["engine"])
    loaded = time.time()
    params = {"n": inputs["responses"], "temperature": inputs["temperature"], "max_tokens": inputs["max_tokens"]}
    sampling = [SamplingParams(**params, seed=number) for number in range(len(inputs["conversations"]))]
    outputs = llm.chat(inputs["conversations"], sampling, use_tqdm=False)
    write(inputs["sampled"], [{"responses": [completion.text for completion in output.outputs]} for output in outputs])
    return loaded


def score(inputs: Settings) -> float:
    """Scores the responses and writes the best and the worst of each speech as pairs for TRL."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(inputs["threads"])
    model = AutoModelForSequenceClassification.from_pretrained(inputs["reward"], dtype=inputs["score_dtype"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(inputs["reward"])
    loaded = time.time()
    sampled = [row["responses"] for row in read(inputs["sampled"])]
    texts = [
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False)
        for messages, responses in zip(inputs["conversations"], sampled, strict=True)
        for text in responses
    ]
    scores: list[float] = []
    for first in range(0, len(texts), inputs["score_batch"]):
        part = texts[first : first + inputs["score_batch"]]
        batch = tokenizer(part, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            scores += model(**batch).logits[:, 0].float().tolist()
    pairs = []
    for messages, responses in zip(inputs["conversations"], sampled, strict=True):
        values, scores = scores[: len(responses)], scores[len(responses) :]
        ends = {"chosen": values.index(max(values)), "rejected": values.index(min(values))}
        if max(values) > min(values) and len({responses[end] for end in ends.values()}) == 2:
            sides = {side: [{"role": "assistant", "content": responses[end]}] for side, end in ends.items()}
            pairs.append({"prompt": messages, **sides})
    write(inputs["pairs"], pairs)
    return loaded


def train(inputs: Settings) -> float:
    """Trains one round of DPO on the pairs and saves the policy."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(inputs["threads"])
    settings = DPOConfig(**inputs["trl"])
    trainer = DPOTrainer(
        model=inputs["policy"],
        ref_model=AutoModelForCausalLM.from_pretrained(inputs["base"], **settings.model_init_kwargs),
        args=settings,
        train_dataset=datasets.Dataset.from_list(read(inputs["pairs"])),
        processing_class=AutoTokenizer.from_pretrained(inputs["policy"]),
    )
    loaded = time.time()
    trainer.train()
    trainer.model.to(torch.bfloat16)  # the dtype that the engine loads
    trainer.save_model(inputs["trained"])
    return loaded


def read(path: str) -> list[dict[str, Any]]:
    """Reads a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path: str, rows: list[dict[str, Any]]) -> None:
    """Writes a JSONL file."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    stage = {"sample": sample, "score": score, "train": train}[sys.argv[1]]
    print(json.dumps({"loaded": stage(json.loads(Path(sys.argv[2]).read_text()))}))
