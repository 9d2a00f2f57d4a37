"""Downloads from a server that answers as the hub does, and what is said where it refuses."""

from pathlib import Path

import pytest
from support.hub_server import COMMIT, hub

from psyco_ray.config.data import CrisisClassifier
from psyco_ray.config.errors import InputError
from psyco_ray.data import crisis_classifier, preferences
from psyco_ray.models import loading


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_model):
    with hub(tiny_model) as address:
        yield address


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path, address) -> None:
    """The hub's client, with an empty cache; it reads its settings when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["owner/whole", "owner/whole@v1", f"owner/whole@{COMMIT}"])
def test_a_model_is_downloaded_at_its_revision(name, tiny_model) -> None:
    path = loading.resolve(name)
    assert path.name == COMMIT
    assert (path / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert loading.load_tokenizer(path).chat_template


def test_a_classifier_of_speeches_is_downloaded_at_its_commit_without_pickles() -> None:
    settings = {"labels": {"bad": "abuse"}, "revision": COMMIT}
    with pytest.raises(InputError, match=rf"{COMMIT} is no classifier: its config.json names LlamaForCausalLM"):
        crisis_classifier.check(CrisisClassifier(model="owner/whole", **settings))
    with pytest.raises(InputError, match=r"the hub's model owner/bins has no \*\.safetensors weights; choose"):
        crisis_classifier.check(CrisisClassifier(model="owner/bins", allow_code=True, **settings))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "owner/gated",
            r"the hub's model owner/gated is gated; accept its licence at http://\S+/owner/gated, and set HF_",
        ),
        ("owner/missing", "the hub has no model owner/missing, or it is private; correct the name, or set HF_TOKEN"),
        ("owner/whole@v9", "the hub's model owner/whole has no revision v9; give one of its commits"),
        ("owner/down", "the hub answers HTTP 502 for model owner/down; try again later"),
        ("owner/bins", r"the hub's model owner/bins has no \*\.safetensors weights; choose a revision or a model"),
        ("owner/--", r"owner/-- is no name of a model on the hub; give owner/name"),
    ],
)
def test_a_refusal_says_what_it_is(name, message) -> None:
    with pytest.raises(InputError, match=message) as error:
        loading.resolve(name)
    assert "http" not in str(error.value) or "gated" in name, "none of the client's words"


def test_a_token_without_access_is_told_from_none(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    with pytest.raises(InputError, match="is gated, and the account of your token has no access; accept its licence"):
        loading.resolve("owner/gated")


def test_offline_and_unreachable_are_told_apart(monkeypatch) -> None:
    from huggingface_hub import constants

    loading.resolve("owner/whole")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    loading.resolve("owner/whole")  # out of the cache
    with pytest.raises(InputError, match=r"model owner/other is not complete .* hub at http://127.0.0.1:9 cannot be"):
        loading.resolve("owner/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loading.resolve("owner/whole")
    with pytest.raises(InputError, match=r"model owner/other is not complete .* HF_HUB_OFFLINE forbids to download"):
        loading.resolve("owner/other")


def test_files_of_datasets_are_refused_in_the_same_words() -> None:
    cases = {
        "hub:owner/gated/pairs.jsonl": r"the hub's dataset owner/gated is gated; .* at http://\S+/datasets/owner/gated",
        "hub:owner/missing/pairs.jsonl": "the hub has no dataset owner/missing, or it is private",
        "hub:owner/whole@v1/pairs.jsonl": r"the hub's dataset owner/whole has no file pairs\.jsonl",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            preferences.read(name)


def test_a_model_has_one_revision() -> None:
    with pytest.raises(InputError, match=r"names a revision, and so does revision v2; leave one of them out"):
        loading.resolve("owner/whole@v1", revision="v2")
    with pytest.raises(InputError, match=r"neither a directory, nor a hub id \(owner/name, or owner/name@revision\)"):
        loading.resolve(str(Path("owner") / "name" / "more@v1"))
