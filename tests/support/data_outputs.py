"""What the stages of a data job leave, for the report on a dataset."""

from pathlib import Path

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.crisis_flags import columns, flag
from psyco_ray.data.pair import SCHEMA
from psyco_ray.report import dataset
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, RATINGS, RESPONSES, SET_ASIDE, TOPICS

TABLES = {
    "speeches": COLLECTED,
    "topics": TOPICS,
    "responses": RESPONSES,
    "ratings": RATINGS,
    "pairs": SCHEMA,
    "set_aside": SET_ASIDE,
}
SIGNS = [["self-harm"], ["self-harm"], ["abuse"]] + 21 * [[]]
MODELS = ("kind", "cold", "a <b>long</b> & odd|name")
COLLECT = {
    "sources": {
        "forum": {"rows": 30, "kept": 18, "too short": 9, "exact duplicate": 3},
        "books": {"rows": 8, "kept": 6, "too short": 2},
    },
    "rows": 38,
    "kept": 24,
    "dropped": {"too short": 11, "exact duplicate": 3},
    "splits": {"train": 20, "dev": 1, "test": 3},
    "crisis": {"self-harm": 2, "abuse": 1},
    "not_screened": {"ja": 4, "und": 1},
    "scrubbed": {},
}
SPEND = {
    "topics": {"paid": 24, "reused": 0, "prompt_tokens": 4800, "completion_tokens": 240, "dollars": None},
    "rate": {"paid": 1234, "reused": 56, "prompt_tokens": 98765, "completion_tokens": 4321, "dollars": 12.345},
}
FAILED = {"gone": "the server knows no model gone"}
JOB = job_file.parse(
    DataJob,
    {
        "run_dir": "/secret/place/demo",
        "sources": [{"name": "forum", "path": "/secret/raw/forum.csv"}, {"name": "books", "hub": "someone/books"}],
    },
    "test",
)


def data_tables() -> dict[str, list[dict]]:
    """24 speeches, the first 20 of them with a topic; three answers each; ratings; pairs of the first 20."""
    numbers = range(24)
    speeches = [
        {"speech_id": f"{i:x}{'0' * 15}"[:16], "speech": "word " * (20 + i), "split": "train", "source": "forum"}
        | {"source_row": i, "source_topic": None, **columns({"lexicon": [flag(k, "lexicon", 0, 4) for k in SIGNS[i]]})}
        for i in numbers
    ]
    for speech, language in zip(speeches[3:8], ["ja", "ja", "und", "ja", "ja"], strict=True):
        speech |= {"language": language, **columns({})}
    labels = [("Anxiety", "Core Mental Health Issues")] * 13 + [("Parenting", "Youth and Development")] * 7
    labels += [("Gardening", "Hobbies"), ("Loose", None), (None, None), (None, None)]
    answers = [
        {"speech_id": s["speech_id"], "model": m, "response": f"{m} {i}", "finished": (i, m) != (0, "cold")}
        for i, s in enumerate(speeches)
        for m in MODELS
    ]
    ratings = [
        {"speech_id": a["speech_id"], "model": a["model"], "principle": p, "rationale": "so", "judge": "judge-1"}
        | {"rating": {"kind": 5, "cold": 1}.get(a["model"], 3) - (p == "clarity" and a["model"] == "kind")}
        for a in answers
        for p in PRINCIPLES
    ]
    pairs = [
        {"ID": s["speech_id"], "prefID": f"{i}-1", "question": f"<i>{s['speech']}", "topic": labels[i][0]}
        | {"chosen": "good " * (4 if i < 15 else 1), "rejected": "bad " * 3, "chosen_model": MODELS[2 * (i < 2)]}
        | {"rejected_model": MODELS[1], "coarse_topic": labels[i][1], "split": "test" if i < 3 else "train"}
        | {f"{side}_{p}_rating": 4 if side == "chosen" else 2 for side in ("chosen", "rejected") for p in PRINCIPLES}
        | {"chosen_finished": i > 1, "rejected_finished": i > 0}
        for i, s in enumerate(speeches[:20])
    ]
    pairs[7]["rejected_safety_rating"] = 5
    pairs[8]["rejected_safety_rating"] = 4
    return {
        "speeches": speeches,
        "topics": [
            {"speech_id": s["speech_id"], "topic": fine, "coarse_topic": coarse}
            for s, (fine, coarse) in zip(speeches, labels, strict=True)
        ],
        "responses": answers,
        "ratings": ratings,
        "pairs": pairs,
        "set_aside": [
            {"speech_id": "1", "what": what, "reason": "no JSON", "answer": None}
            for what in ("empathy", "empathy", "topic")
        ],
    }


def stage_outputs(
    root: Path, names: list[str], tables: dict[str, list[dict]] | None = None, **more
) -> dataset.StageOutputs:
    """Tables in three parts each, and what a report reads them by."""
    tables = tables or data_tables()
    for name in names:
        for part in range(3):
            shards.write(root / name, str(part), tables[name][part::3], TABLES[name])
    return dataset.StageOutputs(JOB, **{name: (root / name,) for name in names}, **more)
