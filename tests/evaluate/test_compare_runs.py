"""Comparison of training runs, and its pages."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from support.pages import self_contained

from psyco_ray.cli.main import main
from psyco_ray.config import job_file
from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import Job
from psyco_ray.evaluate import stats
from psyco_ray.evaluate.compare_runs import compare, paired
from psyco_ray.report import compare_runs as report
from psyco_ray.run.directory import RunDirectory

ODD = "odd <b>name & | $pipe$"


SPEECHES = [f"{i:016x}" for i in range(12)]


def make_run(
    root: Path,
    scores: list[list[float]],
    speeches: list[str] = SPEECHES,
    judge: str = "both",
    finished: bool = True,
    tokens: list[float] | None = None,
    steps: int = 4,
    best: int | None = None,
    outcomes: list[list[float]] | None = None,
    **settings,
) -> Path:
    """A run directory as training leaves it: scores by iteration and speech, base model first.

    `best` is the checkpoint that the summary names, by default the one with the highest mean. `outcomes` are those of a
    language model that judges, by iteration from the first.
    """
    if outcomes:
        settings.setdefault("evaluation", {"judge": {"model": "gpt-4o"}})
    settings.setdefault("iterations", len(scores) - 1)
    scorers = Scorers(reward_model="rm", heldout_model=settings.pop("heldout_model", "held"))
    job = job_file.parse(Job, {"scorers": scorers.model_dump(), **settings}, "test")
    run = RunDirectory(str(root))
    run.write_text("job.yaml", job_file.dump(job))
    for iteration, values in enumerate(scores):
        facts: dict = {"reward": sum(values) / len(values), "ci95": stats.bootstrap_mean(values, 0)}
        facts["scores"] = {key: [value] for key, value in zip(speeches, values, strict=True)}
        if iteration:
            wins = [stats.win_share([new], [old]) for new, old in zip(values, scores[0], strict=True)]
            facts |= {"win_rate_vs_base": sum(wins) / len(wins), "win_rate_ci95": stats.wilson(sum(wins), len(wins))}
            run.finish(f"iteration-{iteration:03d}/train", 0.0, steps=[{"loss": 0.7}] * steps)
        result = dict.fromkeys(["reward", "heldout"] if judge == "both" else [judge], facts)
        if iteration and outcomes:
            result["judge"] = judged(dict(zip(speeches, outcomes[iteration - 1], strict=True)))
        mean = tokens[iteration] if tokens else 100.0
        result |= {"speeches": len(values), "mean_tokens": mean, "tokens": {key: [100] for key in speeches}}
        run.finish(f"iteration-{iteration:03d}/evaluate", 0.0, **result)
    if finished:
        means = [sum(values) for values in scores]
        chosen = means.index(max(means)) if best is None else best
        facts = {"iteration": chosen, "steps": steps * chosen, "by": "mean reward on the held-out speeches"}
        run.write_json("summary.json", {"iterations": len(scores) - 1, "best": facts})
    run.close()
    return root


def judged(outcomes: dict[str, float]) -> dict:
    wins = sum(outcomes.values())
    interval = stats.wilson(wins, len(outcomes))
    rate = wins / len(outcomes)
    return {"win_rate_vs_base": rate, "win_rate_ci95": interval, "outcomes": outcomes, "unreadable": 0}


def rising(height: float, iterations: int = 2) -> list[list[float]]:
    return [[i / 12 + height * k for i in range(12)] for k in range(iterations + 1)]


def policies(root: Path, names: list[str], opponent: str = "GPT-4o", **origin) -> Path:
    root.mkdir()
    rate = {"rate": 0.694, "wilson95": [0.678, 0.7095]}
    rate |= {"speeches": 3291}
    topics = {"Safety": {"rate": 0.754}, "Youth": {"rate": 0.5}}
    free = {"overall": rate, "topics": topics, "crisis": {"rate": 0.6}, "finished_share": 0.97}
    variants = {"free": free, "matched": {**free, "topics": {}, "crisis": None}}
    origin = {"run": None, "iteration": None, "steps": None, "series": None, **origin}
    result = {"opponent": opponent, "policies": [{"name": name, **origin, "variants": variants} for name in names]}
    (root / "evaluation.json").write_text(json.dumps(result))
    return root


def test_a_schedule_over_each_iteration_is_told_beside_one_over_the_run(tmp_path) -> None:
    offline = make_run(tmp_path / "offline", rising(1), pairs_from="file")
    for name, dpo, told in (("default", {}, True), ("run", {"schedule_over": "run", "keep_optimizer": True}, False)):
        other = make_run(tmp_path / name, rising(1), dpo=dpo)
        rows = {row["setting"]: row["values"] for row in compare([offline, other])["differences"]}
        expected = {"offline": "run", name: "iteration"} if told else None
        assert rows.get("dpo.schedule_over") == expected
        assert ("dpo.keep_optimizer" in rows) is told


def test_a_curve_by_hand(tmp_path) -> None:
    # iteration 1 wins 2 of 3 speeches and ties one, iteration 2 loses all
    scores = [[0.0, 1.0, 2.0], [1.0, 2.0, 2.0], [-1.0, 0.0, 1.0]]
    root = make_run(tmp_path / "run", scores, SPEECHES[:3], tokens=[100, 130, 80], steps=5)
    run = compare([root])["runs"]["run"]
    assert [point["step"] for point in run["curve"]] == [0, 5, 10]
    assert [point["win_rate"] for point in run["curve"]] == [0.5, 2.5 / 3, 0.0]
    assert [point["reward"] for point in run["curve"]] == [1.0, 5 / 3, 0.0]
    assert [point["length_ratio"] for point in run["curve"]] == [1.0, 1.3, 0.8]
    assert run["curve"][1]["win_rate_ci95"] == list(stats.wilson(2.5, 3))
    assert run["best"]["iteration"] == 1, "the hump, not the end"
    assert run["final"]["iteration"] == 2
    assert run["finished"]


def test_paired_by_hand() -> None:
    ours = {"a": [1.0, 3.0], "b": [1.0], "c": [5.0], "d": [0.0], "only ours": [9.0]}
    theirs = {"a": [1.0], "b": [0.0, 1.0], "c": [5.0], "d": [2.0], "only theirs": [9.0]}
    result = paired(ours, theirs)
    assert (result["speeches"], result["wins"], result["ties"], result["losses"]) == (4, 2, 1, 1)
    assert result["share"] == 2.5 / 4
    assert result["difference"] == pytest.approx((1 + 0.5 + 0 - 2) / 4)
    assert result["p"] == 1.0  # 2 of 3
    eight = {str(i): [float(i > 0)] for i in range(8)}
    assert paired(eight, {key: [0.5] for key in eight})["p"] == pytest.approx(2 * (1 + 8) / 2**8)  # 7 of 8 and beyond
    assert paired(eight, eight)["p"] == 1.0


def test_contexts_of_a_conversation_are_compared_as_dependent():
    keys = [f"{conversation}{turn}" for conversation in "abcdefgh" for turn in range(4)]
    ours = {key: [0.9 if key[0] != "a" else 0.1] for key in keys}
    theirs = {key: [0.5] for key in keys}
    alone, together = paired(ours, theirs), paired(ours, theirs, conversation={key: key[0] for key in keys})
    assert (together["wins"], together["losses"], together["share"]) == (28, 4, 0.875)
    assert alone["p"] == pytest.approx(binomtest(28, 32).pvalue)
    assert together["p"] == pytest.approx(binomtest(7, 8).pvalue), "eight conversations, not 32 speeches"
    for interval in ("wilson95", "ci95"):
        widths = [high - low for low, high in (alone[interval], together[interval])]
        assert widths[1] > 1.5 * widths[0]


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40))
def test_paired_is_symmetric(gaps: list[float]) -> None:
    ours, theirs = {str(i): [gap] for i, gap in enumerate(gaps)}, {str(i): [0.0] for i in range(len(gaps))}
    one, other = paired(ours, theirs), paired(theirs, ours)
    assert (one["wins"], one["ties"], one["losses"]) == (other["losses"], other["ties"], other["wins"])
    assert one["p"] == pytest.approx(other["p"])
    assert one["share"] == pytest.approx(1 - other["share"])
    fewer, decided = min(one["wins"], one["losses"]), one["wins"] + one["losses"]
    assert one["p"] == pytest.approx(min(1.0, 2 * binom.cdf(fewer, decided, 0.5)))


def test_runs_are_compared_at_their_ends_and_at_their_best(tmp_path) -> None:
    humped = rising(1.0)
    humped.append([value - 5 for value in humped[0]])
    roots = [make_run(tmp_path / "offline", humped), make_run(tmp_path / "online", rising(0.5, 3))]
    result = compare(roots)
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == ("offline", "online")
    assert (pair["final"]["wins"], pair["final"]["losses"]) == (0, 12)
    assert pair["final"]["difference"] == pytest.approx(-5 - 1.5)
    assert (pair["best"]["wins"], pair["best"]["losses"]) == (12, 0)  # 2.0 at iteration 2 against 1.5 at 3
    assert pair["best"]["p"] == pytest.approx(2 / 2**12)
    assert result["notes"] == []
    assert result["shared_speeches"] == 12


def test_notes_name_what_differs(tmp_path) -> None:
    a = make_run(tmp_path / "a", rising(1), learners={"actors": 2})
    b = make_run(tmp_path / "b", rising(1), seed=3, dpo={"beta": 0.3}, evaluation={"temperature": 0.5})
    result = compare([a, b])
    assert [(row["setting"], row["values"]) for row in result["differences"]] == [
        ("seed", {"a": 0, "b": 3}),
        ("dpo.beta", {"a": 0.1, "b": 0.3}),
        ("evaluation.temperature", {"a": 0.0, "b": 0.5}),
    ]
    assert result["notes"] == [
        "The runs answered the held-out speeches with different settings: evaluation.temperature."
    ]
    other = [[value + 7 for value in row] for row in rising(1)]
    judged = make_run(tmp_path / "judged", other, heldout_model="another")
    own = make_run(tmp_path / "own", [[value + 9 for value in row] for row in other], heldout_model=None)
    same = make_run(tmp_path / "same", other, heldout_model="/elsewhere/another")
    result = compare([a, judged, own, same])
    assert "different judges (a; judged, same; own)" in result["notes"][0]
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("judged", "same")]
    based = make_run(tmp_path / "based", rising(2), model="another-base")
    assert "different base models" in compare([a, based])["notes"][0]
    shifted = make_run(tmp_path / "shifted", rising(1), speeches=[*SPEECHES[4:], "x", "y", "z", "zz"])
    result = compare([a, shifted])
    assert "different held-out speeches (a: 12, shifted: 12; all share 8)" in " ".join(result["notes"])


def test_unfinished_runs_and_runs_without_a_heldout_judge_are_named(tmp_path) -> None:
    going = make_run(tmp_path / "going", rising(1), iterations=16, finished=False)
    bare = make_run(tmp_path / "bare", rising(1), judge="reward", heldout_model=None)
    result = compare([going, bare])
    assert result["judge"] == "reward"
    assert result["notes"][0] == "going is not finished: it has 2 of 16 iterations and has not chosen its best."
    assert "scores are probably too high" in result["notes"][1]
    assert len(result["pairs"]) == 1, "one reward model trained both"
    assert result["pairs"][0]["best"] is None, "only one of them has chosen"
    begun = make_run(tmp_path / "begun", rising(1, 0), iterations=16, finished=False)
    assert compare([begun])["runs"]["begun"]["best"] is None
    assert compare([make_run(tmp_path / "early", rising(1), iterations=3)])["notes"] == [
        "early ended after 2 of 3 iterations."
    ]
    longer = make_run(tmp_path / "longer", rising(1))
    (longer / "summary.json").write_text('{"iterations": 1}')
    assert not compare([longer])["runs"]["longer"]["finished"], "an old summary beside more iterations"


def test_the_best_checkpoint_is_the_one_that_the_run_chose(tmp_path) -> None:
    """Whatever the alarms and the rewards: without roll-back it may be an alarmed one."""
    for best in (1, 2):
        root = make_run(tmp_path / str(best), rising(1), best=best)
        path = root / "iteration-002" / "evaluate.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"alarms": ["answers are 3.0 times as long"]}))
        result = compare([root])
        assert result["runs"][str(best)]["best"] == result["runs"][str(best)]["curve"][best]
        included = ", its best one included" if best == 2 else ""
        assert result["notes"] == [f"{best} raised an alarm in iteration 2{included}."]


def test_the_judge_that_chose_the_checkpoint_draws_the_curve(tmp_path) -> None:
    """The judge prefers iteration 1, the reward model that trains the policy scores iteration 2 higher."""
    for name, outcomes in (("a", [[1.0] * 9 + [0.0] * 3, [0.0] * 12]), ("b", [[1.0] * 6 + [0.0] * 6, [0.5] * 12])):
        make_run(tmp_path / name, rising(1), judge="reward", heldout_model=None, best=1, outcomes=outcomes)
    result = compare([tmp_path / "a", tmp_path / "b"])
    assert (result["judge"], result["reward_model"]) == ("judge", "reward")
    run = result["runs"]["a"]
    assert [point["win_rate"] for point in run["curve"]] == [0.5, 0.75, 0.0]
    assert run["curve"][1]["win_rate_ci95"] == list(stats.wilson(9, 12))
    assert [point["speeches"] for point in run["curve"]] == [12, 12, 12]
    assert run["curve"][2]["reward"] > run["curve"][1]["reward"]
    assert (run["best"]["iteration"], run["final"]["iteration"]) == (1, 2)
    (pair,) = result["pairs"]
    assert (pair["best"]["wins"], pair["best"]["ties"], pair["best"]["losses"]) == (3, 9, 0)
    assert (pair["final"]["wins"], pair["final"]["ties"], pair["final"]["losses"]) == (0, 0, 12)
    assert not any("only judges" in note for note in result["notes"])
    report.write_report(result, tmp_path / "out")
    page = self_contained((tmp_path / "out" / "compare.html").read_text("utf-8"))
    assert ["a", "best, iteration 1", "4", "12", "75.0"] in [row[:5] for row in page.rows]
    assert "of responses that the judge prefers to the base model's" in page.text
    few = make_run(tmp_path / "few", rising(1), outcomes=[[1.0] * 12] * 2)
    for path in few.glob("*/evaluate.json"):
        record = json.loads(path.read_text())
        if "judge" in record:
            record["judge"] = judged(dict.fromkeys(SPEECHES[:5], 1.0))
            path.write_text(json.dumps(record))
    assert compare([few])["shared_speeches"] == 5, "the judge compares the answers to evaluation.judged speeches"
    plain = make_run(tmp_path / "plain", rising(1))
    assert compare([tmp_path / "a", plain])["judge"] == "reward", "the best that both have"
    begun = make_run(
        tmp_path / "begun", rising(1, 0), iterations=2, finished=False, evaluation={"judge": {"model": "gpt-4o"}}
    )
    assert compare([tmp_path / "a", begun])["shared_speeches"] == 12


def test_win_rates_of_every_checkpoint_against_an_opponent_are_drawn(tmp_path) -> None:
    """Figure 4 of the paper: curves of evaluate-policy over all checkpoints of two runs."""
    root = policies(tmp_path / "eval", ["alone"])
    results = json.loads((root / "evaluation.json").read_text())
    [alone] = results["policies"]
    for series in ("offline", ODD):
        for k in range(3):
            origin = {"run": f"runs/{series}", "iteration": k, "steps": 100 * k, "series": series}
            rate = {
                **alone["variants"]["free"]["overall"],
                "rate": 0.25 + k / 8,
                "wilson95": [0.2 + k / 8, 0.3 + k / 8],
            }
            variants = {"free": {**alone["variants"]["free"], "overall": rate}}
            results["policies"].append({"name": f"{series} iteration {k}", **origin, "variants": variants})
    (root / "evaluation.json").write_text(json.dumps(results))
    result = compare([root])
    assert [(row["series"], row["steps"], row["overall"]) for row in result["policies"] if row["series"]] == [
        (series, 100 * k, 0.25 + k / 8) for series in ("offline", ODD) for k in range(3)
    ]
    report.write_report(result, tmp_path / "out")
    text = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert text.count("<svg") == 1
    assert "Win rate against GPT-4o by optimizer step" in text
    assert "offline: from 25.0 to 50.0" in text
    page = self_contained(text)
    assert "Against GPT-4o, w/o length constraint" in page.text
    assert ["offline iteration 2", "eval", "GPT-4o", "200", "3,291"] in [row[:5] for row in page.rows]


def test_a_policy_that_is_not_the_best_of_its_run_is_named(tmp_path) -> None:
    root = make_run(tmp_path / "run", rising(1), best=1)
    for iteration, notes in ((1, []), (2, ["8B of 2 is iteration 2 of run, whose best is iteration 1."])):
        origin = {"run": str(root), "iteration": iteration, "steps": 4 * iteration}
        assert compare([root, policies(tmp_path / str(iteration), ["8B"], **origin)])["notes"] == notes


def test_unfinished_answers_have_a_warning(tmp_path) -> None:
    root = make_run(tmp_path / "run", rising(1))
    path = root / "iteration-002" / "evaluate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_share": 0.5}))
    cut = policies(tmp_path / "eval", ["8B"])
    (cut / "evaluation.json").write_text((cut / "evaluation.json").read_text().replace("0.97", "0.25"))
    result = compare([root, cut])
    assert result["runs"]["run"]["final"]["finished_share"] == 0.5
    assert [note.partition(" of the answers")[0] for note in result["notes"]] == [
        "Warning: run, iteration 2: only 50%",
        "Warning: 8B of eval, free: only 25%",
        "Warning: 8B of eval, matched: only 25%",
    ]


def test_bad_input_is_one_sentence(tmp_path) -> None:
    a = make_run(tmp_path / "a", rising(1))
    apart = make_run(tmp_path / "apart", rising(1), speeches=[f"other-{i}" for i in range(12)])
    (tmp_path / "empty").mkdir()
    judged = [make_run(tmp_path / judge, rising(1), judge=judge) for judge in ("heldout", "reward")]
    cases = {
        "no kind of judge in common (heldout: heldout, reward: reward)": judged,
        "share no held-out speech": [a, apart],
        "is given twice": [a, tmp_path / "empty" / ".." / "a"],
        "empty has neither iteration-000/evaluate.json": [a, tmp_path / "empty"],
    }
    for words, roots in cases.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            compare(roots)
    for file, text, words in (
        ("job.yaml", "[]", "job.yaml has no model, seed and iterations"),
        ("iteration-001/evaluate.json", "{", "evaluate.json is damaged"),
    ):
        good = (a / file).read_text()
        (a / file).write_text(text)
        with pytest.raises(ValueError, match=words):
            compare([a])
        (a / file).write_text(good)
    (a / "iteration-002" / "train.json").unlink()
    with pytest.raises(ValueError, match=r"iteration-002/train\.json does not exist, but later files do"):
        compare([a])
    old = policies(tmp_path / "old", ["x"])
    (old / "evaluation.json").write_text('{"policies": [{"name": "x"}], "opponent": "y"}')
    with pytest.raises(ValueError, match="is not what evaluate-policy writes"):
        compare([old])


def test_names_are_the_shortest_distinct_ends_of_paths(tmp_path) -> None:
    roots = [make_run(tmp_path / place / "run", rising(1)) for place in ("x", "y")]
    assert list(compare(roots)["runs"]) == ["x/run", "y/run"]


def test_pages_of_everything(tmp_path) -> None:
    roots = [
        make_run(tmp_path / ODD, rising(1), tokens=[100, 120, 140]),
        make_run(tmp_path / "_hidden", rising(0.5), finished=False, iterations=9, heldout_model="/secret/place/held"),
        policies(tmp_path / "eval", ["3B + DPO-Iter", ODD]),
        policies(tmp_path / "eval-2", ["8B"], opponent="another"),
    ]
    result = compare(roots)
    report.write_report(result, tmp_path / "out")
    report.write_report(result, tmp_path / "again")
    names = {"compare.html", "compare.md", "compare.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    text = (tmp_path / "out" / "compare.html").read_text("utf-8")
    page = self_contained(text)
    assert text.count("<svg") == 3
    assert "<b>name" not in text
    assert "secret" not in text
    for phrase in (ODD, "_hidden is not finished: it has 2 of 9", "different opponents (GPT-4o, another)"):
        assert phrase in page.text
    assert ["_hidden", "final, iteration 2", "8", "12", "100.0", "75.8 to 100.0"] in [row[:6] for row in page.rows]
    assert not [row for row in page.rows if row[0] == "_hidden" and row[1].startswith("best")], "it has not chosen"
    shares = ["75.4", "50.0", "60.0", "69.4", "67.8 to 71.0", "97.0"]
    assert ["3B + DPO-Iter", "eval", "GPT-4o", "–", "3,291", *shares] in page.rows
    markdown = (tmp_path / "out" / "compare.md").read_text("utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "<b" not in markdown
    assert "Win rates, %, w/ length constraint" in markdown
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored["runs"][ODD]["best"]["win_rate"] == 1.0


def test_pages_of_one_run_and_of_policies_alone(tmp_path) -> None:
    report.write_report(compare([make_run(tmp_path / "a", rising(1, 0), iterations=2)]), tmp_path / "out")
    page = self_contained((tmp_path / "out" / "compare.html").read_text("utf-8"))
    assert "Runs in pairs" not in page.text
    assert ["a", "final, iteration 0", "0", "12", "50.0", "–"] in [row[:6] for row in page.rows]
    report.write_report(compare([policies(tmp_path / "eval", ["8B"])]), tmp_path / "out")
    text = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert "<svg" not in text
    assert "By optimizer step" not in self_contained(text).text


def test_the_command(tmp_path, capsys) -> None:
    root = make_run(tmp_path / "a", rising(1))
    assert main(["compare", str(root), "--out", str(tmp_path / "out")]) == 0
    assert "| a | final, iteration 2 |" in capsys.readouterr().out
    assert main(["compare", str(tmp_path)]) == 2
    assert "has neither" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(root), "--out", str(tmp_path / "out"), "left over"])
