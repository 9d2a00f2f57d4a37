"""Attacks on a desk's server, over HTTP and raw sockets; all are refused and leave nothing behind."""

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from support import desks
from support.desk_server import Visitor, serving

from psyco_ray.desk import judgements, people, queue, security
from psyco_ray.desk.app import create_app
from psyco_ray.desk.store import Store

SCRIPT = '</p></textarea><script>alert(1)</script><img src=x onerror="alert(2)">\'"{{7*7}}'


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return desks.new_desk(tmp_path_factory.mktemp("desks") / "desk", [desks.pair_item(0), desks.draft_item(1)])


@pytest.fixture(scope="module")
def url(store) -> Iterator[str]:
    with serving(store) as url:
        yield url


@pytest.fixture
def anna(store, url) -> Iterator[Visitor]:
    """An annotator with one item, which `items` names."""
    person = desks.add_person(store)
    with Visitor(url, store, person) as visitor:
        visitor.person = person
        visitor.item = visitor.get("/work").url.path[7:]
        yield visitor


def versions(store: Store) -> int:
    return store.read().execute("SELECT count(*) FROM judgements").fetchone()[0]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "0" * 43},
        {"X-CSRF-Token": "right", "Origin": "https://evil.example"},
        {"X-CSRF-Token": "right", "Origin": "null"},
        {"X-CSRF-Token": "right", "Sec-Fetch-Site": "cross-site"},
        {"X-CSRF-Token": "right", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_csrf(store, anna, headers) -> None:
    before = versions(store)
    headers = {name: value.replace("right", anna.csrf) for name, value in headers.items()}
    body = {"answer": desks.pair_answer(), "base_version": 0, "seconds": 1}
    assert anna.post(f"/items/{anna.item}/save", json=body, headers=headers).status_code == 403
    assert versions(store) == before


def test_csrf_of_every_form(store, url, anna) -> None:
    """Every path that a POST reaches refuses one without a token, with and without a session."""
    routes = [route for route in _routes(create_app(store, ["127.0.0.1"], False)) if "POST" in route.methods]
    assert len(routes) >= 8
    for route in routes:
        path = re.sub(r"\{\w+(:\w+)?\}", anna.item, route.path)
        assert anna.post(path, data={"csrf": "wrong"}).status_code == 403, path
        assert httpx.post(url + path, data={"name": "a"}).status_code == 403, path


def _routes(app) -> list:
    found = []
    for route in app.routes:
        nested = getattr(route, "original_router", None)
        found += _routes(nested) if nested else [route]
    return [route for route in found if getattr(route, "methods", None)]


def test_csrf_of_the_login(url, store) -> None:
    with Visitor(url) as visitor:
        visitor.read("/login")
        own = visitor.csrf
        for token in ("", "x" * 43):
            visitor.csrf = token
            assert visitor.submit("/login", name="a", passphrase="b").status_code == 403
        visitor.csrf = own
        assert visitor.submit("/login", name="a", passphrase="b").status_code == 401


def test_xss(tmp_path) -> None:
    """A speech, responses, comments, edits and names are text wherever they stand."""
    store = desks.new_desk(tmp_path / "desk")
    pair = replace(desks.pair_item(1), speech=SCRIPT, responses=(SCRIPT, f"{SCRIPT} and more"))
    store.add_items([pair, desks.draft_item(1, text=SCRIPT)])
    anna, rita = desks.add_person(store, name=SCRIPT[:60]), desks.add_person(store, "reviewer")
    answers = {"p1": desks.pair_answer(), "d1": desks.draft_answer("edit", f"{SCRIPT} x")}
    with serving(store) as url, Visitor(url, store, anna) as visitor:
        for _ in answers:
            assert_no_markup(visitor.get("/work").text)
            item = visitor.get("/work").url.path[7:]
            assert visitor.save(item, answers[item] | {"comment": SCRIPT}).status_code == 200
            assert_no_markup(visitor.read(f"/items/{item}"))
        assert_no_markup(visitor.read("/"))
        assert visitor.submit("/items/d1/difference", edit=SCRIPT * 2).headers["content-type"] == "application/json"
        with Visitor(url, store, rita) as reviewer:
            assert_no_markup(reviewer.read("/review"))
        with Visitor(url) as stranger:
            stranger.read("/login")
            assert_no_markup(stranger.submit("/login", name=SCRIPT, passphrase="x").text)


def assert_no_markup(page: str) -> None:
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page


def test_headers_of_every_answer(url, anna) -> None:
    for path in ("/", "/login", "/nowhere", "/static/desk.css", "/static/none", "/healthz", f"/items/{anna.item}"):
        headers = anna.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
        assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
        assert headers["referrer-policy"] == "same-origin"
    page = anna.get(f"/items/{anna.item}").text
    assert not re.search(r"<script(?! src=\"/static/desk\.js\" defer></script>)|<style|\son\w+=|\sstyle=", page)


def test_a_fault_says_nothing_and_has_the_headers(store, url, anna, monkeypatch) -> None:
    def fail(*_) -> None:
        raise RuntimeError("words of a client")

    monkeypatch.setattr(queue, "counts", fail)
    answer = anna.get("/")
    assert answer.status_code == 500
    assert "words of a client" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")


def test_session_fixation(store, url) -> None:
    token = people.invite(store, "annotator", None)
    with Visitor(url) as visitor:
        visitor.cookies.set("desk", "A" * 43, domain="127.0.0.1")
        visitor.read(f"/join/{token}")
        visitor.submit(f"/join/{token}", name="Fix", passphrase="four words of fix", again="four words of fix")
        joined = visitor.cookies["desk"]
        assert joined != "A" * 43
        visitor.read("/")
        visitor.submit("/logout")
        assert httpx.get(f"{url}/", cookies={"desk": joined}).status_code == 303, "a session ends at the log-out"
        visitor.read("/login")
        visitor.cookies.set("desk", "B" * 43, domain="127.0.0.1")
        visitor.submit("/login", name="fix", passphrase="four words of fix")
        assert visitor.cookies["desk"] not in (joined, "B" * 43)
    stored = [row[0] for row in store.read().execute("SELECT token_hash FROM sessions")]
    assert visitor.cookies["desk"] not in stored, "the store has no token that would open a session"


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(store, url) -> None:
    plain = httpx.get(f"{url}/login").headers["set-cookie"]
    assert "HttpOnly" in plain
    assert "SameSite=strict" in plain
    with serving(store, secure=True) as secure:
        answer = httpx.get(f"{secure}/login")
    assert answer.headers["set-cookie"].startswith("__Host-desk_form=")
    assert "Secure" in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"].startswith("max-age=")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/config/desk.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%00",
        "/items/..%2f..%2fdesk.db",
        "/items/%2e%2e",
        "/join/..%2f..%2fdesk.db",
        "/items/%ff%fe",
    ],
)
def test_paths(url, anna, path) -> None:
    answer = raw(
        url,
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: desk={anna.cookies['desk']}\r\nConnection: close\r\n\r\n",
    )
    assert re.match(rb"HTTP/1.1 (404|400|410|405) ", answer), answer[:200]
    assert b"import" not in answer
    assert b"root:" not in answer


