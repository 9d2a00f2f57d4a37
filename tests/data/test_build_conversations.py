"""Conversations of public corpora become pairs: from their files over contexts, topics, responses and ratings."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from support import commands
from support.data_jobs import asked, rows_of
from support.dialogue_files import annomi, dialogue, esconv

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import PACKAGED, PRINCIPLES
from psyco_ray.data import pair, preferences

TURNS = 3


def write_job(where: Path, url: str, count: int, **changes) -> Path:
    """A job over a table with a row per utterance and a file of lists of turns, with so many dialogues each."""
    annomi(where / "annomi.csv", {str(seed): dialogue(seed, TURNS) for seed in range(count)})
    esconv(where / "ESConv.json", [dialogue(seed, TURNS) for seed in range(count, 2 * count)])
    by_rows = {"text": "utterance_text", "dialogue": "transcript_id", "where": {"interlocutor": "client"}}
    sources = [
        {"name": "rows", "path": str(where / "annomi.csv"), **by_rows},
        {"name": "lists", "path": str(where / "ESConv.json"), "text": "dialog"},
    ]
    api = {"base_url": url, "key_env": None, "concurrency": 16}
    pool = [{"name": f"model-{i}", "api": {**api, "model": f"model-{i}"}} for i in range(2)]
    (where / "pool.yaml").write_text(yaml.safe_dump(pool))
    job = {
        "run_dir": str(where / "run"),
        "sources": [{**source, "conversations": "contexts"} for source in sources],
        "collect": {"test_share": 0.3, "dev_share": 0.3},
        "topics": {"endpoint": {**api, "model": "labeller"}},
        "respond": {"pool": str(where / "pool.yaml"), "per_speech": 2, "max_tokens": 60},
        "rate": {"endpoint": {**api, "model": "judge"}},
        "pair": {"min_gap": 0.5},
        **changes,
    }
    (where / "job.yaml").write_text(yaml.safe_dump(job))
    return where / "job.yaml"


def test_a_dataset_of_two_corpora_of_conversations(tmp_path, serve, local_ray) -> None:
    url = serve()
    job, run = write_job(tmp_path, url, 4), tmp_path / "run"
    done = commands.here("data", "build", job)
    assert done.returncode == 0, done.stderr[-3000:]
    collected = {row["speech_id"]: row for row in rows_of(run / "collect" / "speeches")}
    contexts = {key: Context.of(row["speech"]) for key, row in collected.items()}
    assert Counter(context.turn for context in contexts.values()) == dict.fromkeys(range(1, TURNS + 1), 8)
    by_opening: dict[str, set[str]] = {}
    for key, context in contexts.items():
        by_opening.setdefault(context.opening, set()).add(collected[key]["split"])
    assert len(by_opening) == 8
    assert all(len(splits) == 1 for splits in by_opening.values()), "no dialogue is in two splits"
    assert len(set().union(*by_opening.values())) > 1

    assert {row["speech_id"] for row in rows_of(run / "topics")} == set(collected)
    assert Counter(row["speech_id"] for row in rows_of(run / "respond")) == dict.fromkeys(collected, 2)
    ratings = Counter(row["speech_id"] for row in rows_of(run / "rate"))
    assert ratings == dict.fromkeys(collected, 2 * len(PRINCIPLES))

    turns = Counter()
    for split in pair.SPLITS:
        table = pq.read_table(run / "pairs" / f"{split}.parquet")
        assert table.schema.equals(pair.SCHEMA_OF_DIALOGUES)
        for row in table.to_pylist():
            assert row["question"] == collected[row["ID"]]["speech"]
            assert row["dialogue"] == collected[row["ID"]]["dialogue"]
            assert collected[row["ID"]]["split"] == split
            turns[Context.of(row["question"]).turn] += 1
    assert set(turns) == set(range(1, TURNS + 1))
    read = preferences.read(str(run / "pairs")).table
    assert set(read["form"].to_pylist()) == {"speech"}
    assert read.num_rows == sum(turns.values())

    page, card = (run / "report.html").read_text(), (run / "dataset-card.md").read_text()
    assert "Contexts and pairs by the turn that is answered" in page
    assert "Contexts by number of the client's turns: 1: 8, 2: 8, 3: 8. They come from 8 conversations." in card
    assert "Single-turn" not in card
    for text in (page, card):
        assert '{"messages"' not in text
        assert "&#34;messages&#34;" not in text


def test_a_prompts_file_without_entries_for_conversations_is_refused_before_any_call(
    tmp_path, serve, local_ray
) -> None:
    url = serve()
    texts = yaml.safe_load(PACKAGED.read_text())
    del texts["rate-conversation"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(texts))
    job = write_job(tmp_path, url, 2, prompts=str(tmp_path / "mine.yaml"))
    done = commands.here("data", "build", job)
    assert done.returncode == 2
    assert "has no entry rate-conversation" in done.stderr
    assert asked(url)["served"] == 0
