"""A study at a desk, from the first invitation to a reward model, in a real browser and by keyboard alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urljoin

import pyarrow.parquet as pq
import pytest
from support import commands
from support.browser import chromium
from support.desk_process import DeskProcess
from support.desk_sources import CRISIS, DEV, training_run
from support.files import write_content
from support.raw_speeches import speech

from psyco_ray.evaluate import agreement
from psyco_ray.report.render import decimal, decimal_interval, percent, percent_interval

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright; bash tests/run.sh installs it")

PASSPHRASE = "four quiet words today"


@dataclass
class Person:
    """Somebody in front of a browser of their own.

    Attributes:
        page: of the browser.
        chosen: by client speech, 1 for the response that the file calls chosen, -1 for the other.
        edits: texts that the person wrote.
    """

    page: playwright.Page
    chosen: dict[str, int] = field(default_factory=dict)
    edits: list[str] = field(default_factory=list)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def activate(self, text: str) -> None:
        """Go to a link or button with the Tab key, and press Enter."""
        for _ in range(60):
            self.press("Tab")
            if text in self.page.evaluate("document.activeElement.textContent").strip():
                with self.page.expect_navigation():
                    self.press("Enter")
                return
        raise AssertionError(f"no element {text!r} can be reached by Tab")

    def join(self, link: str, name: str) -> None:
        self.page.goto(link)
        self.page.keyboard.type(name)
        for text in (PASSPHRASE, PASSPHRASE):
            self.press("Tab")
            self.page.keyboard.type(text)
        with self.page.expect_navigation():
            self.press("Enter")
        assert f"Hello, {name}" in self.page.inner_text("main")

    def state(self, pattern: str, within_s: float = 30) -> None:
        """Wait until the page says so of its answers."""
        playwright.expect(self.page.locator("#state")).to_have_text(re.compile(pattern), timeout=1000 * within_s)

    def begin(self) -> None:
        self.activate("Begin")
        self.warned()

    def warned(self) -> None:
        """Go on from the warning before items in which a client may be at risk."""
        if "Before you go on" in self.page.inner_text("main"):
            self.activate("I am ready")

    def answer(self, against: bool) -> None:
        """Answer the item in view: a pair as the file does or against it, a draft with an edit."""
        said = self.page.inner_text(".speech .words").strip()
        if self.page.locator("[name=decision]").count():
            self.press("2", "Control+End")
            self.page.keyboard.type(" What would help you tonight?")
            self.edits.append(self.page.input_value("#edit"))
            return
        left = "good" in self.page.inner_text(".left")
        self.chosen[said] = -1 if against else 1
        self.press("1" if left != against else "2")
        self.press(*"1212121", "4")

    def go_on(self) -> None:
        with self.page.expect_navigation(url=re.compile(r"/(items/\w+)?$")):
            self.press("Control+Enter")

    def work(self, against_every: int = 0) -> None:
        """Answer until nothing is left."""
        while "/items/" in self.page.url:
            pairs = len(self.chosen) + 1
            self.answer(against=bool(against_every) and pairs % against_every == 0)
            self.go_on()
        assert "You have answered everything that is yours" in self.page.inner_text("main")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def sources(directory: Path, pairs: int) -> list[str]:
    """A file of pairs, the first of which is about a crisis, and a run with three drafts."""
    speeches = [CRISIS, *(speech(number, "Ana") for number in range(100, 99 + pairs))]
    rows = [
        {"question": text, "chosen": f"A good answer to {n}: I hear you.", "rejected": f"A poor one to {n}: cheer up."}
        for n, text in enumerate(speeches)
    ]
    return [
        str(write_content(directory / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))),
        str(training_run(directory / "run", DEV[:3])),
    ]


def killed_and_resumed(person: Person, desk: DeskProcess) -> None:
    """The server is killed in the middle of an item; an answer given meanwhile is saved when it is back."""
    person.press("1", "2")
    person.state("Saved .*, not complete yet")
    desk.kill()
    person.press("1")
    person.state("the desk cannot be reached")
    desk.start()
    person.state("Saved .*, not complete yet")
    person.page.reload()
    checked = person.page.locator(".question input:checked")
    playwright.expect(checked).to_have_count(3)
    while checked.count():
        before = checked.count()
        with person.page.expect_navigation():
            person.press("u")
        assert checked.count() < before


def study(browser: playwright.Browser, desk: DeskProcess, pairs: int) -> None:
    """Two annotators, a reviewer and a lead judge pairs and drafts, and the lead exports what they said."""
    people = {name: Person(browser.new_context().new_page()) for name in ("lead", "ana", "ben", "rosa")}
    lead, ana, ben, rosa = people.values()
    lead.join(desk.invitation(), "Lena")
    links = {name: invitation(lead, role) for name, role in
             (("ana", "annotator"), ("ben", "annotator"), ("rosa", "reviewer"))}  # fmt: skip
    for name, link in links.items():
        people[name].join(link, name.capitalize())
    ana.begin()
    ana.answer(against=False)
    ana.go_on()
    killed_and_resumed(ana, desk)
    ana.work()
    ben.begin()
    ben.work(against_every=3)
    assert len(ana.chosen) == len(ben.chosen) == pairs
    lead_sees(lead, desk, ana, ben)
    approved = reviewed(rosa)
    assert set(approved) < {*ana.edits, *ben.edits}
    exported(lead, desk, approved, ana, ben)


def invitation(lead: Person, role: str) -> str:
    lead.page.goto(urljoin(lead.page.url, "/lead/people"))
    lead.page.select_option("[name=role]", role)
    lead.page.click("text=Make an invitation")
    return lead.page.get_attribute("#invitation", "href")


def lead_sees(lead: Person, desk: DeskProcess, first: Person, second: Person) -> None:
    """The overview and its JSON have the figures that the library computes from what the two chose."""
    said = sorted(first.chosen)
    rows = [[first.chosen[text], second.chosen[text]] for text in said]
    share, kappa = agreement.percent(rows), agreement.cohen_kappa(rows)
    alpha = agreement.krippendorff_alpha(rows, "nominal")
    lead.page.goto(f"{desk.url}/lead")
    cells = lead.page.locator('tr[data-aspect="overall"] td').all_inner_texts()
    assert cells[:2] == [str(len(said)), "2"]
    assert cells[2] == f"{percent(share.value)} ({percent_interval((share.low, share.high))})"
    for cell, figure in zip(cells[3:], (kappa, alpha), strict=True):
        assert cell == f"{decimal(figure.value, 2)} ({decimal_interval((figure.low, figure.high), 2)})"
    found = json.loads(lead.page.request.get(f"{desk.url}/lead/agreement.json").text())
    assert found["between"]["pair"]["overall"] == {
        "items": len(said),
        "raters": 2,
        "percent": asdict(share),
        "kappa": asdict(kappa),
        "alpha": asdict(alpha),
    }
    assert found["with_labels"]["the file"]["people"]["Ana"]["overall"]["equal"] == len(said)
    disagreed = sum(a != b for a, b in rows)
    assert f"{disagreed} pair" in " ".join(lead.page.inner_text("main").split())


def reviewed(reviewer: Person) -> list[str]:
    """A second person approves the first edit and refuses the next; the texts approved."""
    page = reviewer.page
    page.goto(urljoin(page.url, "/review"))
    reviewer.warned()
    approved = [page.inner_text('[aria-labelledby="edit"] p')]
    assert "What would help you tonight?" in page.inner_text(".diff ins")
    page.click("text=Approve this text")
    page.fill("[name=reason]", "It promises too much.")
    page.click("text=Refuse it")
    assert "1 text waits" in page.inner_text("main")
    return approved


def exported(lead: Person, desk: DeskProcess, approved: list[str], first: Person, second: Person) -> None:
    """The lead adjudicates one disagreement and exports: pairs with weights, the approved edit and no other."""
    page = lead.page
    page.goto(f"{desk.url}/lead/disagreements")
    page.click("table a")
    left = "good" in page.inner_text(".left")
    adjudicated = page.inner_text(".speech .words").strip()
    page.check("[name=overall][value=left]" if left else "[name=overall][value=right]", force=True)
    page.click("text=Decide")
    page.goto(f"{desk.url}/lead")
    page.click("text=Write the export")
    rows = pq.read_table(desk.directory / "export/pairs.parquet").to_pylist()
    compared = {row["question"]: row for row in rows if row["origin"] == "comparison"}
    agreed = {text for text, choice in first.chosen.items() if second.chosen[text] == choice}
    assert set(compared) == agreed | {adjudicated}, "two people who disagree leave nothing to train on"
    assert {row["weight"] for row in rows} == {1.0}
    assert all(("good" in row["chosen"], row["annotators"]) == (True, 2) for row in compared.values())
    assert [row["chosen"] for row in rows if row["origin"] == "edit"] == approved
    drafts = [json.loads(line) for line in (desk.directory / "export/drafts.jsonl").read_text().splitlines()]
    assert [draft["response"] for draft in drafts] == approved
    with page.expect_download() as download:
        page.click("text=judgements.csv")
    assert "Ana" not in Path(download.value.path()).read_text("utf-8-sig")


@pytest.mark.long
def test_a_study_of_twenty_pairs_from_the_invitation_to_a_reward_model(browser, tmp_path, tiny_model) -> None:
    with DeskProcess(tmp_path / "desk", "--from", *sources(tmp_path, pairs=20)) as desk:
        study(browser, desk, pairs=20)
        assert desk.stop() == 75
    assert "Traceback" not in (tmp_path / "desk.log").read_text()
    (tmp_path / "job.yaml").write_text(
        f"run_dir: {tmp_path}/reward-run\nmodel: {tiny_model}\ndata: {{pairs: 'desk:{desk.directory}', cpus: 1}}\n"
        "reward:\n  optimizer: {batch_size: 4, epochs: 1}\n  max_tokens: 400\n  dev_pairs: 2\n"
        "  learners: {actors: 1, cpus: 0.2, zero_stage: 1, micro_batch_tokens: 1000}\n"
    )
    done = commands.run("train-reward", tmp_path / "job.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "reward-run/reward/model.safetensors").exists()
