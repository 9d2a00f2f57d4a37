"""What the paper's dataset costs: the estimate, the longest answers, and the sums that the documentation names."""

import re

import pytest
from support.data_jobs import sample_speeches
from support.paths import ROOT

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.data import overlap, rate, respond
from psyco_ray.data.dataset import Dataset
from psyco_ray.judge import tokens
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.rate_limit import cost_of
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED

SPEECHES, CALLS = 26_483, 185_381  # of the paper


@pytest.fixture
def paper(tmp_path) -> Dataset:
    """The paper's job over speeches of the paper's average length, 366 characters."""
    job = job_file.load_as(DataJob, ROOT / "jobs" / "data.yaml", [f"run_dir={tmp_path}", "prompts=default"])
    rows = [{"speech": text, "speech_id": f"a{n:015}", "split": "train"} for n, text in enumerate(sample_speeches(366))]
    dataset = Dataset(job)
    shards.write(dataset.root / "collect" / "speeches", "a", rows, COLLECTED)
    return dataset


def ratings_of(dataset: Dataset, length: int):
    prompts = PromptsFile("default")
    prompt = rate.load_prompt(prompts, dataset.job.respond.per_speech)
    stage = rate.RateStage(dataset.job.rate, 0, prompt, prompts.principles(), dataset.root)
    run = CallRun("rate", stage, ["a"], dataset.journal, dataset.outgoing)
    return stage.endpoint, overlap.rating_usage(run, dataset, ["a"], length)


def test_the_estimate_of_the_papers_ratings_is_what_they_cost(paper):
    """185,381 calls of 1,260 to 2,470 prompt tokens cost $1,000 to $1,550."""
    endpoint, expected = ratings_of(paper, tokens.TYPICAL_TEXT)
    scale = CALLS / expected.calls
    assert 1260 < expected.typical.prompt_tokens / expected.calls < 2470
    assert 1000 < cost_of(expected.typical, endpoint) * scale < 1550
    assert cost_of(expected.most, endpoint) * scale < 2000, "also if every answer takes rate.max_tokens"


@pytest.mark.parametrize("file", ["jobs/data.yaml", "psyco_ray/data/README.md"])
def test_the_sum_in_the_documentation_pays_the_papers_dataset(paper, file):
    endpoint, expected = ratings_of(paper, tokens.TYPICAL_TEXT)
    ratings = cost_of(expected.most, endpoint) * CALLS / expected.calls
    members = [model.api for model in respond.load_pool(paper.job.respond) if model.api is not None]
    answers = sum((150 * api.price_in + 700 * api.price_out) / 1e6 * SPEECHES * 4 / 20 for api in members)
    topics = 1200 * paper.job.topics.endpoint.price_in / 1e6 * SPEECHES
    (limit,) = re.findall(r"data build jobs/data.yaml --max-cost (\d+)", (ROOT / file).read_text())
    assert ratings + answers + topics < float(limit) < 1.5 * (ratings + answers + topics)


def test_tokens_are_counted_by_a_vocabulary():
    """GPT-4o's vocabulary has 4,789 tokens for these 20,000 characters; a third of the characters is 39 % more."""
    text = " ".join(sample_speeches(1000))[:20_000]
    assert tokens.count(text) == pytest.approx(4789, rel=0.08)
    assert tokens.count("<s>[INST] special tokens are texts </s>") > 8
    assert tokens.count("") == 0


def test_typical_answers_follow_the_schema():
    assert 200 < tokens.typical_answer(rate.rating_schema(4, None)) < 300
    assert tokens.typical_answer(None) == tokens.TYPICAL_TEXT
