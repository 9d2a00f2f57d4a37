"""A colocated run on one GPU."""

import json

import pyarrow.parquet as pq
import pytest
from support.commands import run

COLOCATED = """
run_dir: {run_dir}
model: {model}
iterations: 2
speeches_per_iteration: 24
data: {{dev_share: 0.2}}
prompts: {{respond: respond-small}}
sampling: {{responses: 4, max_tokens: 24, unfinished: allow}}
dpo: {{optimizer: {{learning_rate: 1.0e-3, batch_size: 4}}}}
colocated: true
rollouts: {{gpus: 0.4, max_model_len: 256, max_num_seqs: 32, kv_cache_gb: 0.5, speeches_per_item: 4}}
scorers: {{gpus: 0.2, reward_model: {reward_model}, heldout_model: {reward_model}}}
learners: {{gpus: 0.4, zero_stage: 2, micro_batch_tokens: 400}}
evaluation: {{speeches: 10}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.gpus(1)]


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_a_colocated_run_samples_trains_and_updates_weights(
    local_ray, tiny_model, tiny_reward_model, tmp_path, reference: str
) -> None:
    job, run_dir = tmp_path / "job.yaml", tmp_path / "run"
    job.write_text(COLOCATED.format(run_dir=run_dir, model=tiny_model, reward_model=tiny_reward_model))
    done = run("iterate", job, f"dpo.reference={reference}", within_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((run_dir / "summary.json").read_text())["iterations"] == 2
    for iteration in (1, 2):
        report = json.loads((run_dir / f"iteration-{iteration:03d}" / "sync.json").read_text())
        assert report["gap"] < 0.1
        pairs = pq.read_table(run_dir / f"iteration-{iteration:03d}" / "pairs.parquet").to_pylist()
        assert {pair["policy_version"] for pair in pairs} == {iteration - 1}
