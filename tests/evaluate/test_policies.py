"""Policies against an opponent: a real engine, real Ray, judges behind a real server."""

import json
import string
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import commands
from support.pages import self_contained

from psyco_ray.cli.main import main
from psyco_ray.config import evaluate_policy, job_file
from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.prompts import PACKAGED
from psyco_ray.data import splits, tables
from psyco_ray.evaluate import answers, matchups, speech_sets, verdicts, winrates
from psyco_ray.evaluate import policies as evaluating
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.report import policies as report
from psyco_ray.run import shards
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.progress import Progress

DEV = 33  # speeches of the packaged sample that are held out
SAMPLE = [json.loads(line) for line in tables.SAMPLE.read_text("utf-8").splitlines()]
ENGINE = {"cpus": 0.1, "max_model_len": 512, "max_num_seqs": 16, "kv_cache_gb": 0.1}
ODD = "say <b>this</b> | & that"


@pytest.fixture(scope="module")
def url(serve):
    """Of judges; they answer what the JSON schema allows, drawn by a hash of the question."""
    return serve()


@pytest.fixture(scope="module")
def slow_url(serve):
    return serve("--latency", "0.3")


def counts(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return json.load(answer)


def local(url: str, model: str = "judge", **more) -> dict:
    return {"model": model, "base_url": url, "key_env": None, **more}


def settings(run: Path, **changes) -> dict:
    return {
        "run_dir": str(run),
        "speeches": {"split": "dev"},
        "policies": [{"name": "mine", "model": "x/y"}],
        "opponent": {"name": "other", "responses": "other.jsonl"},
        "judges": [{"name": "judge", "endpoint": local("http://nowhere")}],
        "sampling": {"max_tokens": 24},
        "rollouts": ENGINE,
        **changes,
    }


def parsed(given: dict) -> PolicyEvaluationJob:
    return job_file.parse(PolicyEvaluationJob, given, "job")


def run(given: dict) -> dict:
    directory = RunDirectory(given["run_dir"])
    try:
        results, cases = evaluating.evaluate(parsed(given), directory, Progress())
        report.write_report(results, cases, directory.root)
        return results
    finally:
        directory.close()


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def responses(tmp_path_factory) -> str:
    """An opponent's responses to all packaged speeches."""
    rows = [{"question": row["question"], "response": row["chosen"]} for row in SAMPLE]
    return write_lines(tmp_path_factory.mktemp("opponent") / "responses.jsonl", rows)


ONE = {"name": "one", "model": "x/y"}
BATCH = {"name": "b", "endpoint": {"model": "judge", "via": "batch"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policies": []}, "policies"),
        ({"judges": []}, "judges"),
        ({"variants": []}, "variants"),
        ({"policies": [ONE, ONE]}, "two models are named one"),
        ({"policies": [{**ONE, "name": "other"}]}, "two models are named other"),
        ({"policies": [{**ONE, "name": "../up"}]}, "is invalid as a directory name"),
        ({"variants": ["free", "free"]}, "two variants are named free"),
        ({"variants": ["short"]}, "invalid value 'short'"),
        ({"judges": [BATCH]}, "the judge b has via: batch"),
        ({"judges": [{**BATCH, "name": n, "endpoint": local("x")} for n in "ab"]}, "judge a has the same model judge"),
        ({"opponent": {"name": "o"}}, "exactly one of responses .*, endpoint and model"),
        ({"opponent": {"name": "o", "model": "x/y", "responses": "z"}}, "the opponent o needs exactly one"),
        ({"max_cost": 1.0}, "max_cost needs price_in and price_out of the endpoint of the judge judge"),
        ({"sampling": {"max_tokens": 512}}, "sampling.max_tokens 512 leaves no room"),
        ({"rollouts": {"tensor_parallel": 2}}, "tensor_parallel 2 needs as many"),
        ({"judge": []}, "unknown key judge; did you mean judges"),
    ],
)
def test_wrong_jobs_are_told_in_one_sentence(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said) as caught:
        parsed(settings(tmp_path) | changes)
    assert "\n" not in str(caught.value)


def test_the_papers_settings_are_the_defaults(tmp_path):
    job = parsed({key: settings(tmp_path)[key] for key in ("policies", "opponent", "judges")})
    assert (job.speeches.split, job.sampling.temperature, job.sampling.max_tokens) == ("test", 0, 1024)
    assert (job.variants, job.judging.order) == (["free", "matched"], "seeded")


def load(seed: int = 0, **changes) -> list[dict]:
    return speech_sets.load_speeches(evaluate_policy.Speeches(**{"split": "dev", **changes}), seed)


def test_every_held_out_speech_comes_once_with_its_coarse_topic():
    found = load()
    assert len({row["speech_id"] for row in found}) == len(found) == DEV
    assert [row["speech_id"] for row in found] == sorted(row["speech_id"] for row in found)
    assert {row["topic"] for row in found} <= set(winrates.TOPICS)
    assert all(splits.is_dev(row["speech"], 0.1) for row in found)


def test_topics_may_be_numbers_or_missing(tmp_path):
    rows = [{"text": f"speech {i}", "split": "dev", "topic": topic} for i, topic in enumerate((7, 7, None))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "numbers.parquet")
    found = {row["speech"]: row["topic"] for row in load(file=str(tmp_path / "numbers.parquet"))}
    assert found == {"speech 0": "7", "speech 1": "7", "speech 2": None}


def test_more_speeches_hold_the_fewer_ones_and_the_seed_draws_them():
    few, more, others = ({row["speech_id"] for row in load(seed, limit=n)} for seed, n in ((0, 9), (0, 20), (1, 9)))
    assert len(few) == 9
    assert few < more
    assert few != others


def test_what_a_data_job_collected_is_read_with_its_topics(tmp_path):
    rows = [
        {"speech": row["question"], "split": split, "speech_id": splits.speech_id(row["question"])}
        for row, split in zip(SAMPLE, ("test", "train", "test", "dev"), strict=False)
    ]
    for directory in ("speeches", "topics/set-aside"):
        (tmp_path / directory).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "speeches" / "0.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "speeches" / "1.parquet")
    (tmp_path / "topics" / "settings.json").write_text("{}")
    pq.write_table(pa.table({"speech_id": ["x"], "what": ["topic"]}), tmp_path / "topics" / "set-aside" / "0.parquet")
    labelled = pa.table({"speech_id": [rows[0]["speech_id"]], "coarse_topic": ["Social Issues"]})
    pq.write_table(labelled, tmp_path / "topics" / "0.parquet")
    found = load(file=str(tmp_path / "speeches"), split="test", topics=str(tmp_path / "topics"))
    assert {row["speech"]: row["topic"] for row in found} == {
        rows[0]["speech"]: "Social Issues",
        rows[2]["speech"]: None,
    }


def test_wrong_speeches_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no speech of the split test \(it has dev: 33, train: 261\)"):
        load(split="test")
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        load(file=str(tmp_path / "none.jsonl"))
    for rows, said in (
        ([{"text": "a"}, {"text": " "}], "row 2 has an empty text"),
        ([{"client": "a"}], "no column question or speech or text; it has client"),
        ([{"text": "a", "split": "eval"}], "row 1: the split is 'eval'"),
    ):
        with pytest.raises(ValueError, match=said):
            load(file=write_lines(tmp_path / "speeches.jsonl", rows))
    with pytest.raises(ValueError, match="has no column coarse_topic"):
        load(topics=write_lines(tmp_path / "topics.jsonl", [{"speech_id": "a", "topic": "Anxiety"}]))


def test_an_opponents_file_is_found_by_the_speech_whatever_its_case(responses, tmp_path):
    rows = load()
    assert speech_sets.load_responses(responses, rows).keys() == {row["speech_id"] for row in rows}
    loud = [{"speech": row["speech"].upper(), "response": "Mm."} for row in rows]
    found = speech_sets.load_responses(write_lines(tmp_path / "loud.jsonl", loud), rows)
    assert found == {row["speech_id"]: "Mm." for row in rows}


def test_an_opponents_file_that_lacks_something_is_named(tmp_path):
    rows = load(limit=3)
    full = [{"speech": row["speech"], "response": "Mm."} for row in rows]
    for given_rows, said in (
        (full[:2], f"no response to 1 of the 3 speeches, the first of them by its id {rows[2]['speech_id']};"),
        ([*full, {**full[0], "response": "No."}], "row 4 answers a speech that an earlier row answers otherwise"),
        ([{**full[0], "response": ""}], "row 1 has an empty response"),
        ([{"speech": "a", "answer": "b"}], "no column response; it has speech, answer"),
    ):
        with pytest.raises(ValueError, match=said):
            speech_sets.load_responses(write_lines(tmp_path / "some.jsonl", given_rows), rows)
    again = write_lines(tmp_path / "again.jsonl", [*full, full[0]])
    assert len(speech_sets.load_responses(again, rows)) == 3


@pytest.mark.parametrize(
    ("answer", "better"),
    [
        ('{"rationale": "warmer", "better": "A"}', ("A", "warmer")),
        ('Well: {"better": " response b "}', ("B", "")),
        ('{"better": "b", "rationale": null}', ("B", "None")),
        ('"A"', ("A", "")),
    ],
)
def test_verdicts_are_read_with_tolerance(answer, better):
    assert verdicts.read_verdict(answer) == better


@pytest.mark.parametrize("answer", ['{"better": "C"}', '{"better": 1}', "{}", '{"better": "both"}', "A", "", "[]"])
def test_what_is_no_verdict_is_refused(answer):
    with pytest.raises(UnreadableAnswerError, match=r"better is|holds no JSON"):
        verdicts.read_verdict(answer)


PAIRS = [
    {"key": f"mine:{number}", "speech": row["question"], "ours": row["chosen"], "theirs": row["rejected"]}
    for number, row in enumerate(SAMPLE[:60])
]


def written(root: Path, pairs: list[dict], **judging) -> verdicts.Verdicts:
    setup = verdicts.JudgeSetup(Endpoint(**local("http://nowhere")), Judging(**judging))
    return verdicts.Verdicts(pairs, setup, root)


def questions(judged: verdicts.Verdicts) -> list:
    return [question for part in judged._calls.parts for question in judged._calls.stage.questions(part)]


@pytest.mark.parametrize("order", ["seeded", "strict"])
def test_a_verdict_counts_for_the_response_that_was_shown_there(order, tmp_path):
    asked = questions(written(tmp_path, PAIRS, order=order))
    by_key = {pair["key"]: pair for pair in PAIRS}
    assert Counter(question.what for question in asked) == dict.fromkeys(by_key, 2 if order == "strict" else 1)
    for question in asked:
        pair, text = by_key[question.what], question.call.messages[-1]["content"]
        assert pair["speech"] in text
        assert "Facilitation of Self-Exploration" in text
        ours_first = f"Response A: {pair['ours']}\n" in text
        first, second = ("ours", "theirs") if ours_first else ("theirs", "ours")
        assert f"Response A: {pair[first]}\n" in text
        assert f"Response B: {pair[second]}\n" in text
        for letter, side in (("A", first), ("B", second)):
            [row] = question.rows((letter, "why"), True)
            assert (row["ours"], row["ours_first"], row["rationale"]) == (side == "ours", ours_first, "why")
    shown_first = sum(
        f"Response A: {by_key[question.what]['ours']}\n" in question.call.messages[-1]["content"] for question in asked
    )
    assert 0.3 < shown_first / len(asked) < 0.7


@given(st.integers(0, 10**6))
def test_the_order_depends_on_seed_speech_and_policy_alone(seed):
    pair = PAIRS[seed % len(PAIRS)]
    assert verdicts.orders("seeded", seed, pair) == verdicts.orders("seeded", seed, {**pair, "ours": "x"})
    assert verdicts.orders("strict", seed, pair) == [True, False]
    assert verdicts.orders("seeded", seed, {**pair, "theirs": pair["ours"]}) == []


def test_over_many_speeches_every_side_is_first_in_about_half():
    first = [verdicts.orders("seeded", 3, {**PAIRS[0], "key": f"mine:{number}"})[0] for number in range(2000)]
    assert sum(first) / 2000 == pytest.approx(0.5, abs=0.045)
    other = [verdicts.orders("seeded", 3, {**PAIRS[0], "key": f"yours:{number}"})[0] for number in range(2000)]
    assert sum(a == b for a, b in zip(first, other, strict=True)) / 2000 == pytest.approx(0.5, abs=0.045)


def test_the_prompts_have_their_places_once():
    texts = yaml.safe_load(PACKAGED.read_text())
    wanted = {
        "judge": {"principles", "client_speech", "response_a", "response_b"},
        "respond-matched": {"client_speech", "words"},
        "respond-small-matched": {"client_speech", "words"},
    }
    for name, places in wanted.items():
        found = [field for text in texts[name].values() for _, field, _, _ in string.Formatter().parse(text) if field]
        assert sorted(found) == sorted(places)
    assert texts["judge"]["user"].splitlines()[-1].startswith("- better: ")


@pytest.mark.parametrize(
    ("entry", "place", "said"),
    [
        ("judge", "{response_b}", r"the user text of judge does not contain \{response_b\}"),
        ("respond-matched", "{words}", r"the user text of respond-matched does not contain \{words\}"),
    ],
)
def test_a_prompts_file_without_a_place_is_refused(entry, place, said, tmp_path, responses):
    texts = yaml.safe_load(PACKAGED.read_text())
    texts[entry]["user"] = texts[entry]["user"].replace(place, "")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(texts))
    opponent = {"name": "other", "responses": responses}
    with pytest.raises(ValueError, match=said):
        run(settings(tmp_path / "run", opponent=opponent, prompts={"file": str(tmp_path / "mine.yaml")}))


