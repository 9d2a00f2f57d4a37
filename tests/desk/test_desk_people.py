"""Accounts of a desk: invitations, passphrases, the limit of log-ins, sessions."""

import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.desks import add_person, new_desk, pair_item

from psyco_ray.desk import passphrases, people, queue
from psyco_ray.desk.people import Person, RefusedError
from psyco_ray.desk.store import Store

PASSPHRASE = "four quiet words here"


@pytest.fixture
def desk(tmp_path: Path, quick_hashes: None) -> Store:
    return new_desk(tmp_path / "desk")


def join(store: Store, role: str, name: str) -> Person:
    return people.join(store, people.invite(store, role, None), name, PASSPHRASE)


def everything(store: Store) -> str:
    """All that the database's files hold, as text."""
    return "".join(path.read_bytes().decode("latin-1") for path in store.directory.glob("desk.db*"))


def test_an_invitation_is_used_once(desk: Store) -> None:
    token = people.invite(desk, "annotator", None)
    assert people.invited(desk, token) == "annotator"
    anna = people.join(desk, token, "  Anna ", PASSPHRASE)
    assert (anna.name, anna.role) == ("Anna", "annotator")
    assert people.invited(desk, token) is None
    with pytest.raises(RefusedError, match="is used or has expired"):
        people.join(desk, token, "Berta", PASSPHRASE)
    assert people.everyone(desk) == [anna]


def test_two_who_use_an_invitation_at_once_are_one_account(desk: Store) -> None:
    token = people.invite(desk, "annotator", None)
    refused: list[str] = []

    def use(name: str) -> None:
        try:
            people.join(desk, token, name, PASSPHRASE)
        except RefusedError as error:
            refused.append(str(error))

    in_threads([lambda name=name: use(name) for name in ("Anna", "Berta", "Carla")])  # type: ignore[misc]
    assert len(people.everyone(desk)) == 1
    assert len(refused) == 2


