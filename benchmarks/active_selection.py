"""Active selection: 60 labels that `psyco-ray desk suggest` would ask for, against 100 drawn at random.

.venv/bin/python benchmarks/active_selection.py [--first-seed 100] [--seeds 5] [--draws 10] [--features model]

The packaged pairs, with their own labels as the annotator. A seed holds out the pairs of 30 % of the speeches, which
are never selected. A draw begins with 20 random pairs; then a committee of five Bradley-Terry models, each trained on
a bootstrap sample of the labels, gives margins of the others, from which `suggest.select` takes the next ten, up to 60.
The committee knows no side: which response of a pair comes first is random. The peer has 100 random pairs, the first 20
of them the same. Both are judged by the held-out accuracy of one model trained on all labels; figures are means over
seeds and draws.

A model is a linear reward on frozen features, trained by scikit-learn's logistic regression. `model`: the first 20
layers of SmolLM2-135M-Instruct, at the last token of the conversation. `text`: TF-IDF of the response's characters.
The rule, the layer and the penalty were chosen on seeds 0 to 19.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psyco_ray.data import preferences
from psyco_ray.desk import suggest

BAR = 1.0
FIRST, STEP, ACTIVE, RANDOM, COMMITTEE = 20, 10, 60, 100, 5
HELD_OUT = 0.3  # of the speeches
LAYERS, BATCH = 20, 8
PENALTY = {"model": 1.0, "text": 10.0}  # C of scikit-learn, the inverse of the penalty

Floats = NDArray[np.float64]


def of_model(pairs: Sequence[dict[str, Any]]) -> Floats:
    """Differences of the features of chosen and rejected, shape [pairs, hidden size]."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    from psyco_ray.models import loading

    logging.set_verbosity_error()  # the last layers are left out on purpose
    path = loading.resolve("smollm2-135m")
    tokenizer = loading.load_tokenizer(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32, num_hidden_layers=LAYERS).eval()
    conversations = [
        [{"role": "user", "content": pair["asked"]}, {"role": "assistant", "content": pair[side]}]
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False).rstrip() for turns in conversations]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(ids)), key=lambda text: len(ids[text]))
    features = np.zeros((len(ids), model.config.hidden_size))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        padded = tokenizer.pad({"input_ids": [ids[text] for text in batch]}, padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            states = model(**padded, use_cache=False).last_hidden_state
        features[batch] = states[range(len(batch)), padded["attention_mask"].sum(1) - 1].numpy()
    chosen, rejected = np.split(features, 2)
    return chosen - rejected


def of_text(pairs: Sequence[dict[str, Any]]) -> Floats:
    """Differences of the TF-IDF of chosen and rejected; rotated, which changes no linear model, to as many columns as
    there are pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True)
    texts = vectorizer.fit_transform([pair[side] for side in ("chosen", "rejected") for pair in pairs]).toarray()
    chosen, rejected = np.split(texts, 2)
    left, values, _ = np.linalg.svd(chosen - rejected, full_matrices=False)
    return left * values


def trained(differences: Floats, penalty: float) -> Floats:
    """The weights of a Bradley-Terry model: a logistic regression of differences without an intercept."""
    from sklearn.linear_model import LogisticRegression

    mirrored = np.concatenate([differences, -differences])
    won = np.repeat([1, 0], len(differences))
    return LogisticRegression(C=penalty, fit_intercept=False, max_iter=2000).fit(mirrored, won).coef_[0]


class Draw:
    """A held-out split and an order of the other pairs, by seed and draw."""

    def __init__(self, features: Floats, speeches: NDArray[np.str_], penalty: float, seed: int, draw: int) -> None:
        names = np.unique(speeches)
        held_out = np.random.default_rng(seed).permutation(names)[: round(HELD_OUT * len(names))]
        self._seed, self._speeches, self._penalty = seed, speeches, penalty
        self._test = np.flatnonzero(np.isin(speeches, held_out))
        pool = np.flatnonzero(~np.isin(speeches, held_out))
        self._rng = np.random.default_rng([seed, draw])
        self.order = self._rng.permutation(pool)
        self._features = features
        self._sides = self._rng.choice([-1, 1], len(features))[:, None]

    def accuracy(self, labelled: Sequence[int]) -> float:
        """Held-out accuracy of a model of these labels."""
        weights = trained(self._features[labelled], self._penalty)
        return float((self._features[self._test] @ weights > 0).mean())

    def active(self) -> list[int]:
        """The pairs that are labelled by active selection."""
        labelled = self.order[:FIRST].tolist()
        while len(labelled) < ACTIVE:
            rest = np.setdiff1d(self.order, labelled)
            committee = [self._rng.choice(labelled, len(labelled)) for _ in range(COMMITTEE)]
            shown = self._features[rest] * self._sides[rest]
            margins = [shown @ trained(self._features[sample], self._penalty) for sample in committee]
            speeches, asked = self._speeches[rest].tolist(), self._speeches[labelled].tolist()
            labelled += rest[suggest.select(margins, speeches, STEP, self._seed, asked)].tolist()
        assert not set(labelled) & set(self._test.tolist()), "held-out pairs are never selected"
        return labelled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10, help="label sets of each seed")
    parser.add_argument("--features", choices=sorted(PENALTY), default="model")
    options = parser.parse_args()
    pairs = preferences.read("sample").table.to_pylist()
    speeches = np.array([pair["asked"] for pair in pairs])
    features = {"model": of_model, "text": of_text}[options.features](pairs)
    if options.features == "model":
        features /= features.std(axis=0) * features.shape[1] ** 0.5
    sums = dict.fromkeys(("active 60", "random 60", "random 100", "all"), 0.0)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        found = []
        for number in range(options.draws):
            draw = Draw(features, speeches, PENALTY[options.features], seed, number)
            labelled = [draw.active(), draw.order[:ACTIVE], draw.order[:RANDOM], draw.order]
            found.append([draw.accuracy(labels) for labels in labelled])
        means = dict(zip(sums, np.mean(found, axis=0).tolist(), strict=True))
        print(f"seed {seed}: " + ", ".join(f"{name} {mean:.4f}" for name, mean in means.items()), flush=True)
        sums = {name: total + means[name] / options.seeds for name, total in sums.items()}
    print("mean: " + ", ".join(f"{name} {mean:.4f}" for name, mean in sums.items()))
    ours, peer = sums["active 60"], sums["random 100"]
    line = {"name": "active-selection", "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ours / peer, 4)}
    print(json.dumps({**line, "bar": BAR, "pass": ours >= BAR * peer}))


if __name__ == "__main__":
    main()