def test_a_run_directory_of_another_kind_is_not_touched(tmp_path):
    (tmp_path / "job.yaml").write_text("iterations: 3\n")
    with pytest.raises(ValueError, match="holds a run of another kind"):
        run(settings(tmp_path))
    assert (tmp_path / "job.yaml").read_text() == "iterations: 3\n"


def test_a_run_directory_stands_for_its_checkpoint_also_when_it_was_moved(tmp_path, tiny_model):
    assert answers.checkpoint(str(tiny_model), 512) == str(tiny_model)
    with pytest.raises(ValueError, match=r"holds 1024 tokens, rollouts\.max_model_len is 2048"):
        answers.checkpoint(str(tiny_model), 2048)
    run_dir = tmp_path / "run"
    (run_dir / "iteration-002").mkdir(parents=True)
    (run_dir / "iteration-002" / "checkpoint").symlink_to(tiny_model)
    named = {"checkpoint": "elsewhere/iteration-002/checkpoint"}
    (run_dir / "summary.json").write_text(json.dumps(named))
    assert answers.checkpoint(str(run_dir), 512) == str(run_dir / "iteration-002" / "checkpoint")
    (run_dir / "summary.json").write_text(json.dumps({"checkpoint": str(tiny_model)}))
    assert answers.checkpoint(str(run_dir), 512) == str(tiny_model)
    (run_dir / "summary.json").write_text(json.dumps({"checkpoint": "smollm2-135m"}))
    assert answers.checkpoint(str(run_dir), 512) == "smollm2-135m", "no policy was better than the base model"
    (run_dir / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="names no checkpoint"):
        answers.checkpoint(str(run_dir), 512)


