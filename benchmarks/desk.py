"""The desk under load: 50 annotators save 100 answers a second over HTTP for a minute, each on items of their own.

.venv/bin/python benchmarks/desk.py [--annotators 50] [--rate 100] [--seconds 60]

The server is a process of its own, started by `psyco-ray desk serve`; the annotators are one more, on the same cores.
Each loads a pair's page, saves five times while it answers, and goes on. Some send a save again, as after a lost
answer, some cut the connection in the middle and send it again, some try an item of somebody else. Afterwards the store
is read: every acknowledged answer is there once, in order, and no item belongs to two people. Fails on any of these, or
below 95 % of the rate. `ours` is the 95th percentile of a save in milliseconds, `peer` the bar.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from psyco_ray.config import job_file
from psyco_ray.config.desk import Desk
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.desk import judgements, people
from psyco_ray.desk.store import Item, Store

BAR_MS = 200.0
STEPS = 5  # saves of an item, the last with a complete answer
AGAIN, CUT, FOREIGN = 0.02, 0.01, 0.02  # shares of saves
_CUT_S = 0.002
_WORDS = (
    "I",
    "hear",
    "how",
    "much",
    "this",
    "weighs",
    "on",
    "you",
    "and",
    "wonder",
    "what",
    "a",
    "first",
    "step",
    "is.",
)


@dataclass(frozen=True)
class Load:
    """How many people do how much."""

    annotators: int = 50
    rate: float = 100.0  # saves a second, of all together
    seconds: float = 60.0

    @property
    def items(self) -> int:
        """More than are needed."""
        return int(self.rate * self.seconds / STEPS * 1.3) + 2 * self.annotators


@dataclass
class Seen:
    """What the annotators saw, all together."""

    latencies: list[float] = field(default_factory=list)  # seconds of each save
    acknowledged: dict[tuple[str, int], list[Any]] = field(default_factory=dict)  # as shown, by item and person
    owners: dict[str, int] = field(default_factory=dict)
    again: int = 0
    cut: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def measure(load: Load, directory: Path) -> dict[str, Any]:
    """Run the load on a new desk and read its store.

    Returns:
        `saves`, `rate` (saves a second), `p50` and `p95` in milliseconds, `cpu` seconds of the server, numbers of saves
        sent `again` and `cut`, of foreign items `refused`, and `faults`, sentences about what was lost, doubled or
        shown to the wrong person.
    """
    store, sessions = prepare(directory, load)
    with serving(directory) as (url, server):
        seen, seconds = asyncio.run(_work(url, sessions, load))
        cpu = sum(psutil.Process(server).cpu_times()[:2])
    faults = [*seen.faults, *check(store, seen)]
    saves = len(seen.latencies)
    p50, p95 = (round(1000 * float(np.quantile(seen.latencies, share)), 1) for share in (0.5, 0.95))
    numbers = {"cpu": round(cpu, 1), "again": seen.again, "cut": seen.cut, "refused": seen.refused}
    return {"saves": saves, "rate": round(saves / seconds, 1), "p50": p50, "p95": p95, **numbers, "faults": faults}


def prepare(directory: Path, load: Load) -> tuple[Store, list[people.Session]]:
    """A desk with pairs of which each goes to one person, and people who are logged in."""
    directory.mkdir(mode=0o700)
    (directory / "desk.yaml").write_text(job_file.dump(Desk(overlap=1)))
    store = Store.open(directory, create=True)
    draw = random.Random(0)
    items = []
    for number in range(load.items):
        responses = tuple(" ".join(draw.choice(_WORDS) for _ in range(120)) for _ in range(2))
        items.append(Item(f"{number:016x}", "pair", "load", f"s{number}", f"Speech {number}. " * 20, responses, (), {}))
    store.add_items(items)
    sessions = []
    for number in range(load.annotators):
        token = people.invite(store, "annotator", None)
        sessions.append(
            people.open_session(store, people.join(store, token, f"person {number}", secrets.token_hex(16)))
        )
    return store, sessions


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[tuple[str, int]]:
    """A server process of a desk: its address and its process id."""
    command = [sys.executable, "-m", "psyco_ray.cli", "desk", "serve", str(directory), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = next((line for line in server.stdout if line.startswith("desk: ")), None)
            assert line is not None, "the server did not start"
            yield line.split()[1], server.pid
        finally:
            server.kill()


async def _work(url: str, sessions: Sequence[people.Session], load: Load) -> tuple[Seen, float]:
    seen = Seen()
    timeout = aiohttp.ClientTimeout(total=30)
    jar = aiohttp.DummyCookieJar
    async with aiohttp.ClientSession(
        url, timeout=timeout, cookie_jar=jar(), connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        begun = time.perf_counter()
        annotators = [_Annotator(http, session, seen, load, number) for number, session in enumerate(sessions)]
        await asyncio.gather(*(annotator.work(begun) for annotator in annotators))
        return seen, time.perf_counter() - begun


class _Annotator:
    """A person in front of the pages."""

    def __init__(
        self, http: aiohttp.ClientSession, session: people.Session, seen: Seen, load: Load, number: int
    ) -> None:
        self.http, self.seen, self.load, self.number = http, seen, load, number
        self.person = session.person.id
        self.headers = {"Cookie": f"desk={session.token}", "X-CSRF-Token": session.csrf, "Accept": "application/json"}
        self.draw = random.Random(number)

    async def work(self, begun: float) -> None:
        """Save at this person's share of the rate until the time is over; an item is always finished."""
        interval = self.load.annotators / self.load.rate
        due = begun + interval * self.number / self.load.annotators
        while due < begun + self.load.seconds:
            item = await self._next()
            answer: dict[str, Any] = {"principles": {}, "confidence": None, "comment": ""}
            for step in range(STEPS):
                await asyncio.sleep(due - time.perf_counter())
                due = max(due + interval, time.perf_counter())
                answer = self._answered(answer, step)
                await self._save(item, answer, step)
            await self._foreign()

    def _answered(self, answer: dict[str, Any], step: int) -> dict[str, Any]:
        side = self.draw.choice((1, -1))
        if step == 0:
            return {**answer, "overall": side}
        if step < STEPS - 1:
            more = PRINCIPLES[step * 2 - 2 : step * 2] if step < STEPS - 2 else PRINCIPLES[step * 2 - 2 :]
            return {**answer, "principles": {**answer["principles"], **dict.fromkeys(more, side)}}
        return {**answer, "confidence": self.draw.randint(1, 5)}

    async def _next(self) -> str:
        async with self.http.get("/work", headers={**self.headers, "Accept": "text/html"}) as response:
            item = response.url.name
            if response.status != 200 or not item:
                self.seen.faults.append(f"/work answers {response.status} with {response.url.path}")
            await response.read()
        owner = self.seen.owners.setdefault(item, self.person)
        if owner != self.person:
            self.seen.faults.append(f"item {item} of person {owner} is given to person {self.person}")
        return item

    async def _save(self, item: str, answer: dict[str, Any], base: int) -> None:
        if self.draw.random() < CUT:
            self.seen.cut += 1
            with contextlib.suppress(TimeoutError):  # whether the server has it is not known, so it is sent again
                await asyncio.wait_for(self._post(item, answer, base), _CUT_S)
        begun = time.perf_counter()
        status, version = await self._post(item, answer, base)
        self.seen.latencies.append(time.perf_counter() - begun)
        if self.draw.random() < AGAIN:
            self.seen.again += 1
            if await self._post(item, answer, base) != (status, version):
                self.seen.faults.append(f"item {item}: the same save again is another version")
        if (status, version) != (200, base + 1):
            self.seen.faults.append(f"item {item}: save {base + 1} is answered {status} with version {version}")
        else:
            self.seen.acknowledged.setdefault((item, self.person), []).append(answer)

    async def _post(self, item: str, answer: dict[str, Any], base: int) -> tuple[int, int | None]:
        body = {"answer": answer, "base_version": base, "seconds": float(base)}
        async with self.http.post(f"/items/{item}/save", json=body, headers=self.headers) as response:
            found = await response.json()
            return response.status, found.get("version")

    async def _foreign(self) -> None:
        others = [item for item, owner in self.seen.owners.items() if owner != self.person]
        if not others or self.draw.random() >= FOREIGN * STEPS:
            return
        item = self.draw.choice(others)
        async with self.http.get(f"/items/{item}", headers=self.headers) as response:
            statuses = [response.status]
        statuses.append((await self._post(item, {"overall": 1}, 0))[0])
        self.seen.refused += 1
        if statuses != [404, 404]:
            self.seen.faults.append(f"item {item} of somebody else is answered {statuses}")