def raw(url: str, text: str | bytes, wait: float = 20) -> bytes:
    """What a server answers to bytes on a socket, until it closes the connection."""
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=wait) as connection:
        connection.sendall(text if isinstance(text, bytes) else text.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_other_peoples_items(store, url, anna) -> None:
    with Visitor(url, store, desks.add_person(store)) as other:  # has no item yet
        before = versions(store)
        assert other.get(f"/items/{anna.item}").status_code == 404
        assert other.save(anna.item, desks.pair_answer()).status_code == 404
        for step in ("undo", "difference"):
            assert other.submit(f"/items/{anna.item}/{step}", edit="x").status_code == 404
        assert other.submit("/warning", item=anna.item).status_code == 404
        assert other.get("/items/none").status_code == 404
    assert versions(store) == before
    assert httpx.get(f"{url}/items/{anna.item}").headers["location"] == "/login"


def test_brute_force(store, url) -> None:
    token = people.invite(store, "annotator", None)
    people.join(store, token, "Target", "four words of target")
    with Visitor(url) as visitor:
        visitor.read("/login")
        tries = [visitor.submit("/login", name="target", passphrase=f"guess number {n}").status_code for n in range(7)]
        assert tries[0] == 401
        assert tries[-1] == 429
        answer = visitor.submit("/login", name="Target", passphrase="four words of target")
        assert answer.status_code == 429, "the right passphrase does not end the limit"
        assert "desk" not in visitor.cookies
    with store.transaction() as db:
        db.execute("DELETE FROM logins")  # this machine's address is that of the other tests too


@pytest.mark.parametrize(
    "text", ["' OR '1'='1", "p0'; DROP TABLE people; --", "p0' UNION SELECT passphrase FROM people --", '"']
)
def test_sql(store, url, anna, text) -> None:
    assert anna.get(f"/items/{text}").status_code == 404
    assert anna.save(anna.item, {"overall": text}).status_code == 422
    assert anna.save(anna.item, {text: 1}).status_code == 422
    with Visitor(url) as visitor:
        visitor.read("/login")
        assert visitor.submit("/login", name=text, passphrase=text).status_code == 401
        assert visitor.get(f"/join/{text}").status_code in (404, 410)
    with store.transaction() as db:
        db.execute("DELETE FROM logins")
    assert store.read().execute("SELECT count(*) FROM people").fetchone()[0] > 0


def test_oversized_bodies(store, url, anna) -> None:
    before = versions(store)
    answer = desks.pair_answer(comment="x" * security.BODY_BYTES)
    assert anna.save(anna.item, answer).status_code == 413
    assert anna.save(anna.item, desks.pair_answer(comment="x" * 50_000)).status_code == 422
    head = f"POST /items/{anna.item}/save HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    declared = raw(url, f"{head}Content-Length: {10**12}\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    chunked = raw(url, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 4 + b"1\r\nx\r\n")
    for response in (declared, chunked):
        assert response.startswith(b"HTTP/1.1 413 "), response[:100]
        assert b"connection: close" in response
    fields = "&".join(f"a{n}=" for n in range(security.FORM_FIELDS + 1))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert anna.post(f"/items/{anna.item}/save", content=fields, headers=form).status_code == 400
    assert versions(store) == before


def test_slow_bodies(url, monkeypatch) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.5)
    for head in ("Content-Length: 100", "Transfer-Encoding: chunked"):
        start = time.monotonic()
        answer = raw(url, f"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n5\r\nname=")
        assert answer.startswith(b"HTTP/1.1 408 "), answer[:100]
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        "{}",
        "null",
        '{"answer": null, "base_version": 0, "seconds": 1}',
        '{"answer": {"overall": 1}, "base_version": "x", "seconds": 1}',
        '{"answer": {"overall": 1}, "base_version": 0, "seconds": NaN}',
        '{"answer": {"overall": 1}, "base_version": 0, "seconds": 1e999}',
        '{"answer": {"comment": "\\ud800"}, "base_version": 0, "seconds": 1}',
        '{"answer": {"comment": "a\\u0000b"}, "base_version": 0, "seconds": 1}',
        '{"answer": {"overall": true}, "base_version": 0, "seconds": 1}',
        '{"answer": [1], "base_version": 0, "seconds": 1}',
        f'{{"answer": {{"overall": 1}}, "base_version": {"9" * 5000}, "seconds": 1}}',
        b"\xff\xfe\x00",
    ],
)
def test_malformed_bodies(store, anna, body) -> None:
    before = versions(store)
    headers = {"X-CSRF-Token": anna.csrf, "Content-Type": "application/json", "Accept": "application/json"}
    answer = anna.post(f"/items/{anna.item}/save", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"].endswith(".")
    assert versions(store) == before


def test_replayed_invitations(store, url) -> None:
    token = people.invite(store, "annotator", None)
    own = {"passphrase": "four words of mine", "again": "four words of mine"}
    with Visitor(url) as first, Visitor(url) as second:
        first.read(f"/join/{token}")
        second.read(f"/join/{token}")
        assert first.submit(f"/join/{token}", name="first", **own).url.path == "/"
        assert second.submit(f"/join/{token}", name="second", **own).status_code == 400
        assert second.get(f"/join/{token}").status_code == 410
        assert second.get("/").url.path == "/login"
    names = [person.name for person in people.everyone(store)]
    assert "first" in names
    assert "second" not in names


def test_wrong_roles(store, url, anna) -> None:
    """Nobody but a lead reaches a page of the lead; annotators do not review."""
    routes = [route for route in _routes(create_app(store, ["127.0.0.1"], False)) if route.path.startswith("/lead")]
    assert len(routes) >= 6
    invitations = store.read().execute("SELECT count(*) FROM invitations").fetchone()[0]
    with Visitor(url, store, desks.add_person(store, "reviewer")) as rita:
        for visitor in (anna, rita):
            for route in routes:
                path = re.sub(r"\{\w+(:\w+)?\}", anna.item, route.path)
                fields = {"role": "lead", "item_id": anna.item, "person_id": str(anna.person.id)}
                answer = visitor.get(path) if "GET" in route.methods else visitor.submit(path, **fields)
                assert answer.status_code == 403, path
    assert anna.get("/review").status_code == 403
    assert anna.submit("/review/d1", decision="approve", text="x").status_code == 403
    assert store.read().execute("SELECT count(*) FROM invitations").fetchone()[0] == invitations


def test_a_closed_account_is_out_at_once(store, anna) -> None:
    people.deactivate(store, anna.person.id, desks.add_person(store, "lead"))
    assert anna.get("/").url.path == "/login"
    assert anna.save(anna.item, desks.pair_answer()).status_code in (303, 401, 403)
    assert all(each.person_id != anna.person.id for each in judgements.latest(store))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::", "localhost@evil.example"])
def test_dns_rebinding(url, host) -> None:
    answer = raw(url, f"GET /login HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1.1 (421|400) ", answer), answer[:100]


def test_a_script_without_a_session_gets_json(url) -> None:
    answer = httpx.get(f"{url}/work", headers={"Accept": "application/json"})
    assert (answer.status_code, json.loads(answer.text)["error"][:4]) == (401, "Your")