def decided(root: Path, pairs: list[dict], chosen: dict[str, list[tuple[bool, bool]]], **judging) -> verdicts.Verdicts:
    """Verdicts as a judge would have left them: for each key, whether ours was first and whether it was chosen."""
    found = written(root, pairs, **judging)
    for part in found._calls.parts:
        rows = [
            {"key": row["key"], "ours_first": first, "ours": ours, "rationale": f"because of {ODD}"}
            for row in shards.read(found._calls.stage.pairs, part)
            for first, ours in chosen.get(row["key"], [])
        ]
        facts = dict.fromkeys(("units", "set_aside", "paid", "reused", "prompt_tokens", "completion_tokens"), 1)
        shards.write(found._calls.stage.out, part, rows, verdicts.VERDICTS, facts=facts)
    return found


def test_outcomes_of_both_orders_and_of_the_same_response(tmp_path):
    chosen = {
        "mine:0": [(True, True), (False, True)],
        "mine:1": [(True, False), (False, False)],
        "mine:2": [(True, True), (False, False)],
        "mine:3": [(True, True)],
        "mine:5": [],
    }
    pairs = [*PAIRS[:4], {**PAIRS[4], "theirs": PAIRS[4]["ours"]}, PAIRS[5]]
    found = decided(tmp_path, pairs, chosen, order="strict").outcomes()
    assert found == {"mine:0": 1, "mine:1": 0, "mine:2": 0.5, "mine:3": None, "mine:4": 0.5, "mine:5": None}
    once = {"mine:0": [(False, True)], "mine:1": [(True, False)]}
    assert decided(tmp_path, PAIRS[:3], once).outcomes() == {"mine:0": 1, "mine:1": 0, "mine:2": None}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[PolicyEvaluationJob, list[matchups.Matchup], list[dict], dict[str, str]]:
    """Two policies on twenty speeches under both variants with two judges.

    The first judge takes `good` in 15, `bad` in 5; its verdict on the 20th speech is unreadable, and the 19th has no
    response. The second judge takes ours where it is shown first.
    """
    root = tmp_path_factory.mktemp("evaluated")
    judges = [{"name": name, "endpoint": local("http://nowhere", name)} for name in ("sure", "led")]
    job = parsed(
        settings(root / "demo", policies=[{"name": n, "model": "x/y"} for n in ("good", "bad")], judges=judges)
    )
    answered = load(limit=20)
    opponent_responses = {row["speech_id"]: "word " * 9 + ODD for row in answered}
    played = []
    for variant in job.variants:
        for name, wins in (("good", 15), ("bad", 5)):
            responses = {
                row["speech_id"]: {"response": f"{name} " * 28, "finished": n > 2} for n, row in enumerate(answered)
            }
            del responses[answered[18]["speech_id"]]
            pairs = [
                {"key": f"{name}:{key}", "ours": response["response"], "theirs": opponent_responses[key]}
                | {"speech": next(row["speech"] for row in answered if row["speech_id"] == key)}
                for key, response in responses.items()
            ]
            keys = [f"{name}:{row['speech_id']}" for row in answered]
            sure = {key: [(n % 2 == 0, n < wins)] for n, key in enumerate(keys[:19])}
            led = {key: [(n % 2 == 0, n % 2 == 0)] for n, key in enumerate(keys)}
            by_judge = {
                judge: decided(root / variant / judge, pairs, chosen)
                for judge, chosen in (("sure", sure), ("led", led))
            }
            played.append(matchups.Matchup(name, variant, responses, by_judge))
    return job, played, answered, opponent_responses


