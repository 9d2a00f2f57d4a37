"""What listens on one machine: the sockets of all processes of a command, and the list of them in cluster/README.md."""

import ipaddress
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.paths import ROOT, SUPPORT
from support.runs import JOB, start

LISTENING = (psutil.CONN_LISTEN, psutil.CONN_NONE)  # TCP; and UDP, which has no states


def sockets_of(command: psutil.Process) -> Iterator[tuple[str, str]]:
    """Kind of process and address of every socket of a process tree that others can connect to."""
    for process in [command, *command.children(recursive=True)]:
        try:
            name, connections = process.name(), process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        kind = "psyco-ray" if process == command else name
        if name.startswith("ray::") and not name.endswith("Agent"):
            kind = "ray::…"
        for connection in connections:
            if connection.status in LISTENING and connection.laddr:
                yield kind, connection.laddr.ip.removeprefix("::ffff:")


def outside(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(pair for pair in found if not ipaddress.ip_address(pair[1]).is_loopback)


def documented() -> set[str]:
    """The processes in the table of cluster/README.md that listen on one machine."""
    text = (ROOT / "cluster/README.md").read_text(encoding="utf-8")
    table = text.split("| process |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name for process, local, *_ in rows if local == "loopback" for name in re.findall(r"`([^`]+)`", process)}


def test_ray_and_ranks_listen_on_loopback_alone_and_the_readme_lists_them() -> None:
    command = [sys.executable, SUPPORT / "listening.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        assert "ready\n" in lines
        found = set(sockets_of(psutil.Process(process.pid)))
        process.stdin.close()
    assert outside(found) == []
    assert {kind for kind, _ in found} == documented()


@pytest.mark.long
def test_a_whole_run_listens_on_loopback_alone(tmp_path: Path, tiny_model, tiny_reward_model) -> None:
    job, log = tmp_path / "job.yaml", tmp_path / "log"
    job.write_text(JOB.format(run_dir=tmp_path / "run", model=tiny_model, reward_model=tiny_reward_model))
    run, found = start(job, log, "learners.actors=2", "iterations=1"), set[tuple[str, str]]()
    try:
        while run.poll() is None:
            found |= set(sockets_of(psutil.Process(run.pid)))
            try:
                run.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, log.read_text()[-3000:]
    assert outside(found) == []
    assert {kind for kind, _ in found} == documented()
