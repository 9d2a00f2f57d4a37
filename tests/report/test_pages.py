"""Every report page: self-contained, structured for screen readers, nothing cut on a phone or a desktop."""

import json
import re

import pytest
from support.browser import layout_problems
from support.data_outputs import COLLECT, SPEND, TABLES, stage_outputs
from support.pages import Page, self_contained
from support.report_records import (
    MONITORS,
    annotation_results,
    compared_runs,
    dialogue_cases,
    expert_results,
    policy_results,
    training_run,
)
from support.reward_results import ODD, reward_results

from psyco_ray.report import annotation, compare_runs, dataset, experts, figures, policies, reward_models
from psyco_ray.report import training_run as training_report
from psyco_ray.training import summary
from psyco_ray.training.run_state import RunState

DIALOGUES = {"client": {"model": "smol"}}
NAMES = (
    "training run",
    "run with clients",
    "compared runs",
    "dataset",
    "annotation",
    "experts",
    "policies",
    "reward models",
)


def training_page(root, **settings) -> tuple[str, dict]:
    job, ledger = training_run(root, **settings)
    try:
        written = summary.write_summary(job, ledger, RunState(job, ledger))
        training_report.write_report(job, ledger, written)
    finally:
        ledger.close()
    return (root / "report.html").read_text("utf-8"), written


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """One page of each kind, with every optional part."""
    root = tmp_path_factory.mktemp("pages")
    for name in NAMES[2:]:
        (root / name).mkdir()
    compare_runs.write_report(compared_runs(), root / "compared runs")
    (root / "compared runs" / "compare.html").rename(root / "compared runs" / "report.html")
    outputs = stage_outputs(root / "data", list(TABLES), collected=COLLECT, spend=SPEND)
    dataset.write_report(outputs, root / "dataset")
    annotation.write_report(annotation_results(), root / "annotation")
    experts.write_report(expert_results(), root / "experts")
    policies.write_report(*policy_results(), root / "policies", dialogue_cases())
    reward_models.write_report(reward_results(40), root / "reward models")
    texts = {name: (root / name / "report.html").read_text("utf-8") for name in NAMES[2:]}
    with_clients, _ = training_page(root / "dialogues", simulate=DIALOGUES)
    return {"training run": training_page(root / "run")[0], "run with clients": with_clients, **texts}


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_self_contained_and_structured(pages, name) -> None:
    self_contained(pages[name])
    assert "<b>name</b>" not in pages[name]
    assert "secret" not in pages[name]
    basis = re.search(r'</h1>\s*<p class="basis">(.*?)</p>', pages[name], re.DOTALL)
    assert basis is not None, "the basis follows the heading"
    assert re.search(
        r"\d (held-out client speeches|client speeches|conversations|pairs|preference pairs)",
        " ".join(basis[1].split()),
    )
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<svg.*?</svg>", pages[name], re.DOTALL)))


def test_nothing_is_cut_on_a_phone_or_a_desktop(pages, tmp_path) -> None:
    assert layout_problems(pages, tmp_path) == []


def test_the_layout_check_finds_what_is_cut(tmp_path) -> None:
    wide = "<table><tr>" + "<td style='white-space:nowrap'>a rather wide cell of text</td>" * 8 + "</tr></table>"
    plain = f"<!DOCTYPE html><body>{wide}"
    hidden = f"<!DOCTYPE html><body><div style='overflow-x:auto'>{wide}</div>"
    unreachable = f"<!DOCTYPE html><body><div class=scroll style='overflow-x:auto' aria-label=x>{wide}</div>"
    problems = layout_problems({"plain": plain, "hidden": hidden, "unreachable": unreachable}, tmp_path)
    assert any(re.match(r"plain at 390: the page is \d+ pixels wide", problem) for problem in problems)
    assert any(re.match(r"hidden at 390: div .* is cut", problem) for problem in problems)
    assert any(re.match(r"unreachable at 390: .* cannot be scrolled by keyboard", problem) for problem in problems)


def test_the_training_page_shows_the_figures_of_the_summary(tmp_path) -> None:
    text, written = training_page(tmp_path / "run")
    page = Page(text)
    flat = " ".join(page.text.split())
    assert text.count("<svg") == 4
    assert "Based on 12 held-out client speeches" in flat
    assert written["best"] == {
        "iteration": 3,
        "name": "iteration 3",
        "by": "mean reward by the held-out reward model on the held-out speeches",
        "value": pytest.approx(1.5 + 66 / 144),
        "steps": 15,
        "alarms": [],
    }
    assert (written["length_ratio"], written["kl"]) == (63 / 60, 7.5)
    assert written["finished_share"] == {"base": 0.95, "policy": pytest.approx(0.92)}
    assert written["distinct_ratio"] == pytest.approx(0.85)
    assert "1.05 times the tokens and 0.85 times the share of distinct word pairs of the base model's" in flat
    assert "92.0 % of them are finished (base model: 95.0 %)" in flat
    assert "The policy is 7.5 nats a response away from the base model. These are figures of iteration" in flat
    assert "The best checkpoint is that of iteration 3 (after 15 optimizer steps)" in flat
    assert "Alarm in iteration 2: the held-out reward is 4.0 standard errors below its best." in flat
    assert ["0", "95.0", "0.458", "–", "0.458", "–"] in page.rows
    assert ["3", "92.0", "1.958", "87.5", "1.958", "87.5"] in page.rows
    assert ["1", "1,234", "1.500", "62.8", "90.0", "0.6000"] in page.rows
    assert ["1", "1.10", "0.93", "0.09", "–", "-3.24", "-0.08"] in page.rows
    assert ["2", "1.10", "0.93", "0.09", "2.50", "-3.24", "-0.08"] in page.rows
    assert text.count('class="sample"') == 8
    assert ODD in page.text
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 15
    assert "Not for direct use with clients" in (tmp_path / "run/iteration-003/checkpoint/README.md").read_text()