def test_results_by_hand(evaluated):
    job, played, answered, opponent_responses = evaluated
    found = matchups.results(job, played, answered, opponent_responses, silent=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["speeches"], found["opponent_silent"], found["opponent"]) == (20, 2, "other")
    assert [policy["name"] for policy in found["policies"]] == ["good", "bad"]
    good = found["policies"][0]["variants"]["matched"]
    assert (good["overall"]["rate"], good["overall"]["unreadable"], good["unanswered"]) == (0.75, 1, 1)
    assert good["overall"] == winrates.win_rate([1.0] * 15 + [0.0] * 4 + [None], 0)
    assert sum(topic["speeches"] for topic in good["topics"].values()) == 20
    assert winrates.OVERALL not in good["topics"]
    theirs_words = 9 + len(ODD.split())
    assert (good["mean_words"], good["opponent_mean_words"]) == (28, theirs_words)
    assert good["length_ratio"] == pytest.approx(28 / theirs_words)
    assert good["lc"] == winrates.length_controlled([1.0] * 15 + [0.0] * 3 + [None], [28 - theirs_words] * 19)
    assert good["lc"]["rate"] == pytest.approx(15 / 19)
    assert good["cut"] == 3
    assert good["by_judge"]["led"]["first_chosen"] == 1
    assert good["by_judge"]["led"]["overall"]["unreadable"] == 0
    for variant in ("free", "matched"):
        assert found["mcnemar"][variant] == [
            {"a": "good", "b": "bad", "a_only": 10, "b_only": 0, "p": pytest.approx(2 / 2**10)}
        ]
    assert len(found["agreement"]) == 4
    first = found["agreement"][0]
    assert (first["judges"], first["policy"], first["percent"]["items"]) == (["sure", "led"], "good", 18)
    agreed = sum((n < 15) == (n % 2 == 0) for n in range(18))
    assert first["percent"]["value"] == pytest.approx(agreed / 18)


