"""Rollouts through the actor against bare ``vllm.LLM.generate``: same prompts, engine settings and process count.

.venv/bin/python benchmarks/rollout.py [--speeches 32] [--responses 8] [--max-tokens 48] [--dtype bfloat16]

Both engines are loaded at the same time and take turns, so that what else the machine does hits both alike.
The ratio is the median over rounds of actor tokens/s to bare tokens/s.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets

# a token of this run's own, before Ray is imported: it would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray
from engines import by_turns

from psyco_ray import config
from psyco_ray.roles import fast_dtype

BAR = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--speeches", type=int, default=32)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each of the two engines")
    parser.add_argument("--dtype", help="of both (default: what rollouts take on this machine)")
    given = parser.parse_args()
    settings = config.Rollouts(
        cpus=0.5,
        gpus=given.gpus,
        max_model_len=1024,
        max_num_seqs=128,
        kv_cache_gb=2.0,
        speeches_per_item=16,
        dtype=given.dtype or fast_dtype({"gpus": given.gpus}),
    )
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    line = by_turns("rollout", given.model, settings, given.speeches, given.responses, given.max_tokens, given.rounds)
    ray.shutdown()
    print(json.dumps({**line, "bar": BAR, "pass": line["ratio"] >= BAR}))


if __name__ == "__main__":
    main()
