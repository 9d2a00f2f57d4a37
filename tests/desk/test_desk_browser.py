"""The pages in headless Chromium: accessibility by axe-core, and what the script adds to the forms."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import desks
from support.browser import chromium
from support.desk_server import serving
from support.dialogue_files import dialogue

from psyco_ray.desk import judgements, people, queue

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; install psyco-ray[dev]")

LONG = (
    "That sounds heavy, and I am glad that you say it.\n\nWhat would help you the most right now? Take your time.",
    "Thank you for telling me.\n\n1. Go for a walk.\n2. Call a friend.\n\nWhat would help you the most right now?",
)
WIDTHS = (1280, 390)
"""Pixels of a desktop window and of a phone."""
NARROWER = (640, 320)
"""Of a desktop window at 200 % zoom and at 400 %; nothing may scroll sideways there."""


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    path = chromium()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def desk(tmp_path) -> Iterator[tuple]:
    """A desk with an item of each kind, its URL, an annotator and a reviewer."""
    store = desks.new_desk(tmp_path / "desk", crisis_text="Call 112.\nDay and night.")
    pairs = [replace(desks.pair_item(n, crisis=n == 0), responses=LONG, speech="I feel alone. " * 50) for n in (0, 1)]
    scores = replace(desks.scores_item(0), responses=LONG)
    store.add_items([*pairs, scores, desks.draft_item(0, text=LONG[0])])
    with serving(store) as url:
        yield store, url, desks.add_person(store), desks.add_person(store, "reviewer")


def window(browser, url: str, store=None, person=None) -> "playwright.Page":
    """A page of a new browser context; one in which `person` has logged in."""
    context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
    if person:
        token = people.open_session(store, person).token
        context.add_cookies([{"name": "desk", "value": token, "url": url, "httpOnly": True, "sameSite": "Strict"}])
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if "Content Security" in line.text else None)
    return page


def ready(page) -> None:
    """Wait for an item's page whose script has started."""
    page.wait_for_selector("[data-opens=pause]")


