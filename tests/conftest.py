"""Shared real parts: one local Ray and one tiny random model with SmolLM2's tokenizer."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from support.paths import SUPPORT, TESTS

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token would be written into the home directory
os.environ.pop("RAY_ADDRESS", None)
os.environ["PYTHONPATH"] = str(TESTS)  # actors of tests/support are imported by name

import hypothesis
import pytest
import ray
import torch

from psyco_ray.models import loading, saving

hypothesis.settings.register_profile("shared-machine", deadline=None, derandomize=True)
hypothesis.settings.load_profile("shared-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Actors that a test file defines are pickled by value, because workers cannot import the file.

    Files that start Ray come first: processes that share the files then end together, on short ones.
    """
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        ray.cloudpickle.register_pickle_by_value(module)
    lengthy = {item.path for item in items if "local_ray" in item.fixturenames or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in lengthy)


@pytest.fixture(autouse=True)
def ray_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets token and addresses for its own Ray, and ends it; the tests' Ray must not notice either."""
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")


@pytest.fixture(scope="session")
def base_model() -> Path:
    """SmolLM2-135M-Instruct."""
    return loading.resolve("smollm2-135m")


@pytest.fixture(scope="session")
def tokenizer(base_model):
    return loading.load_tokenizer(base_model)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tokenizer) -> Path:
    """A Llama of 3 million parameters, mostly vocabulary, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,  # peaked enough that samples and log-probabilities tell models apart
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for the tests; the commands that they start have each their own, as a user's have."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=bool(os.environ.get("PSYCO_RAY_ACTOR_LOGS")),
        logging_level="warning",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory, tiny_model) -> Path:
    """A reward model over the tiny model, as reward training saves it, with a random head."""
    from psyco_ray.models import reward_model

    path = tmp_path_factory.mktemp("models") / "tiny-reward"
    tokenizer = loading.load_tokenizer(tiny_model)
    model = reward_model.new_model(tiny_model, tokenizer, "float32", seed=3)
    saving.save_loaded(path, model, tokenizer, tiny_model)
    return path


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Starts servers of `fault_server.py` with the given options; each answers at the URL that comes back."""
    started = []

    def start(*options: str) -> str:
        command = [sys.executable, str(SUPPORT / "fault_server.py"), "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The options of a URI on an S3 server with an empty bucket."""
    os.environ.update(AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield f"endpoint_override={address}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture
def place(server, request, tmp_path, monkeypatch) -> str:
    """A URI of a test's own; what is kept of it on this machine is the test's own too."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{request.node.name}/run?{server}"
