"""Runs, pairs and evaluations become items of a desk."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.desk_sources import CRISIS, DEV, TRAIN, answer, policy_evaluation, training_run

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data import pair
from psyco_ray.data.splits import speech_id
from psyco_ray.desk.sources import Request, kind_of, read
from psyco_ray.desk.store import Store


def by_speech(items) -> dict:
    return {item.speech: item for item in items}


def test_a_run_gives_drafts_of_its_best_policy(tmp_path) -> None:
    items = by_speech(read(str(training_run(tmp_path / "run")), Request()))
    assert set(items) == set(DEV)
    item = items[DEV[0]]
    assert (item.kind, item.speech_id) == ("draft", speech_id(DEV[0]))
    assert item.responses == (f"{answer(DEV[0], 2)} 0",)
    assert item.facts["models"] == ["base-1b, iteration 2"]
    assert (item.facts["split"], item.facts["iteration"], item.facts["finished"]) == ("dev", 2, [True])


def test_a_run_gives_blind_pairs_with_the_verdicts_that_it_has(tmp_path) -> None:
    items = by_speech(read(str(training_run(tmp_path / "run")), Request("pairs")))
    assert items[DEV[0]].responses == (f"{answer(DEV[0], 2)} 0", f"{answer(DEV[0], 0)} 0")
    assert items[DEV[0]].facts["models"] == ["base-1b, iteration 2", "base-1b"]
    labels = [items[text].facts["labels"]["overall"] for text in DEV]
    assert labels == [-1, 0, -1, 1, 1, 1]  # of the judge where it has one, else of the held-out model
    assert items[DEV[1]].facts["labels_by"] == "the run's judge"
    assert items[DEV[3]].facts["labels_by"] == "the heldout model"


def test_an_iteration_or_its_checkpoint_may_be_named(tmp_path) -> None:
    run = training_run(tmp_path / "run", best=None)
    for name in ("iteration-001", "iteration-001/checkpoint"):
        (run / name).mkdir(exist_ok=True)
        items = by_speech(read(str(run / name), Request()))
        assert items[DEV[0]].responses == (f"{answer(DEV[0], 1)} 0",)
    with pytest.raises(InputError, match=r"no summary\.json yet"):
        read(str(run), Request())
    with pytest.raises(InputError, match="its base model, so there are no two models"):
        read(str(run / "iteration-000"), Request("pairs"))


def test_the_speeches_that_a_run_trains_on_stay_train(tmp_path) -> None:
    run = str(training_run(tmp_path / "run"))
    pairs = by_speech(read(run, Request("pairs", split="train")))
    assert set(pairs) == set(TRAIN)
    assert pairs[TRAIN[0]].responses == (f"{answer(TRAIN[0], 2)} good", f"{answer(TRAIN[0], 2)} bad")
    assert pairs[TRAIN[0]].facts["split"] == "train"
    drafts = by_speech(read(run, Request("drafts", split="train")))
    assert drafts[TRAIN[0]].responses == (f"{answer(TRAIN[0], 2)} good",)


def test_an_evaluation_gives_pairs_and_scores_of_the_same_answers(tmp_path) -> None:
    items = read(str(policy_evaluation(tmp_path / "ev")), Request(count=4))
    kinds = {kind: [item for item in items if item.kind == kind] for kind in ("pair", "scores")}
    assert [len(found) for found in kinds.values()] == [8, 8]  # four of each of two variants
    assert {item.responses for item in kinds["pair"]} == {item.responses for item in kinds["scores"]}
    every = read(str(tmp_path / "ev"), Request("pairs"))
    assert len(every) == 10  # equal answers are left out
    labels = {(item.speech, item.facts["variant"]): item.facts.get("labels") for item in every}
    assert [labels[text, "free"] for text in DEV[:5]] == [
        {"overall": 1},
        {"overall": -1},
        {"overall": 0},
        None,
        {"overall": 1},
    ]
    first = next(item for item in every if item.speech == DEV[1])
    assert first.responses[0].startswith("Ours")
    assert first.facts["verdicts"] == {"gpt": -1, "other": 1}
    assert (first.facts["split"], first.facts["models"]) == ("test", ["dpo", "GPT-4o"])


def test_a_file_of_pairs_gives_pairs_with_what_it_says_of_them() -> None:
    items = read("sample", Request(count=30))
    assert len({item.id for item in items}) == 30
    item = items[0]
    assert item.kind == "pair"
    assert item.facts["labels"]["overall"] == 1
    assert set(item.facts["ratings"][0]) == set(PRINCIPLES)
    signs = {name: item.facts["ratings"][0][name] - item.facts["ratings"][1][name] for name in PRINCIPLES}
    assert all(item.facts["labels"][name] == (gap > 0) - (gap < 0) for name, gap in signs.items())
    assert item.facts["split"] in ("train", "dev")
    assert item.facts["models"][0].startswith("synthetic:")


def test_other_formats_of_pairs_keep_their_question(tmp_path) -> None:
    said = ["I cannot sleep.", "Since when?", "Since May."]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]
    rows = [
        {"prompt": turns, "chosen": "What happened in May?", "rejected": "Sleep more."},
        {"prompt": "Alone again.", "chosen": "a b", "rejected": "c d"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = {item.responses[0]: item for item in read(str(tmp_path / "pairs.jsonl"), Request())}
    talk = items["What happened in May?"]
    assert talk.speech == "Client: I cannot sleep.\n\nTherapist: Since when?\n\nClient: Since May."
    assert json.loads(talk.facts["asked"]) == turns
    assert (items["a b"].speech, items["a b"].facts["form"]) == ("Alone again.", "text")


def test_a_text_in_place_of_an_id_names_no_pair_and_loses_no_column(tmp_path) -> None:
    plain = {"question": "I cannot sleep.", "rejected": "bad one", "chosen_model": "a", "rejected_model": "b"}
    ids = ["Anna Meier: I want to die since May", "x-1"]
    rows = [plain | {"prefID": name, "chosen": f"good {n}", "topic": f"t{n}"} for n, name in enumerate(ids)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = {item.responses[0]: item.facts for item in read(str(tmp_path / "pairs.jsonl"), Request())}
    found = [(items[f"good {n}"]["pair_id"], items[f"good {n}"]["topic"]) for n in (0, 1)]
    assert found == [("1", "t0"), ("x-1", "t1")]


def test_a_dataset_flags_with_its_columns_and_other_files_with_the_lexicons(tmp_path) -> None:
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    quiet, unread = "a quiet text that no lexicon flags, about a garden", "Nobody has read this one, it is about tea"
    said = {quiet: ["abuse"], CRISIS: [], unread: None}
    plain = {"question": CRISIS, "chosen": "good one", "rejected": "bad one"}
    rows = [
        plain | {"ID": "1", "prefID": str(number), "question": text, "split": "train", "crisis": signs}
        for number, (text, signs) in enumerate(said.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=pair.SCHEMA), tmp_path / "data" / "pairs" / "train.parquet")
    items = by_speech(read(str(tmp_path / "data"), Request()))
    assert [items[text].crisis for text in said] == [("abuse",), (), ()]
    (tmp_path / "plain.jsonl").write_text(json.dumps(plain) + "\n")
    assert read(str(tmp_path / "plain.jsonl"), Request())[0].crisis == ("self-harm",)


def test_a_run_and_an_evaluation_take_the_flags_of_their_speeches(tmp_path) -> None:
    rows = [{"speech": text, "crisis": ["violence"] if n == 0 else []} for n, text in enumerate([DEV[0], CRISIS])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "speeches.parquet")
    named = str(tmp_path / "speeches.parquet")
    items = by_speech(read(str(training_run(tmp_path / "run", dev=[*DEV[:5], CRISIS], speeches=named)), Request()))
    assert items[DEV[0]].crisis == ("violence",)
    assert items[CRISIS].crisis == ()  # a person or a model has looked: the column counts
    (tmp_path / "speeches.parquet").unlink()
    assert by_speech(read(str(tmp_path / "run"), Request()))[CRISIS].crisis == ("self-harm",)
    evaluation = policy_evaluation(tmp_path / "ev", speeches=named)
    assert by_speech(read(str(evaluation), Request("pairs")))[DEV[0]].crisis == ()


def test_the_same_source_twice_adds_nothing(tmp_path) -> None:
    run = training_run(tmp_path / "run")
    store = Store.open(tmp_path / "desk", create=True)
    assert store.add_items(read(str(run), Request())) == 6
    run.rename(tmp_path / "moved")
    assert store.add_items(read(str(tmp_path / "moved"), Request())) == 0
    assert read(str(tmp_path / "moved"), Request(), store.ids()) == []  # nor is it screened again
    assert store.add_items(read("sample", Request(count=5))) == 5
    assert store.add_items(read("sample", Request(count=8))) == 3  # a larger draw holds the smaller one


def test_the_draw_depends_on_the_seed_alone() -> None:
    ids = [[item.id for item in read("sample", Request(count=12, seed=seed))] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("make", "request_", "says"),
    [
        (lambda root: str(root), Request(), "is no directory of a training run"),
        (lambda root: "s3://bucket/run", Request(), "is remote; copy it"),
        (lambda root: str(policy_evaluation(root / "ev")), Request("drafts"), "drafts are a run's answers"),
        (lambda root: "sample", Request("drafts"), "drafts are a run's answers"),
        (lambda root: "sample", Request(count=0), "asks for nothing"),
        (lambda root: str(root / "none.csv"), Request(), "none.csv"),
    ],
)
def test_what_is_no_source_is_refused_with_the_way_out(tmp_path, make, request_, says) -> None:
    with pytest.raises(InputError, match=says):
        read(make(tmp_path), request_)


def test_no_word_of_a_client_is_logged(tmp_path, caplog) -> None:
    caplog.set_level("DEBUG")
    read(str(training_run(tmp_path / "run")), Request(count=50))
    read(str(policy_evaluation(tmp_path / "ev")), Request())
    assert "fewer than --count 50" in caplog.text
    assert not any(text[:20] in caplog.text for text in DEV)


def test_a_reward_evaluation_is_no_source(tmp_path) -> None:
    (tmp_path / "evaluation.json").write_text('{"tests": [], "models": []}')
    with pytest.raises(InputError, match="is no directory of"):
        kind_of(str(tmp_path))
