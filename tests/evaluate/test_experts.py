import csv
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.expert_files import Row, fill, items, read, responses
from support.pages import self_contained

from psyco_ray.cli.main import main
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate import expert_csv, experts
from psyco_ray.evaluate.stats import wilson
from psyco_ray.report import experts as report

ODD = "odd <b>name & | $pipe$"


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    return {
        "free": responses(tmp_path / "free", "policy says"),
        "matched": responses(tmp_path / "matched.jsonl", "policy says briefly"),
        "opponent": responses(tmp_path / "opponent.jsonl", "other says"),
    }


@pytest.fixture
def out(tmp_path, files) -> Path:
    """Four pairs of one comparison, to be filled in."""
    experts.export({"free": files["free"]}, files["opponent"], tmp_path / "out", count=4, seed=1)
    return tmp_path / "out"


def other(side: str) -> str:
    return {"A": "B", "B": "A"}[side]


def test_the_files_are_blind_shuffled_and_complete(tmp_path, files) -> None:
    policies = {name: files[name] for name in ("free", "matched")}
    experts.export(policies, files["opponent"], tmp_path / "out", count=15, seed=3)
    key = items(tmp_path / "out")
    first, second = (read(tmp_path / "out" / f"{expert}.csv") for expert in expert_csv.EXPERTS)
    assert [row["item"] for row in first] != [row["item"] for row in second]
    by_item = {row["item"]: row for row in first}
    assert by_item == {row["item"]: row for row in second}
    assert [of["comparison"] for of in key.values()].count("free") == 15
    assert len(key) == len(by_item) == 30
    assert len(first[0]) == 4 + 7 * 3 + 1 + 1
    for item, row in by_item.items():
        of = key[item]
        says = {"policy": "policy says" if of["comparison"] == "free" else "policy says briefly"}
        says["opponent"] = "other says"
        assert speech_id(row["client speech"]) == of["speech_id"]
        assert {of["A"], of["B"]} == {"policy", "opponent"}
        for side in "AB":
            assert re.fullmatch(says[of[side]] + r" \d+", row[f"response {side}"])
        assert {text for column, text in row.items() if "response" not in column} == {item, row["client speech"], ""}
    assert len({of["speech_id"] for of in key.values()}) == 20, "a speech comes again only where there is no other"
    assert 8 <= sum(of["A"] == "policy" for of in key.values()) <= 22
    blind = re.sub("policy says|other says", "", (tmp_path / "out" / "expert-1.csv").read_text("utf-8-sig"))
    assert not any(
        hidden in blind for hidden in ("policy", "opponent", "free", "matched", *[i["speech_id"] for i in key.values()])
    )
    order = [key[row["item"]]["comparison"] for row in first]
    assert order != sorted(order), "comparisons are mixed"