def test_a_run_with_simulated_clients_shows_turns_and_whole_dialogues(pages, tmp_path) -> None:
    text, written = training_page(tmp_path / "run", simulate=DIALOGUES, rise=0.5)
    page = Page(text)
    assert [turn["gain"] for turn in written["turns"]] == [0, 1.5]
    assert ["2", "11", "0.417", "1.917", "1.500", "1.400 to 9.000", "30.0", "33.0", "8.3", "8.3", "0", "0"] in page.rows
    assert "turn 2 of dialogues with simulated clients: reward 0.417 before, 1.917 after" in summary.headline(written)
    assert "<b>Answer</b> 3, turn 2." in page.text, "texts are no markup"
    assert page.text.count("base model · rewards") == page.text.count("policy of iteration 3 · rewards") == 6
    assert "turns" not in training_page(tmp_path / "other")[1]
    assert "Dialogues" not in pages["training run"]


def test_the_monitors_of_conversations_have_columns_where_a_run_has_them(tmp_path, monkeypatch) -> None:
    assert "Repeats" not in training_page(tmp_path / "speeches")[0]
    monkeypatch.setitem(MONITORS, "repetition", 0.31)
    text, _ = training_page(tmp_path / "conversations")
    page = Page(text)
    assert ["1", "1.10", "0.93", "0.09", "–", "-3.24", "-0.08", "0.31"] in page.rows
    assert "are no diagnosis of an answer" in " ".join(page.text.split())
    assert "Agrees" not in [cell for row in page.rows for cell in row]


def test_a_run_without_a_heldout_reward_model_says_so(tmp_path) -> None:
    text, written = training_page(tmp_path / "run", scorers={"heldout_model": None})
    assert written["heldout"] is None
    assert "No held-out reward model was named" in " ".join(Page(text).text.split())
    assert ["3", "92.0", "1.958", "87.5"] in Page(text).rows


def test_the_alarms_of_the_best_checkpoint_are_printed_beside_it(tmp_path) -> None:
    text, written = training_page(tmp_path / "paper", iterations=2)
    alarm = "the held-out reward is 4.0 standard errors below its best"
    assert (written["best"]["name"], written["best"]["alarms"]) == ("iteration 2", [alarm])
    assert f"the best checkpoint is that of iteration 2, with alarms: {alarm}." in " ".join(Page(text).text.split())
    assert f"best: iteration 2, by {written['best']['by']} (1.458); its alarms: {alarm}" in summary.headline(written)
    card = (tmp_path / "paper" / "iteration-002" / "checkpoint" / "README.md").read_text()
    assert f"**Alarms of this checkpoint:** {alarm}." in card
    assert "| guards | none acts (the paper's recipe); alarms are reported |" in card


def test_a_run_in_which_the_base_model_is_best_says_so(tmp_path) -> None:
    text, written = training_page(tmp_path / "run", rise=-0.5)
    flat = " ".join(Page(text).text.split())
    assert (written["best"]["iteration"], written["best"]["name"], written["best"]["steps"]) == (0, "the base model", 0)
    assert written["checkpoint"] == written["model"]
    assert "the best checkpoint is that of the base model." in flat
    assert "The best checkpoint is the base model: no iteration has a higher mean reward by the held-out" in flat
    assert "best: the base model, by mean reward" in summary.headline(written)


def test_a_figure_has_colors_of_the_page_a_text_alternative_and_unique_ids() -> None:
    def drawn(color: str) -> str:
        figure, axes = figures.new()
        axes.plot([0, 1], [0, 2], color=color, label="a & b")
        axes.set_xlabel("time (s)")
        figures.legend(figure, 1)
        return figures.svg(figure, 'rises "twice" <as> fast')

    first, second = drawn(figures.SERIES[0]), drawn(figures.SERIES[1])
    assert first == drawn(figures.SERIES[0])
    assert 'role="img" aria-label="rises &quot;twice&quot; &lt;as&gt; fast"' in first
    assert "var(--series-1)" in first
    assert "currentColor" in first
    assert "<style" not in first
    assert Page(f"<h1>x</h1>{first}{second}").all_defects() == []
    with pytest.raises(KeyError):
        drawn("#123456")


def test_texts_are_shown_whole(pages) -> None:
    """`forget` finds a client's whole words; their beginning alone would stay in a page."""
    cases = policy_results()[1]
    summaries = re.findall(r"<summary>(.*?)</summary>", pages["policies"])
    assert len(summaries) >= len(cases) > 0
    for case in cases:
        assert case["speech"] in pages["policies"]
        assert not any(case["speech"][:15] in summary for summary in summaries)