def test_the_page_holds_all_and_loads_nothing(evaluated, tmp_path):
    job, played, answered, opponent_responses = evaluated
    shown = matchups.cases(job, played, answered, opponent_responses)
    report.write_report(matchups.results(job, played, answered, opponent_responses, silent=2), shown, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    page = self_contained(text)
    for words in (
        "good (w/o Length Constraint) does best", "75.0 %", "2 more speeches take no part", "Llama3-8B (paper)",
        "Agreement between judges", "Models against each other", "sure prefers", f"because of {ODD}",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(shown) == matchups.CASES
    for case in shown:
        assert case["speech"] in page.text
        assert [(answer["policy"], answer["variant"]) for answer in case["answers"]] == [
            ("good", "free"), ("bad", "free"), ("good", "matched"), ("bad", "matched"),
        ]  # fmt: skip
    assert matchups.cases(job, played, answered, opponent_responses) == shown
    other = matchups.cases(job.model_copy(update={"seed": 1}), played, answered, opponent_responses)
    assert [case["speech"] for case in other] != [case["speech"] for case in shown]


def test_table_3_cell_by_cell(evaluated):
    job, played, answered, opponent_responses = evaluated
    results = matchups.results(job, played, answered, opponent_responses, silent=0)
    text = report.markdown(results)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n\n")[2].splitlines()]
    assert lines[0] == ["Model", *winrates.TOPICS.values(), "Overall"]
    assert [line[0] for line in lines[2:]] == [
        line
        for setting in ("**w/o Length Constraint**", "**w/ Length Constraint**")
        for line in [
            setting,
            "good",
            "bad",
            *(f"Llama3-{size}{more} (paper)" for size in ("3B", "8B") for more in ("", " + DPO", " + DPO-Iter")),
        ]
    ]
    assert len({len(line) for line in lines}) == 1
    good = results["policies"][0]["variants"]["free"]
    rates = [good["topics"].get(title, {}).get("rate") for title in winrates.TOPICS.values()]
    assert lines[3][1:] == [*("–" if rate is None else f"{100 * rate:.1f}" for rate in rates), "75.0"]
    by_name = {(n > 10, line[0]): line for n, line in enumerate(lines)}
    iterated = "86.3 88.2 87.1 87.0 91.4 87.0 90.8 84.3 87.0"
    assert by_name[False, "Llama3-8B + DPO-Iter (paper)"][1:] == iterated.split()
    base = "15.1 15.5 15.0 15.7 13.6 13.7 9.2 15.3 15.0"
    assert by_name[True, "Llama3-3B (paper)"][1:] == base.split()
    assert "<b>" not in text


def test_one_variant_and_one_judge_leave_the_other_tables_out(evaluated):
    job, played, answered, opponent_responses = evaluated
    alone = job.model_copy(update={"variants": ["free"], "judges": job.judges[:1], "policies": job.policies[:1]})
    text = report.markdown(matchups.results(alone, played[:1], answered, opponent_responses, silent=0))
    assert "w/ Length Constraint" not in text
    assert "Agreement" not in text
    assert "against each other" not in text


def judge_all(pairs: list[dict], url: str, root: Path, model: str = "judge", **judging) -> dict:
    endpoint = Endpoint(**local(url, model, **judging.pop("endpoint", {})))
    return verdicts.judge(pairs, verdicts.JudgeSetup(endpoint, Judging(**judging)), root, Progress())


@pytest.mark.long
def test_strict_mode_asks_both_orders_and_nothing_twice(local_ray, tmp_path, url):
    pairs = [*PAIRS[:20], {**PAIRS[20], "theirs": PAIRS[20]["ours"]}]
    before = counts(url)["served"]
    once = judge_all(pairs, url, tmp_path)
    assert counts(url)["served"] - before == 20
    assert set(once.values()) == {0.0, 0.5, 1.0}
    assert once["mine:20"] == 0.5
    both = judge_all(pairs, url, tmp_path, order="strict")
    assert counts(url)["served"] - before == 40, "half of the questions were asked before"
    for key, outcome in both.items():
        assert outcome in (0.5, once[key]), "a strict win or loss is what the one order said"
    assert Counter(both.values())[0.5] > 1
    assert judge_all(pairs[:5], url, tmp_path, order="strict") == {p["key"]: both[p["key"]] for p in pairs[:5]}
    assert judge_all(pairs, url, tmp_path, order="strict") == both
    assert counts(url)["served"] - before == 40
    mumbled = judge_all(pairs, url, tmp_path, "mumbler", endpoint={"structured": "text"}, attempts=2)
    assert mumbled == {pair["key"]: 0.5 if pair["key"] == "mine:20" else None for pair in pairs}
    assert counts(url)["served"] - before == 40 + 2 * 20


@pytest.mark.slow
def test_a_policy_meets_its_opponent_and_nothing_is_done_twice(local_ray, tmp_path, url, tiny_model, responses):
    given_job = settings(
        tmp_path / "run",
        policies=[{"name": "tiny", "model": str(tiny_model)}],
        opponent={"name": "file", "responses": responses},
        speeches={"split": "dev", "limit": 12},
        judges=[
            {"name": "first", "endpoint": local(url)},
            {"name": "second", "endpoint": local(url, "another")},
            {"name": "mumbler", "endpoint": local(url, "mumbler", structured="text")},
        ],
    )
    before = counts(url)["served"]
    results = run(given_job)
    root = tmp_path / "run"
    assert json.loads((root / "evaluation.json").read_text()) == results
    [policy] = results["policies"]
    assert counts(url)["served"] - before == 12 * 2 * (1 + 1 + 3), "the mumbler is asked three times"
    wanted = {row["question"]: row["chosen"] for row in SAMPLE}
    for variant, found in policy["variants"].items():
        assert found["overall"]["speeches"] == 12
        assert found["overall"]["unreadable"] == 0
        assert found["overall"] == found["by_judge"]["first"]["overall"]
        assert found["by_judge"]["mumbler"]["overall"]["unreadable"] == 12
        assert found["by_judge"]["mumbler"]["overall"]["rate"] == 0
        assert found["by_judge"]["second"]["spent"]["paid"] == 12
        rows = pq.read_table(root / "responses" / "tiny" / variant / "responses.parquet").to_pylist()
        assert len(rows) == 12
        assert {row["speech_id"] for row in rows} == {row["speech_id"] for row in load(limit=12)}
        judged = pq.read_table(root / "judged" / "first" / "tiny" / f"{variant}.parquet").to_pylist()
        assert sum(row["outcome"] for row in judged) / 12 == pytest.approx(found["overall"]["rate"])
        assert Counter(row["better"] for row in judged)["ours"] == found["overall"]["wins"]
        said = [len(wanted[row["speech"]].split()) for row in rows]
        assert found["opponent_mean_words"] == pytest.approx(sum(said) / 12)
        assert found["cut"] > 0, "random weights hardly ever end"
    kinds = Counter(tuple(row["judges"]) for row in results["agreement"])
    assert kinds == {("first", "second"): 2, ("first", "mumbler"): 2}
    by_pair = {(row["judges"][1], row["variant"]): row["percent"] for row in results["agreement"]}
    assert by_pair["second", "free"]["items"] == 12
    assert by_pair["mumbler", "free"]["items"] == 0
    asked = [
        row["speech"] for path in (root / "questions").rglob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert len(asked) == 24
    matched = [text for text in asked if "in about" in text]
    for text in matched:
        speech = next(row["question"] for row in SAMPLE if row["question"] in text)
        assert f"in about {len(wanted[speech].split())}\nwords" in text
    assert len(matched) == 12

    times = {path: path.stat().st_mtime_ns for path in (root / "answers").rglob("*.parquet")}
    assert run(given_job) == results
    assert {path: path.stat().st_mtime_ns for path in (root / "answers").rglob("*.parquet")} == times
    assert counts(url)["served"] - before == 12 * 2 * (1 + 1 + 3)
    for name in ("report.html", "tables.md"):
        assert "tiny" in (root / name).read_text()


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "psyco_ray.cli", "evaluate-policy", str(path)]


@pytest.mark.long
def test_killed_then_out_of_money_then_done_and_nothing_is_paid_twice(local_ray, tmp_path, slow_url, tiny_model):
    flying = 2
    priced = {"price_in": 1.0, "price_out": 2.0, "concurrency": flying}
    given_job = settings(
        tmp_path / "run",
        policies=[{"name": "tiny", "model": str(tiny_model)}],
        opponent={"name": "talker", "endpoint": local(slow_url, "talker", **priced)},
        speeches={"split": "dev", "limit": 30},
        variants=["free"],
        judges=[{"name": "judge", "endpoint": local(slow_url, "judge", **priced)}],
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(given_job))
    killed = psutil.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while counts(slow_url)["by_kind"].get("judge", 0) < 6:
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    for process in [killed, *killed.children(recursive=True)]:  # Ray's processes too
        process.kill()
    killed.wait()
    assert counts(slow_url)["by_kind"]["talker"] == 30
    assert counts(slow_url)["by_kind"]["judge"] < 30, "it was to be killed in between"

    stopped = commands.here("evaluate-policy", path, "--max-cost", 0.01)
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    assert "the same command continues" in stopped.stderr
    assert not (tmp_path / "run" / "evaluation.json").exists()

    results = run(given_job)
    found = results["policies"][0]["variants"]["free"]
    assert (found["overall"]["speeches"], found["overall"]["unreadable"]) == (30, 0)
    assert counts(slow_url)["by_kind"]["talker"] == 30
    assert counts(slow_url)["paid_twice"] <= flying, "only what was in flight when it was killed"
    assert counts(slow_url)["by_kind"]["judge"] <= 30 + flying
    shown = json.dumps(opponent_rows(tmp_path / "run"))
    assert "I hear you." in shown


def opponent_rows(root: Path) -> list[dict]:
    return pq.read_table(root / "responses" / "talker" / "responses.parquet").to_pylist()


def test_an_opponent_that_answers_nothing_is_told(local_ray, tmp_path, url, tiny_model):
    policies = [{"name": "tiny", "model": str(tiny_model)}]
    opponent = {"name": "silent", "endpoint": local(url, "filter", structured="text")}
    with pytest.raises(
        ValueError, match=r"silent answered none of the 3 speeches; the first reason: stopped by the content filter"
    ):
        run(settings(tmp_path, policies=policies, opponent=opponent, speeches={"split": "dev", "limit": 3}))


def test_the_command_says_what_a_job_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "run")))
    assert main(["evaluate-policy", str(path), "seed=-1"]) == 2
    assert "seed: invalid value -1" in capsys.readouterr().err
    assert main(["evaluate-policy", str(path), "--max-cost", "-1"]) == 2
    assert "--max-cost: max_cost: invalid value -1.0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