def test_the_seed_alone_decides(tmp_path, files) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        experts.export({"free": files["free"]}, files["opponent"], tmp_path / name, count=10, seed=seed)
    for name in ("expert-1.csv", "expert-2.csv", "key.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert items(tmp_path / "a").keys() != items(tmp_path / "c").keys()


def test_an_invalid_export_is_refused(tmp_path, files) -> None:
    free, opponent, target = {"free": files["free"]}, files["opponent"], tmp_path / "out"
    with pytest.raises(ValueError, match=r"compare 100 pairs of free, but .* have only 20 speeches that both answer"):
        experts.export(free, opponent, target)
    with pytest.raises(ValueError, match="have only 0 speeches that both answer, and not in the same words"):
        experts.export({"same": opponent}, opponent, target, count=1)
    with pytest.raises(ValueError, match="count is 0"):
        experts.export(free, opponent, target, count=0)
    bad = tmp_path / "bad.jsonl"
    for text, words in (
        ('{"speech": "a", "answer": "b"}\n', "has no column response; it has speech, answer"),
        ('{"speech": "a", "response": "b"}\n{"speech": "c", "response": " "}\n', "row 2 has an empty response"),
        ('{"speech": "a", "response": "b"}\n{"speech": "A ", "response": "c"}\n', "row 2 answers a speech that"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=words):
            experts.export({"bad": str(bad)}, opponent, target, count=1)
    assert not target.exists()
    experts.export(free, opponent, target, count=20)
    with pytest.raises(ValueError, match="already holds an export"):
        experts.export(free, opponent, target, count=20)


def test_figures_by_hand(out) -> None:
    """Overall, expert 1 takes the policy three times, then ties; expert 2 takes the opponent first and last."""
    order = sorted(items(out))

    def first(row: Row, policy: str) -> Row:
        place = order.index(row["item"])
        return {
            "overall preference": "tie" if place == 3 else policy,
            f"empathy {policy}": "5",
            f"empathy {other(policy)}": str(place + 1),
        }

    def second(row: Row, policy: str) -> Row:
        place = order.index(row["item"])
        cells = {"overall preference": other(policy) if place in (0, 3) else policy}
        return cells | ({f"empathy {policy}": "3"} if place == 0 else {}) | {"clarity preference": " response  a "}

    fill(out, "expert-1", first)
    fill(out, "expert-2", second)
    result = experts.score(out)
    free = result["comparisons"]["free"]
    overall = free["preferences"]["overall"]
    # by pair: half won and half lost; won; won; half tied and half lost
    assert overall["items"] == 4
    shares = {"wins": 2.5, "ties": 0.5, "losses": 1.0}
    assert {name: overall[name]["share"] for name in shares} == {name: of / 4 for name, of in shares.items()}
    assert {name: overall[name]["wilson95"] for name in shares} == {name: wilson(of, 4) for name, of in shares.items()}
    assert free["scores"]["empathy"]["policy"]["mean"] == (4 + 5 + 5 + 5) / 4
    assert free["scores"]["empathy"]["opponent"]["mean"] == (1 + 2 + 3 + 4) / 4
    assert free["scores"]["safety"] == {"policy": None, "opponent": None}
    assert free["preferences"]["safety"] is None
    turned = sum(of["A"] == "policy" for of in items(out).values())
    assert free["preferences"]["clarity"]["wins"]["share"] == turned / 4, "a side is not a model"
    assert result["agreement"]["preferences"]["overall"]["percent"]["value"] == 2 / 4
    assert result["agreement"]["preferences"]["clarity"]["percent"]["items"] == 0
    assert result["agreement"]["scores"]["empathy"]["percent"]["items"] == 1
    assert result["agreement"]["scores"]["empathy"]["percent"]["value"] == 0.0
    assert result["experts"]["expert-1"] == {"filled": 12, "unfilled": 4 * 22 - 12}
    assert result["judge"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_agreement_with_a_judge_by_hand(tmp_path, out, ending) -> None:
    key = items(out)
    order = sorted(key)
    fill(out, "expert-1", lambda row, policy: {"overall preference": policy})
    fill(out, "expert-2", lambda row, policy: {"overall preference": other(policy) if row["item"] == order[0] else ""})
    better = ["theirs", "ours", "tie", None]
    rows = [{"key": key[item]["speech_id"], "better": of} for item, of in zip(order, better, strict=True)]
    rows.append({"key": "of no pair", "better": "ours"})
    path = tmp_path / f"verdicts.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    result = experts.score(out, {"free": str(path)})
    judged = result["judge"]
    # the first pair: expert 1 differs, expert 2 agrees; the second: agrees; the third: the judge ties
    assert (judged["items"], judged["share"]) == (3, 1.5 / 3)
    assert judged["experts"]["expert-1"]["percent"]["value"] == pytest.approx(1 / 3)
    assert judged["experts"]["expert-2"]["percent"] == {"value": 1.0, "low": 1.0, "high": 1.0, "items": 1}
    assert result["comparisons"]["free"]["judge"] == judged
    assert result["paper"] == 0.825


def test_invalid_verdicts_are_named(tmp_path, out) -> None:
    path = tmp_path / "verdicts.json"
    name = next(iter(items(out).values()))["speech_id"]
    row = {"key": name, "better": "ours"}
    for rows, words in (
        ({"key": 1}, "does not hold rows with key and better"),
        ([row, {"key": "x"}], "does not hold rows with key and better"),
        ([row, {"key": "x", "better": "A"}], "row 2 has a text of 1 character as better; ours, theirs, tie are known"),
        ([row, {"key": "x", "better": ["ours"]}], "row 2 has a list as better"),
        ([row, row], "row 2 has the key of an earlier row again"),
        ([{"key": "x", "better": "ours"}], f"no verdict is about a speech of the comparison free; .*{name}"),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=words):
            experts.score(out, {"free": str(path)})
    with pytest.raises(ValueError, match=r"no comparison matched in .*; it has free"):
        experts.score(out, {"matched": str(path)})
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        experts.score(out, {"free": str(tmp_path / "gone.json")})


FORMS = {
    "Excel, German, old": {"encoding": "cp1252", "delimiter": ";", "lineterminator": "\r\n"},
    "LibreOffice, all quoted": {"encoding": "utf-8", "quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
    "tabs": {"encoding": "utf-8", "delimiter": "\t"},
}


@pytest.mark.parametrize("form", FORMS)
def test_cells_are_read_however_the_file_was_saved(out, form) -> None:
    spelling = {"A": "Response a", "B": " b "}
    fill(
        out,
        "expert-1",
        lambda row, policy: {
            "overall preference": spelling[policy],
            f"safety {policy}": "4,0",
            "safety preference": "Equal",
        },
        **FORMS[form],
    )
    free = experts.score(out)["comparisons"]["free"]
    assert free["preferences"]["overall"]["wins"]["share"] == 1
    assert free["preferences"]["safety"]["ties"]["share"] == 1
    assert free["scores"]["safety"]["policy"]["mean"] == 4


def test_invalid_cells_are_named_with_file_row_and_column(tmp_path, out) -> None:
    path = out / "expert-2.csv"
    good = path.read_text(encoding="utf-8-sig")
    item = read(path)[1]["item"]
    for column, cell, words in (
        ("safety preference", "both", "A, B or tie"),
        ("overall preference", "5", "A, B or tie"),
        ("staging B", "6", "a whole number, 1 to 5"),
        ("staging A", "3.5", "a whole number, 1 to 5"),
    ):
        fill(out, "expert-2", lambda row, _, at=column, cell=cell: {at: cell} if row["item"] == item else {})
        with pytest.raises(
            ValueError,
            match=rf"expert-2\.csv row 3, column {column}: a text of \d characters? is invalid; write {words}",
        ):
            experts.score(out)
        path.write_text(good, encoding="utf-8")
    for text, words in (
        (good.replace(item, "e0"), r"row 3: its item, a text of 2 characters, is not in key\.json"),
        (good.replace(item, read(path)[0]["item"]), "row 3: item .* comes a second time"),
        (good.replace("empathy A", "empathy", 1), "has no column empathy A"),
        ("", "has no rows"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            experts.score(out)
    path.unlink()
    with pytest.raises(ValueError, match=r"expert-2\.csv does not exist"):
        experts.score(out)
    with pytest.raises(ValueError, match=r"key\.json does not exist; name the directory"):
        experts.score(tmp_path)
    (out / "key.json").write_text('{"items": {"p1": {"A": "chosen"}}}')
    with pytest.raises(ValueError, match="is not the key of an export"):
        experts.score(out)


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["policy", "opponent", "tie", ""]), min_size=8, max_size=8))
def test_shares_are_those_of_what_was_chosen(tmp_path_factory, chosen: list[str]) -> None:
    root = tmp_path_factory.mktemp("experts")
    ours, theirs = responses(root / "a.jsonl", "ours"), responses(root / "b.jsonl", "theirs")
    experts.export({"free": ours}, theirs, root / "out", count=8, seed=len(set(chosen)))
    by_item = dict(zip(sorted(items(root / "out")), chosen, strict=True))

    def what(row: Row, policy: str) -> Row:
        cell = {"policy": policy, "opponent": other(policy)}.get(by_item[row["item"]], by_item[row["item"]])
        return {"relevance preference": cell}

    for expert in expert_csv.EXPERTS:
        fill(root / "out", expert, what)
    result = experts.score(root / "out")["comparisons"]["free"]["preferences"]["relevance"]
    filled = [choice for choice in chosen if choice]
    assert (result is None) == (not filled)
    for end, choice in (("wins", "policy"), ("ties", "tie"), ("losses", "opponent")):
        assert result is None or result[end]["share"] == pytest.approx(filled.count(choice) / len(filled))


def test_the_commands_from_export_to_page(tmp_path, files, capsys) -> None:
    out = tmp_path / "out"
    arguments = [
        f"{ODD}={files['free']}",
        f"matched={files['matched']}",
        "--opponent",
        files["opponent"],
        "--out",
        str(out),
    ]
    assert main(["evaluate-experts", "export", *arguments, "--count", "6"]) == 0
    assert "keep key.json to yourself" in capsys.readouterr().out
    names = {item: place for place, item in enumerate(sorted(items(out)))}
    for expert, shift in zip(expert_csv.EXPERTS, (0, 1), strict=True):

        def what(row: Row, policy: str, shift: int = shift) -> Row:
            place = names[row["item"]] + shift
            cells = {f"{aspect} preference": policy if place % 4 else "tie" for aspect in experts.ASPECTS}
            cells |= {f"{principle} {policy}": str(4 + place % 2) for principle in PRINCIPLES}
            return cells | {f"{principle} {other(policy)}": str(2 + place % 3) for principle in PRINCIPLES}

        fill(out, expert, what)
    rows = [{"key": of["speech_id"], "better": "ours"} for of in items(out).values() if of["comparison"] == ODD]
    (tmp_path / "verdicts.json").write_text(json.dumps(rows))
    verdicts = ["--verdicts", f"{ODD}={tmp_path / 'verdicts.json'}"]
    assert main(["evaluate-experts", "score", str(out), *verdicts]) == 0
    stored = json.loads((out / "experts.json").read_text())
    assert list(stored["comparisons"]) == [ODD, "matched"], "in the order of the export"
    markdown = (out / "experts.md").read_text("utf-8")
    assert markdown in capsys.readouterr().out
    text = (out / "report.html").read_text("utf-8")
    page = self_contained(text)
    assert text.count("<svg") == 4
    assert "<b>name" not in text
    assert ODD in page.text
    wins = stored["comparisons"]["matched"]["preferences"]["safety"]["wins"]
    low, high = wins["wilson95"]
    cell = f"{100 * wins['share']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert any(row[0] == "safety" and cell in row for row in page.rows)
    assert ["the paper's judge and experts", "200", "82.5", "–", "–"] in page.rows
    assert f"{ODD}, both experts" in [row[0] for row in page.rows]
    assert "matched, both experts" not in [row[0] for row in page.rows]
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    report.write_report(stored, tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8") == text


def test_bad_commands(tmp_path, files, capsys) -> None:
    opponent = ["--opponent", files["opponent"], "--out", str(tmp_path / "out")]
    for pairs, words in (
        ([files["free"]], "is not of the form NAME=FILE"),
        ([f"a={files['free']}", f"a={files['matched']}"], "names a twice"),
        ([f"a={tmp_path / 'gone.jsonl'}"], "does not exist"),
    ):
        assert main(["evaluate-experts", "export", *pairs, *opponent]) == 2
        assert words in capsys.readouterr().err


def test_an_empty_export_has_a_page(out) -> None:
    report.write_report(experts.score(out), out)
    page = self_contained((out / "report.html").read_text("utf-8"))
    assert "no overall preference has been filled in yet" in " ".join(page.text.split())
    assert "no verdicts of a judge" in page.text
