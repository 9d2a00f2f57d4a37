"""Servers, benchmarks and responses that several test files share."""

import json
from pathlib import Path

import pytest
from support.policy_evaluation import SAMPLE, write_lines


@pytest.fixture(scope="module")
def url(serve):
    """Of judges and rankers; they answer what the JSON schema allows, drawn by a hash of the question."""
    return serve()


@pytest.fixture(scope="module")
def bench_rows(tmp_path_factory) -> Path:
    """A benchmark of three subsets of 8, 5 and 3 pairs."""
    path = tmp_path_factory.mktemp("bench") / "bench.jsonl"
    rows = [
        {
            "prompt": f"What is {number} and {number} in {subset}?",
            "chosen": f"It is {2 * number}.",
            "rejected": f"It may be {2 * number + 1}, I think.",
            "subset": subset,
            "id": number,
        }
        for subset, count in (("math-prm", 8), ("hep-cpp", 5), ("donotanswer", 3))
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def responses(tmp_path_factory) -> str:
    """An opponent's responses to all packaged speeches."""
    rows = [{"question": row["question"], "response": row["chosen"]} for row in SAMPLE]
    return write_lines(tmp_path_factory.mktemp("opponent") / "responses.jsonl", rows)
