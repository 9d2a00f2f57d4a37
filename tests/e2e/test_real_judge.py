"""Speeches through real engines and a real judge: vLLM's own server with a small model, its JSON schema enforced."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support import commands

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.run import shards

pytestmark = pytest.mark.long

SPEECHES = int(os.environ.get("PSYCO_RAY_SPEECHES", "4"))
START_S = 240


@pytest.fixture(scope="module")
def judge(base_model, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base_model]
    command += ["--served-model-name", "judge"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2560", "--max-num-seqs", "16"]
    command += ["--enforce-eager", "--dtype", "bfloat16", "--seed", "0"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("judge") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=out)
    began = time.monotonic()
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() - began < START_S, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(timeout=60)


def test_from_speeches_to_pairs_with_real_models(judge, tmp_path, local_ray):
    pool = [{"name": f"t{t}", "model": "smollm2-135m", "temperature": t} for t in (0.5, 0.7, 1.0, 1.3)]
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    source = os.environ.get("PSYCO_RAY_SOURCE", "psyco_ray/data/sample/pairs.jsonl")
    job = {
        "run_dir": str(tmp_path / "run"),
        "sources": [{"name": "some", "path": few(source, tmp_path)}],
        "respond": {
            "pool": str(tmp_path / "pool.yaml"),
            "prompt": "respond-small",
            "max_tokens": 40,
            "rollouts": {"cpus": 0.5, "max_model_len": 512, "max_num_seqs": 32, "kv_cache_gb": 1.2},
        },
        "rate": {
            "endpoint": {"model": "judge", "base_url": judge, "key_env": None, "concurrency": 16},
            "max_tokens": 300,
            "rationale_chars": 60,
        },
        "pair": {"min_gap": 0.2, "unfinished": "allow"},  # the model ends few answers within max_tokens
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = commands.run("data", "build", tmp_path / "job.yaml", within_s=1500)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    kept = rows_of(run / "collect" / "speeches")
    assert len(kept) == SPEECHES
    answers, ratings, aside = (rows_of(run / name) for name in ("respond", "rate", "rate/set-aside"))
    assert Counter(row["model"] for row in answers) == dict.fromkeys(["t0.5", "t0.7", "t1.0", "t1.3"], SPEECHES)
    assert len({row["response"] for row in answers}) > 2 * SPEECHES
    rated = Counter((row["speech_id"], row["principle"]) for row in ratings)
    assert set(rated.values()) <= {4}
    assert len(rated) + len(aside) == len(PRINCIPLES) * SPEECHES
    assert len(rated) > 0.9 * len(PRINCIPLES) * SPEECHES, aside[:3]
    assert {row["rating"] for row in ratings} <= {1, 2, 3, 4, 5}
    assert (run / "pairs" / "train.parquet").exists()


def few(source: str, where: Path) -> str:
    """The first speeches of a file that are long enough, as CSV."""
    from psyco_ray.files.records import read_rows

    rows = read_rows(source, "speeches")
    texts = [row.get("text", row.get("question")) for row in rows]
    texts = [text for text in texts if 100 <= len(text) <= 600][:SPEECHES]
    path = where / "few.csv"
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    path.write_text("\n".join(["text", *quoted]) + "\n", encoding="utf-8")
    return str(path)


def rows_of(directory: Path) -> list[dict]:
    return [row for part in shards.list_shards(directory) for row in shards.read(directory, part)]