def test_an_invitation_expires(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", invitation_hours=1e-6)
    token = people.invite(store, "lead", None)
    time.sleep(0.01)
    assert people.invited(store, token) is None
    with pytest.raises(RefusedError, match="has expired"):
        people.join(store, token, "Anna", PASSPHRASE)
    assert people.everyone(store) == []
    people.invite(store, "lead", None)
    assert store.read().execute("SELECT count(*) FROM invitations").fetchone()[0] == 1


def test_only_leads_invite(desk: Store) -> None:
    lead, reviewer = add_person(desk, "lead"), add_person(desk, "reviewer")
    assert people.invited(desk, people.invite(desk, "reviewer", lead)) == "reviewer"
    with pytest.raises(RefusedError, match="only a lead"):
        people.invite(desk, "annotator", reviewer)
    with pytest.raises(RefusedError, match="a role is one of"):
        people.invite(desk, "root", lead)


@pytest.mark.parametrize(
    ("name", "passphrase", "message"),
    [
        ("", PASSPHRASE, "a name has"),
        ("x" * 65, PASSPHRASE, "a name has"),
        ("An\u202ena", PASSPHRASE, "a name has"),
        ("Anna", "short", "12 characters"),
        ("Anna", "aaaaaaaaaaaaaaaa", "12 characters"),
        ("Anna", "x1y2z3" * 1000, "at most 1024"),
        ("Anna of the Lake", "anna of the lake", "is the name"),
        ("BERTA", PASSPHRASE, "taken"),
        ("stra\u00dfe", PASSPHRASE, "taken"),
    ],
)
def test_unsuitable_names_and_passphrases_are_refused(desk: Store, name: str, passphrase: str, message: str) -> None:
    add_person(desk, name="berta")
    add_person(desk, name="STRASSE")
    token = people.invite(desk, "annotator", None)
    with pytest.raises(RefusedError, match=message) as refused:
        people.join(desk, token, name, passphrase)
    assert passphrase not in str(refused.value)
    assert people.invited(desk, token) == "annotator"  # it is not used up


def test_the_right_passphrase_logs_in_from_any_keyboard(desk: Store) -> None:
    token = people.invite(desk, "annotator", None)
    rene = people.join(desk, token, "René", "gr\u00fcne Wiesen im Mai")
    assert people.log_in(desk, "rene\u0301", "gru\u0308ne Wiesen im Mai", "::1") == rene
    for name, passphrase in (("René", "grune Wiesen im Mai"), ("Nobody", PASSPHRASE), ("", ""), ("René", "x" * 5000)):
        with pytest.raises(RefusedError, match="the name or the passphrase is wrong"):
            people.log_in(desk, name, passphrase, "::1")


def test_half_a_character_in_a_request_is_only_wrong(desk: Store) -> None:
    with pytest.raises(RefusedError, match="is wrong"):
        people.log_in(desk, "\ud800", "\udc00", "::1")
    assert people.session(desk, "\ud800") is None
    assert people.invited(desk, "\ud800") is None


def test_an_unknown_name_takes_as_long_as_a_known_one(tmp_path: Path) -> None:
    desk = new_desk(tmp_path / "desk")
    join(desk, "annotator", "Anna")

    def seconds(name: str) -> float:
        began = time.thread_time()
        with pytest.raises(RefusedError):
            people.log_in(desk, name, "wrong wrong wrong", "::1")
        return time.thread_time() - began

    seconds("Nobody")
    known, unknown = (statistics.median(seconds(name) for _ in range(3)) for name in ("Anna", "Nobody"))
    assert known > 0.02
    assert 0.7 < unknown / known < 1.4


def test_log_ins_are_limited_by_name_and_address(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "verify", lambda hashed, passphrase: passphrase == "right")
    add_person(desk, name="Anna")

    def tries(name: str, address: str, passphrase: str = "wrong") -> bool:
        """Whether one more try is looked at."""
        try:
            people.log_in(desk, name, passphrase, address)
        except RefusedError as error:
            return not error.limited
        return True

    now = time.time()
    assert all(tries("Anna", f"10.0.0.{number}") for number in range(people.LOGINS_PER_NAME))
    assert not tries("anna ", "10.0.1.1", "right")
    assert tries("Berta", "10.0.0.1")
    monkeypatch.setattr(time, "time", lambda: now + people.LOGIN_WINDOW + 5)
    assert tries("Anna", "10.0.0.1", "right")
    assert all(tries(f"guess {number}", "10.0.9.9") for number in range(people.LOGINS_PER_ADDRESS))
    assert not tries("Anna", "10.0.9.9", "right")
    assert tries("Anna", "10.0.0.1", "right")


def test_success_ends_the_count_of_its_name(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrases, "verify", lambda hashed, passphrase: passphrase == "right")
    anna = add_person(desk, name="Anna")
    for _ in range(3):
        for _ in range(people.LOGINS_PER_NAME - 1):
            with pytest.raises(RefusedError, match="is wrong"):
                people.log_in(desk, "Anna", "wrong", "::1")
        assert people.log_in(desk, "Anna", "right", "::1") == anna


def in_threads(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_guesses_at_once_are_limited_too(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def verify(hashed: str | None, passphrase: str) -> bool:
        checked.append(passphrase)
        time.sleep(0.05)
        return False

    monkeypatch.setattr(passphrases, "verify", verify)

    def guess() -> None:
        with pytest.raises(RefusedError):
            people.log_in(desk, "Anna", "guess", "::1")

    in_threads([guess] * 20)
    assert len(checked) == people.LOGINS_PER_NAME


CROWD = """
import resource, sys, threading
from psyco_ray.desk import passphrases
hashed = passphrases.hash_new("four quiet words here", "Anna")
assert passphrases.verify(hashed, "four quiet words here")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
threads = [threading.Thread(target=passphrases.verify, args=(hashed, "wrong")) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_crowd_that_logs_in_takes_the_memory_of_few() -> None:
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, timeout=60, check=True)
    mib = int(done.stdout) / 1024
    assert mib < 180  # 12 at once take 768


def test_who_waits_too_long_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    passphrases.verify(None, "anything")
    monkeypatch.setattr(passphrases, "_LONGEST_WAIT", 0.01)
    monkeypatch.setattr(passphrases, "_RUNNING", threading.BoundedSemaphore(1))
    with passphrases._turn(), pytest.raises(RefusedError, match="try again") as refused:
        passphrases.verify(None, "anything")
    assert refused.value.limited


def test_the_store_has_no_secret_in_clear(desk: Store) -> None:
    token = people.invite(desk, "annotator", None)
    anna = people.join(desk, token, "Anna", PASSPHRASE)
    session = people.open_session(desk, anna)
    with pytest.raises(RefusedError):
        people.log_in(desk, "a passphrase in the wrong field", PASSPHRASE, "::1")
    stored = everything(desk)
    assert "$argon2id$" in stored
    for secret in (token, session.token, PASSPHRASE, "a passphrase in the wrong field"):
        assert secret not in stored


def test_sessions_have_tokens_of_their_own_and_end(desk: Store) -> None:
    anna = add_person(desk)
    first, second = people.open_session(desk, anna), people.open_session(desk, anna)
    assert len({first.token, second.token, first.csrf, second.csrf}) == 4
    assert people.session(desk, first.token) == first
    people.close_session(desk, first.token)
    people.close_session(desk, "none")
    assert people.session(desk, first.token) is None
    assert people.session(desk, second.token) == second
    row = desk.read().execute("SELECT * FROM sessions").fetchone()
    assert people.session(desk, row["token_hash"]) is None  # what a thief of the file has


def test_a_session_expires_and_says_when_it_was_seen(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session, now = people.open_session(desk, add_person(desk)), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11 * 3600)
    assert people.session(desk, session.token) == session
    assert desk.read().execute("SELECT seen_at FROM sessions").fetchone()[0] == now + 11 * 3600
    monkeypatch.setattr(time, "time", lambda: now + 12 * 3600 + 1)
    assert people.session(desk, session.token) is None
    people.open_session(desk, session.person)
    assert desk.read().execute("SELECT count(*) FROM sessions").fetchone()[0] == 1


def test_a_closed_account_is_out_and_its_unfinished_item_goes_on(tmp_path: Path, quick_hashes: None) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0)], overlap=1)
    lead, other = add_person(store, "lead"), add_person(store)
    anna = join(store, "annotator", "Anna")
    session = people.open_session(store, anna)
    assert queue.next_item(store, anna) is not None
    assert queue.next_item(store, other) is None
    people.deactivate(store, anna.id, lead)
    assert people.session(store, session.token) is None
    with pytest.raises(RefusedError, match="is wrong"):
        people.log_in(store, "Anna", PASSPHRASE, "::1")
    assert queue.next_item(store, other) is not None
    assert people.everyone(store) == [lead, other]
    assert people.everyone(store, active=False) == [lead, other, anna]
    with pytest.raises(RefusedError, match="their own"):
        people.deactivate(store, lead.id, lead)
    with pytest.raises(RefusedError, match="only a lead"):
        people.deactivate(store, lead.id, other)


def test_a_lost_passphrase_is_renewed_by_a_lead(desk: Store) -> None:
    anna, berta, lead = join(desk, "annotator", "Anna"), join(desk, "annotator", "Berta"), add_person(desk, "lead")
    session = people.open_session(desk, anna)
    token = people.renew(desk, anna.id, lead)
    with pytest.raises(RefusedError, match="another name"):
        people.join(desk, token, "Berta", "five other quiet words here")
    assert people.join(desk, token, "anna", "five other quiet words here") == anna
    assert people.session(desk, session.token) is None
    assert people.log_in(desk, "Anna", "five other quiet words here", "::1") == anna
    with pytest.raises(RefusedError):
        people.log_in(desk, "Anna", PASSPHRASE, "::1")
    with pytest.raises(RefusedError, match="only a lead"):
        people.renew(desk, anna.id, berta)
    with pytest.raises(RefusedError, match="no such account"):
        people.renew(desk, 99, lead)


def test_the_database_itself_refuses_a_role_that_is_none(desk: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        add_person(desk, "root")
