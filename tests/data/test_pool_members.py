"""A pool whose members need code or many GPUs, or fail."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from support import commands
from support.logs import messages

from psyco_ray.config.data import DataJob, Respond
from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.data import build, members, respond
from psyco_ray.data.dataset import Dataset
from psyco_ray.data.draws import Draw
from psyco_ray.files import records
from psyco_ray.models import loading
from psyco_ray.run import shards

CODE = {"name": "own-code", "model": "owner/name", "allow_code": True}


def pool_of(tmp_path, *members: dict, **settings) -> list[respond.ResponderModel]:
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(members))
    return respond.load_pool(Respond(pool=str(tmp_path / "pool.yaml"), per_speech=2, **settings))


def test_code_runs_only_at_a_pinned_revision_and_where_the_job_allows_it(tmp_path) -> None:
    other = {"name": "other", "model": "owner/other"}
    for revision in (None, "main", "0123abc"):
        with pytest.raises(InputError, match=r"pool\.yaml: member 1: own-code would run whatever .* pin its revision"):
            pool_of(tmp_path, CODE | {"revision": revision}, other, allow_code=True)
    pinned = CODE | {"revision": "0123456789abcdef" * 2 + "01234567"}
    with pytest.raises(InputError, match=r"own-code would run code .* set respond\.allow_code=true"):
        pool_of(tmp_path, pinned, other)
    assert [member.name for member in pool_of(tmp_path, pinned, other, allow_code=True)] == ["own-code", "other"]
    assert pool_of(tmp_path, CODE | {"model": str(tmp_path)}, other, allow_code=True), "a directory is pinned itself"


def test_code_and_pickles_are_downloaded_only_where_code_is_allowed(tmp_path, monkeypatch) -> None:
    asked = []

    def download(model: str, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        asked.append((revision, [pattern for pattern in ("*.py", "*.bin") if pattern in allow_patterns]))
        for name in ("config.json", "tokenizer.json", *(["pytorch_model.bin"] if "*.bin" in allow_patterns else [])):
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"has no \*\.safetensors weights"):
        loading.resolve("owner/name")
    assert loading.resolve("owner/name", revision="abc", allow_code=True) == tmp_path
    (tmp_path / "model.safetensors").write_text("")
    assert loading.resolve("owner/name", revision="abc", allow_code=True) == tmp_path
    assert asked == [(None, []), ("abc", ["*.py"]), ("abc", ["*.py", "*.bin"]), ("abc", ["*.py"])]


def test_the_papers_pool_has_engines_that_hold_its_weights() -> None:
    with pytest.raises(InputError, match="Baichuan2-7B-Chat, Baichuan2-13B-Chat, Orion-14B-Chat would run code"):
        respond.load_pool(Respond())
    pool = respond.load_pool(Respond(allow_code=True))
    job = Rollouts(actors=8, gpus=1)
    for member in pool:
        if member.model is None:
            continue
        engines = member.engines(job)
        assert engines.actors * engines.gpus == 8
        billions = {"3-4B": 4, "7-9B": 9.3, "12-14B": 14.5, "65-75B": 73}[member.size]
        assert 2 * billions / engines.tensor_parallel < 0.6 * 80, member.name
        assert engines.kv_cache_gb is None, "what the weights leave"
    [thinking] = [member.api for member in pool if member.name == "o1-mini"]
    assert thinking.reasoning_tokens >= 4096
    named = respond.ResponderModel(name="x", model="a/b", rollouts={"gpus": 4, "actors": 3})
    assert named.engines(job).actors == 3
    with pytest.raises(InputError, match="pool member x: rollouts"):
        respond.ResponderModel(name="x", model="a/b", rollouts={"gpu": 4}).engines(job)


def test_members_of_one_model_with_other_template_options_have_engines_of_their_own(tmp_path) -> None:
    api = {"api": {"model": "x", "base_url": "http://127.0.0.1:1", "key_env": None}}
    with pytest.raises(
        InputError, match="paid is behind an API, which renders its prompts; leave template_options out"
    ):
        pool_of(tmp_path, {"name": "paid", "template_options": {"enable_thinking": False}, **api})
    thinking = {"name": "thinking", "model": "owner/name"}
    quick = thinking | {"name": "quick", "template_options": {"enable_thinking": False}}
    pool = pool_of(tmp_path, thinking, quick, thinking | {"name": "warm", "temperature": 2.0})
    job = DataJob(run_dir=str(tmp_path / "run"), sources=[{"name": "mine", "path": str(records.SAMPLE)}])
    runs = members.engine_runs(Dataset(job), pool, [])
    assert [run.model.template_options for run in runs] == [{}, {"enable_thinking": False}]


@pytest.mark.long
def test_refused_members_end_no_stage_and_a_resumed_one_draws_the_same(tmp_path, serve, local_ray) -> None:
    url = serve()
    names = ("kind", "warm", "status-404", "brief", "status-403")
    run, job = tmp_path / "run", write_job(tmp_path, [{"name": name, "api": api(url, name)} for name in names])
    logged = messages()
    for stage in ("collect", "respond"):
        done = commands.here("data", stage, job)
        assert done.returncode == 0, done.stderr[-3000:]
    record, rows = json.loads((run / "respond.json").read_text()), rows_of(run / "respond")
    assert "knows no model status-404" in record["failed"]["status-404"]
    assert "does not let this key use status-403" in record["failed"]["status-403"]
    assert sum("other members answer its speeches" in line for line in logged) == 2
    expected = drawn_from(("kind", "warm", "brief"), run)
    assert {(row["speech_id"], row["model"]) for row in rows} == expected
    assert record["calls"]["kind"]["units"] == Counter(name for _, name in expected)["kind"]
    assert sum(member["answers"] for member in record["finished"].values()) == len(rows)

    (run / "respond.json").unlink()
    for path in [*run.glob("respond/*.parquet"), *run.glob("respond/members/kind/*.parquet")]:
        path.unlink()
    done = commands.here("data", "respond", job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows_of(run / "respond") == rows, "the failures are on record"
    assert json.loads((run / "respond.json").read_text())["failed"] == record["failed"]


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_ends_no_stage(tmp_path, serve, tiny_model, local_ray) -> None:
    url, broken = serve(), tmp_path / "broken"
    shutil.copytree(tiny_model, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    members = [{"name": "broken", "model": str(broken)}, {"name": "local", "model": str(tiny_model)}]
    run, job = tmp_path / "run", write_job(tmp_path, [*members, {"name": "kind", "api": api(url, "kind")}])
    for stage in ("collect", "respond"):
        done = commands.here("data", stage, job)
        assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((run / "respond.json").read_text())
    assert "has no *.safetensors weights" in record["failed"]["broken"]
    rows = [*rows_of(run / "respond"), *rows_of(run / "respond" / "set-aside")]
    assert {row.get("model", row.get("what")) for row in rows} == {"local", "kind"}
    assert len(rows) == 2 * len(rows_of(run / "collect" / "speeches"))


def drawn_from(names: tuple[str, ...], run: Path) -> set[tuple[str, str]]:
    """Speech ids and the models drawn for them, as if the pool had these members only."""
    speeches = [row["speech_id"] for row in rows_of(run / "collect" / "speeches")]
    return {(speech_id, name) for speech_id in speeches for name in Draw(names, 2).holders(speech_id, "", 0)}


def test_a_pool_with_too_few_members_left_stops(tmp_path, serve, local_ray) -> None:
    url = serve()
    members = [{"name": name, "api": api(url, name)} for name in ("kind", "status-403", "status-404")]
    job = write_job(tmp_path, members)
    assert commands.here("data", "collect", job).returncode == 0
    stopped = commands.here("data", "respond", job)
    assert stopped.returncode == 2
    message = r"respond: 2 of 3 members failed, and respond.per_speech draws 2; the last one, status-40[34]: "
    assert re.search(message, stopped.stderr), "members are asked at the same time, so either may be the last"
    assert "failed.json" in stopped.stderr


@pytest.mark.parametrize("name", ["status-401", "quota"])
def test_an_account_that_the_user_can_put_right_is_no_failed_member(tmp_path, serve, local_ray, name) -> None:
    url = serve()
    members = [{"name": member, "api": api(url, member)} for member in ("kind", "warm", name)]
    job = write_job(tmp_path, members)
    assert commands.here("data", "collect", job).returncode == 0
    stopped = commands.here("data", "respond", job)
    assert stopped.returncode == 2
    assert not (tmp_path / "run" / "respond" / "failed.json").exists()


def api(url: str, model: str) -> dict:
    return {"model": model, "base_url": url, "key_env": None}


def rows_of(directory) -> list[dict]:
    return [row for part in shards.list_shards(directory) for row in shards.read(directory, part)]


def write_job(where: Path, members: list[dict]) -> str:
    (where / "pool.yaml").write_text(yaml.safe_dump(members))
    raw = where / "raw.jsonl"
    rows = [json.loads(line) for line in records.SAMPLE.read_text().splitlines()[:30]]
    raw.write_text("".join(json.dumps({"text": row["question"]}) + "\n" for row in rows))
    rollouts = {"cpus": 0.5, "max_model_len": 640, "max_num_seqs": 8, "kv_cache_gb": 0.5}
    job = {
        "run_dir": str(where / "run"),
        "sources": [{"name": "mine", "path": str(raw)}],
        "respond": {"pool": str(where / "pool.yaml"), "per_speech": 2, "max_tokens": 16, "rollouts": rollouts},
        "pair": {"unfinished": "allow"},
    }
    (where / "job.yaml").write_text(yaml.safe_dump(job))
    return str(where / "job.yaml")


def test_other_weights_in_a_directory_of_the_pool_are_refused(tmp_path, tiny_model, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "mine")
    pool = tmp_path / "pool.yaml"

    def begin(**options) -> None:
        mine = {"name": "mine", "model": str(tmp_path / "mine"), **options}
        pool.write_text(yaml.safe_dump([mine, {"name": "other", "model": "owner/name"}]))
        settings = {"pool": str(pool), "per_speech": 2}
        job = DataJob(run_dir=str(tmp_path / "run"), sources=[{"name": "a", "path": "a.csv"}], respond=settings)
        dataset = Dataset(job)
        try:
            dataset.write_json("collect/settings.json", {})
            dataset.finish("collect", 0.0)
            dataset.finish("respond", 0.0)
            assert build._respond(dataset) is None, "done before"
        finally:
            dataset.close()

    begin()
    next((tmp_path / "mine").glob("*.safetensors")).touch()
    begin()
    with pytest.raises(InputError, match="holds respond made with pool"):
        begin(template_options={"enable_thinking": False})
    (tmp_path / "mine" / "config.json").write_text((tmp_path / "mine" / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"holds respond made with weights\.mine "):
        begin()


@pytest.mark.parametrize("address", ["https://me:S3cretWord@host/v1", "https://host/v1?api_key=S3cretWord"])
def test_a_key_in_a_pool_file_is_refused_and_not_shown(tmp_path, address) -> None:
    member = {"name": "paid", "api": {"model": "m", "base_url": address}}
    with pytest.raises(
        InputError, match=r"pool file .*pool\.yaml: 1\.api\.base_url: a URI .* has a key in it"
    ) as found:
        pool_of(tmp_path, {"name": "own", "model": "owner/name"}, member)
    assert "S3cretWord" not in str(found.value)
