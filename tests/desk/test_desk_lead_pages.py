"""The lead's pages over HTTP and in a browser: who may see them, what they do, and that everybody can read them."""

from __future__ import annotations

import json
import re

import pytest
from support.browser import chromium
from support.desk_server import Visitor, serving
from support.desks import add_person, answer_all, new_desk, pair_answer, pair_item, scores_answer, scores_item

from psyco_ray.desk import judgements, people, queue

PAGES = ("/lead", "/lead/people", "/lead/disagreements", "/lead/disagreements/p0", "/lead/audit", "/privacy")


@pytest.fixture
def study(tmp_path):
    """A desk on which two people have judged and disagree about p0 and p1; its store and the lead's window."""
    items = [*(pair_item(n, crisis=n == 0) for n in range(4)), *(scores_item(n) for n in range(3))]
    store = new_desk(tmp_path / "desk", items, seed=1)
    ana, ben = add_person(store, name="Ana <b>"), add_person(store, name="Ben")
    scores = {f"r{n}": scores_answer(n + 2, 3) for n in range(3)}
    words = {"comment": "<script>alert(1)</script> it soothes"}
    answer_all(store, ana, {f"p{n}": pair_answer(1, **words) for n in range(4)} | scores)
    answer_all(store, ben, {f"p{n}": pair_answer(1 if n > 1 else -1) for n in range(4)} | scores)
    lead = add_person(store, "lead", "Lena")
    with serving(store) as url:
        yield store, Visitor(url, store, lead)


def test_only_a_lead_sees_and_does_what_a_lead_does(study) -> None:
    store, lead = study
    for role in ("annotator", "reviewer"):
        other = Visitor(str(lead.base_url), store, add_person(store, role))
        assert {other.get(path).status_code for path in (*PAGES[:-1], "/lead/agreement.json")} == {403}
        forms = ("invite", "release", "export", "adjudicate/p0", "people/1/renew", "people/1/close")
        assert {other.submit(f"/lead/{form}", role="lead", overall="left").status_code for form in forms} == {403}
    nobody = Visitor(str(lead.base_url))
    assert nobody.get("/lead").url.path == "/login"
    assert nobody.get("/privacy").status_code == 200
    assert len(people.everyone(store)) == 5
    assert store.read().execute("SELECT count(*) FROM adjudications").fetchone()[0] == 0


def test_an_invitation_is_shown_once_and_lets_one_person_join(study) -> None:
    store, lead = study
    lead.read("/lead/people")
    page = lead.submit("/lead/invite", role="reviewer").text
    link = re.search(r'id="invitation" href="([^"]+)"', page)[1]
    assert link.split("/join/")[1] not in lead.read("/lead/people")
    guest = Visitor(str(lead.base_url))
    guest.read(link)
    passphrase = "four quiet words today"
    guest.submit(link, name="Rosa", passphrase=passphrase, again=passphrase)
    assert [(p.name, p.role) for p in people.everyone(store)][-1] == ("Rosa", "reviewer")
    assert lead.submit("/lead/invite", role="king").status_code == 409
    rosa = people.everyone(store)[-1].id
    assert guest.get("/review").status_code == 200
    assert lead.submit(f"/lead/people/{rosa}/close").status_code == 200
    assert guest.get("/review").url.path == "/login"
    own = people.everyone(store)[2].id
    assert lead.submit(f"/lead/people/{own}/close").status_code == 409


def test_adjudication_hides_whose_response_is_whose_and_goes_on_to_the_next(study) -> None:
    store, lead = study
    seen = {}
    for item in ("p0", "p1"):
        page = lead.read(f"/lead/disagreements/{item}")
        assert "&lt;script&gt;" in page
        assert "<script>alert" not in page
        seen[item] = re.search(r'class="left".*?<p>(.*?)</p>', page, re.DOTALL)[1]
    response = lead.submit("/lead/adjudicate/p0", overall="left", empathy="right", comment="clear")
    assert response.url.path == "/lead/disagreements/p1"
    assert lead.submit("/lead/adjudicate/p1").status_code == 400
    assert lead.submit("/lead/adjudicate/p1", overall="tie").status_code == 400, "ties are off"
    assert lead.submit("/lead/adjudicate/p1", overall="right").url.path == "/lead/disagreements"
    assert lead.submit("/lead/adjudicate/p0", overall="right").status_code == 404, "it is decided already"
    stored = {row["item_id"]: json.loads(row["answer"]) for row in store.read().execute("SELECT * FROM adjudications")}
    for item, shown_left in (("p0", True), ("p1", False)):
        first = store.item(item).responses[0] == seen[item]
        assert stored[item]["overall"] == (1 if first == shown_left else -1)
    assert stored["p0"]["principles"] == {"empathy": -stored["p0"]["overall"]}


def test_an_unfinished_item_is_given_to_others_and_a_finished_one_is_not(study) -> None:
    store, lead = study
    store.add_items([pair_item(7)])
    ana = people.everyone(store)[0]
    item = queue.next_item(store, ana).item.id
    assert item in lead.read("/lead/people")
    assert lead.submit("/lead/release", item_id=item, person_id=str(ana.id)).status_code == 200
    assert queue.next_item(store, ana) is None
    for wrong in ({"item_id": "p2", "person_id": str(ana.id)}, {"item_id": "none", "person_id": "1"}):
        assert lead.submit("/lead/release", **wrong).status_code == 409
    assert lead.submit("/lead/release", item_id=item, person_id="one").status_code == 400
    assert len(judgements.latest(store)) == 14


def test_the_export_is_written_and_only_its_files_can_be_loaded(study) -> None:
    _, lead = study
    assert "judgements.csv" not in lead.read("/lead")
    assert lead.submit("/lead/export").url.path == "/lead"
    record = lead.get("/lead/export/record.json")
    assert record.headers["content-disposition"].startswith("attachment")
    assert record.json()["counts"]["judgements"] == 14
    for name in ("desk.db", "..%2Fdesk.db", "%2e%2e/desk.yaml", "none.csv"):
        assert lead.get(f"/lead/export/{name}").status_code == 404
    assert "export" in lead.read("/lead/audit")


def test_the_pages_are_accessible_and_fit_a_phone(study, tmp_path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright; bash tests/run.sh installs it")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    _, lead = study
    lead.submit("/lead/export")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for scheme, width in (("light", 390), ("dark", 1280)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
            context.add_cookies([{"name": "desk", "value": lead.cookies["desk"], "url": str(lead.base_url)}])
            page = context.new_page()
            errors = []
            page.on(
                "console", lambda message, errors=errors: errors.append(message) if message.type == "error" else None
            )
            for path in PAGES:
                page.goto(str(lead.base_url.join(path)))
                page.screenshot(path=tmp_path / f"{path.replace('/', '-')}-{scheme}-{width}.png", full_page=True)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                found = axe.Axe().run(page).response["violations"]
                assert [(path, one["id"], one["nodes"][0]["html"]) for one in found] == []
            assert [error.text for error in errors] == []
        browser.close()
