"""A desk whose server is killed, or that two processes use: nothing acknowledged is lost, nothing is there twice."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

from support.desks import add_person, new_desk, pair_item

from psyco_ray.desk import judgements, queue
from psyco_ray.desk.store import Store

SAVE = """
import sys, threading
from pathlib import Path
from psyco_ray.desk import judgements, people, queue
from psyco_ray.desk.store import Store
store = Store.open(Path(sys.argv[1]))
output = threading.Lock()

def work(person):
    while (got := queue.next_item(store, person)) is not None:
        for confidence in (1, 2, 3, None, 4, 5):
            answer = {"overall": 1, "confidence": confidence, "comment": f"by {person.id}"}
            version = queue.assigned(store, person, got.item.id).version
            version = judgements.save(store, person, got.item.id, answer, version, 1.0)
            with output:
                sys.stdout.write(f"{got.item.id} {person.id} {version} {confidence}\\n")  # whole, or not at all
                sys.stdout.flush()

print("ready", flush=True)
sys.stdin.readline()
crew = people.everyone(store)[int(sys.argv[2])::int(sys.argv[3])]
threads = [threading.Thread(target=work, args=(person,)) for person in crew]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def start(store: Store, first: int = 0, step: int = 1) -> subprocess.Popen[str]:
    """A process that waits for a line and then saves as every `step`-th person from the `first` on."""
    arguments = [sys.executable, "-c", SAVE, str(store.directory), str(first), str(step)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_what_was_acknowledged_before_a_kill_is_there_once(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(number) for number in range(400)], principles=False)
    for _ in range(4):
        add_person(store)
    acknowledged: dict[tuple[str, int, int], str] = {}
    for kill_after in (1, 37, 90, 150):
        process = start(store)
        go(process)
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            item_id, person_id, version, confidence = line.split()
            key = (item_id, int(person_id), int(version))
            assert acknowledged.setdefault(key, confidence) == confidence, "the same version twice"
            if number == kill_after:
                threading.Timer(random.random() / 100, process.send_signal, (signal.SIGKILL,)).start()
        assert process.wait() == -signal.SIGKILL
    db = Store.open(store.directory).read()
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    rows = db.execute(
        "SELECT item_id, person_id, version, json_extract(answer, '$.confidence') AS confidence FROM judgements"
    ).fetchall()
    stored = {(row["item_id"], row["person_id"], row["version"]): str(row["confidence"]) for row in rows}
    assert len(acknowledged) > 278
    assert acknowledged.items() <= stored.items()
    assert len(stored) - len(acknowledged) <= 4 * 4  # saved while their reply was under way
    for item_id, person_id, version in stored:
        assert version == 1 or (item_id, person_id, version - 1) in stored
    audited = db.execute("SELECT count(*) FROM audit WHERE action='save'").fetchone()[0]
    assert audited == len(stored)


def test_two_processes_share_no_item(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(number) for number in range(30)], overlap=1, principles=False)
    crew = [add_person(store) for _ in range(4)]
    processes = [start(store, first, 2) for first in (0, 1)]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    done = judgements.latest(store)
    assert sorted(one.item_id for one in done) == sorted(f"p{number}" for number in range(30))
    assert len({one.person_id for one in done}) > 1
    assert all(one.version == 6 for one in done)
    assert all(queue.next_item(store, person) is None for person in crew)


def test_every_thread_waits_for_the_disk(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk")
    modes: list[tuple[str, int, int]] = []

    def look() -> None:
        db = store.read()
        modes.append(
            tuple(
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")
            )
        )  # type: ignore[arg-type]

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert modes == [("wal", 2, 1)] * 2