def check(page, name: str) -> list[str]:
    """What axe-core finds of a page in both colour schemes at all widths, and what makes it scroll sideways."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(Axe().axe_script)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": tags, "resultTypes": ["violations"]}
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for finding in page.evaluate("options => axe.run(options)", options)["violations"]:
                if finding["impact"] in ("serious", "critical"):
                    found.append(f"{name} {scheme} {width}: {finding['id']} {finding['nodes'][0]['html'][:200]}")
    for width in (*WIDTHS, *NARROWER):
        page.set_viewport_size({"width": width, "height": 900})
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append(f"{name} {width}: scrolls sideways")
    page.set_viewport_size({"width": 1280, "height": 900})
    return [*found, *page.problems]


def test_pages_are_accessible_on_screens_of_all_sizes(desk, browser) -> None:
    store, url, anna, rita = desk
    found = []
    stranger = window(browser, url)
    for path in ("/login", f"/join/{people.invite(store, 'annotator', None)}", "/nowhere"):
        stranger.goto(path)
        found += check(stranger, path)
    page = window(browser, url, store, anna)
    page.goto("/")
    found += check(page, "start")
    page.goto("/work")
    found += check(page, "warning")
    page.click("main button")
    ready(page)
    for key, dialog in (("?", "help"), ("p", "principles"), ("b", "pause")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#{dialog}[open]")
        found += check(page, dialog)
        page.keyboard.press("Escape")
    kinds = set()
    while "/items/" in page.url:
        item = page.url.rsplit("/", 1)[1]
        kinds.add(item[0])
        ready(page)
        page.keyboard.press("2")
        playwright.expect(page.locator("#state")).to_contain_text("Saved")
        if item == "d0":
            page.fill("#edit", LONG[1])
            page.wait_for_selector("#diff ins")
        found += check(page, item)
        answers = {"p": desks.pair_answer(), "r": desks.scores_answer(2, 4), "d": desks.draft_answer("edit", LONG[1])}
        version = queue.assigned(store, anna, item).version
        judgements.save(store, anna, item, answers[item[0]], version, 1.0)
        page.goto("/work")
    assert kinds == {"p", "r", "d"}
    review = window(browser, url, store, rita)
    review.goto("/review")
    found += check(review, "review")
    assert found == []


@pytest.mark.long
def test_conversations_are_read_on_screens_of_all_sizes(desk, browser, tmp_path) -> None:
    store, url, anna, rita = desk
    with store.transaction() as db:
        db.execute("DELETE FROM items")
    said = dialogue(1, turns=4).text
    items = [replace(desks.pair_item(0, crisis=True), responses=LONG), desks.draft_item(0, text=LONG[0])]
    store.add_items([replace(one, speech=said) for one in items])
    found = []
    page = window(browser, url, store, anna)
    page.goto("/work")
    page.click("main button")
    for answer in (desks.pair_answer(), desks.draft_answer("edit", LONG[1])):
        ready(page)
        item = page.url.rsplit("/", 1)[1]
        found += check(page, item)
        assert page.get_by_role("list").get_by_role("listitem").filter(has_text="What is that like?").count() == 3
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=tmp_path / f"{item}-{width}-{scheme}.png", full_page=True)
            page.locator(".question").last.scroll_into_view_if_needed()
            playwright.expect(page.locator(".speech .words")).to_be_in_viewport()
        judgements.save(store, anna, item, answer, 0, 1.0)
        page.goto("/work")
    review = window(browser, url, store, rita)
    review.goto("/review")
    assert review.locator(".turns li").count() == 6
    found += check(review, "review")
    assert found == []


def test_a_pair_by_keys_alone_survives_a_server_that_goes_away(desk, browser) -> None:
    store, url, anna, _ = desk
    page = window(browser, url, store, anna)
    page.goto("/work")
    page.keyboard.press("Tab")
    page.locator("main button").focus()
    page.keyboard.press("Enter")
    ready(page)
    page.keyboard.press("Enter")
    state = page.locator("#state")
    playwright.expect(state).to_contain_text("Not complete yet")
    for key in "12121212":
        page.keyboard.press(key)
    playwright.expect(state).to_contain_text("not complete yet")
    item = page.url.rsplit("/", 1)[1]
    sides = queue.assigned(store, anna, item).sides
    answer = judgements.unswapped(queue.assigned(store, anna, item).answer, sides)
    assert answer["overall"] == 1
    assert [answer["principles"][name] for name in desks.PRINCIPLES] == [-1, 1, -1, 1, -1, 1, -1]
    page.context.set_offline(True)
    page.keyboard.press("4")
    playwright.expect(state).to_contain_text("cannot be reached")
    page.keyboard.press("c")
    page.keyboard.type("Both are kind. 12u?")
    page.keyboard.press("Escape")
    page.context.set_offline(False)
    playwright.expect(state).to_contain_text(", complete.")
    saved = queue.assigned(store, anna, item)
    assert (saved.answer["confidence"], saved.answer["comment"]) == (4, "Both are kind. 12u?")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda address: not address.endswith(item))
    page.keyboard.press("u")
    page.wait_for_url(f"**/items/{item}")
    ready(page)
    page.keyboard.press("a")
    assert page.evaluate("document.activeElement.name") == "principle.empathy"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda address: not address.endswith(item))
    newest = judgements.unswapped(queue.assigned(store, anna, item).answer, sides)
    assert newest == answer | {
        "principles": answer["principles"] | {"empathy": 1},
        "confidence": 4,
        "comment": "Both are kind. 12u?",
    }


def test_an_answer_is_saved_after_a_new_login_in_another_tab(desk, browser) -> None:
    store, url, anna, _ = desk
    page = window(browser, url, store, anna)
    page.goto("/principles")
    while queue.next_item(store, anna).item.crisis:
        judgements.save(store, anna, queue.next_item(store, anna).item.id, desks.pair_answer(), 0, 1.0)
    before = len(judgements.latest(store, complete=False))
    page.goto("/work")
    ready(page)
    with store.transaction() as db:
        db.execute("DELETE FROM sessions")
    page.keyboard.press("2")
    playwright.expect(page.locator("#state")).to_contain_text("log in again")
    page.context.add_cookies([{"name": "desk", "value": people.open_session(store, anna).token, "url": url}])
    playwright.expect(page.locator("#state")).to_contain_text("Saved")
    assert len(judgements.latest(store, complete=False)) == before + 1


def test_single_keys_can_be_turned_off_and_a_pause_hides_the_texts(desk, browser) -> None:
    store, url, anna, _ = desk
    page = window(browser, url, store, anna)
    page.goto("/work")
    page.click("main button")
    ready(page)
    page.click("#open-help")
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("b")
    assert page.locator("input:checked[type=radio]").count() == 0
    assert not page.evaluate("document.querySelector('#pause').open")
    page.click("[data-opens=pause]")
    curtain = page.evaluate("getComputedStyle(document.querySelector('#pause'), '::backdrop').backgroundColor")
    assert curtain == page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_check_finds_what_it_looks_for(desk, browser) -> None:
    page = window(browser, desk[1])
    page.goto("/login")
    page.evaluate("document.querySelector('h1').style.color = '#999'")
    page.evaluate("document.querySelector('h1').style.width = '2000px'")
    found = check(page, "broken")
    assert any("light 1280: color-contrast" in line for line in found)
    assert "broken 390: scrolls sideways" in found
