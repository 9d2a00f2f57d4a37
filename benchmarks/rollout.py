"""Rollouts through the actor against bare ``vllm.LLM.generate``: same prompts, engine settings and process count.

.venv/bin/python benchmarks/rollout.py [--speeches 32] [--responses 8] [--max-tokens 48] [--dtype bfloat16]
.venv/bin/python benchmarks/rollout.py --defaults

All engines are loaded at the same time and alternate, so other load affects both sides alike. The ratio is the median
over rounds of the actors' tokens/s to the bare engine's. With `--defaults` the bare engine has the same amount of cache
and otherwise vLLM's default settings; it is compared with one actor per core (or one on a GPU). It samples without
seeds, which would crash it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray
from engines import Workload, alternate

from psyco_ray.config.resources import Rollouts, fast_dtype

BAR = 0.95
DEFAULTS_BAR = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--speeches", type=int, default=32)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each of the two engines")
    parser.add_argument("--dtype", help="of both (default: that of rollouts on this machine)")
    parser.add_argument("--defaults", action="store_true", help="compare with vLLM's default settings")
    options = parser.parse_args()
    actors = len(os.sched_getaffinity(0)) if options.defaults and not options.gpus else 1
    settings = Rollouts(
        actors=actors,
        cpus=0.5,
        gpus=options.gpus,
        max_model_len=1024,
        max_num_seqs=128,
        kv_cache_gb=2.0,
        speeches_per_item=min(16, -(-options.speeches // actors)),  # every actor has an item
        dtype=options.dtype or fast_dtype({"gpus": options.gpus}),
    )
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    work = Workload(options.speeches, options.responses, options.max_tokens, options.rounds)
    name, bar = ("rollout defaults", DEFAULTS_BAR) if options.defaults else ("rollout", BAR)
    line = alternate(name, options.model, settings, work, defaults=options.defaults)
    ray.shutdown()
    print(json.dumps({**line, "bar": bar, "pass": line["ratio"] >= bar}))


if __name__ == "__main__":
    main()