def check(store: Store, seen: Seen) -> list[str]:
    """What the store says that the annotators did not see, and the other way round."""
    faults = []
    rows = list(store.read().execute("SELECT item_id, person_id, sides FROM assignments"))
    sides = {(row["item_id"], row["person_id"]): bool(row["sides"]) for row in rows}
    if len({row["item_id"] for row in rows}) < len(rows):
        faults.append("the store has an item that two people got")
    stored: dict[tuple[str, int], list[Any]] = {}
    for row in store.read().execute("SELECT * FROM judgements ORDER BY item_id, person_id, version"):
        versions = stored.setdefault((row["item_id"], row["person_id"]), [])
        versions.append(json.loads(row["answer"]))
        if row["version"] != len(versions):
            faults.append(f"item {row['item_id']} lacks version {len(versions)}")
    for key in sorted(stored.keys() | seen.acknowledged.keys()):
        shown = [judgements.unswapped(answer, sides[key]) for answer in seen.acknowledged.get(key, [])]
        if stored.get(key, []) != shown:
            faults.append(f"item {key[0]}: {len(stored.get(key, []))} versions are stored, {len(shown)} acknowledged")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--rate", type=float, default=100.0, help="saves a second, of all together")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    load = Load(options.annotators, options.rate, options.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(load, Path(scratch) / "desk")
    print(json.dumps(found))
    if found["rate"] < 0.95 * load.rate:
        found["faults"].append(f"{found['rate']} saves a second are fewer than {load.rate}")
    ratio = round(found["p95"] / BAR_MS, 3)
    line = {"name": "desk-p95", "ours": found["p95"], "peer": BAR_MS, "ratio": ratio, "bar": 1.0}
    print(json.dumps(line | {"pass": ratio <= 1 and not found["faults"]}))


if __name__ == "__main__":
    main()
