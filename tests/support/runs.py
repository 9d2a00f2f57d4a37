"""A whole run with a tiny model, started as a user starts it."""

import subprocess
import sys
from pathlib import Path

from support.commands import ended

JOB = """
run_dir: {run_dir}
model: {model}
iterations: 2
speeches_per_iteration: 24
data: {{dev_share: 0.2}}
prompts: {{respond: respond-small}}
sampling: {{responses: 4, max_tokens: 24, unfinished: allow}}
dpo: {{optimizer: {{learning_rate: 1.0e-3, batch_size: 2}}}}
rollouts: {{cpus: 0.1, max_model_len: 256, max_num_seqs: 32, kv_cache_gb: 0.1, speeches_per_item: 2}}
scorers: {{actors: 1, cpus: 0.1, reward_model: {reward_model}, heldout_model: {reward_model}}}
learners: {{actors: 1, cpus: 0.1, zero_stage: 2}}
evaluation: {{speeches: 10}}
"""


def start(job: Path, log: Path, *more: str) -> subprocess.Popen:
    whole = [sys.executable, "-m", "psyco_ray.cli", "iterate", str(job), "--resume", *more]
    return subprocess.Popen(whole, stdout=log.open("a"), stderr=subprocess.STDOUT)


def finish(job: Path, log: Path, *more: str) -> None:
    assert ended(start(job, log, *more), 400, log.read_text) == 0, log.read_text()[-3000:]
