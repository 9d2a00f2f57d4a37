"""Commands that tests run to their end; a command that exceeds its time is killed and its state reported."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import psutil
import ray

from psyco_ray.cli.main import main


def run(*arguments: object, within_s: float = 400) -> subprocess.CompletedProcess:
    """psyco-ray with these arguments, from start to end."""
    command = [sys.executable, "-m", "psyco_ray.cli", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = ended(subprocess.Popen(command, stdout=out, stderr=err), within_s, lambda: _text(err))
        return subprocess.CompletedProcess(command, code, _text(out), _text(err))


def here(*arguments: object) -> subprocess.CompletedProcess:
    """psyco-ray in this process and on the tests' Ray, for tests of a command's work rather than its start."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch("psyco_ray.run.ray_session.connect"),
        patch("ray.shutdown"),
        patch.dict(os.environ, RAY_ADDRESS="the tests'"),  # with an address a command makes no token of its own
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def ended(process: subprocess.Popen, within_s: float, output) -> int:
    """The exit code of a process; `output` returns what it has written."""
    try:
        return process.wait(timeout=within_s)
    except subprocess.TimeoutExpired:
        report = f"not ended within {within_s:.0f} s\n{output()[-2500:]}\n{_state_of(process.pid)}"
    finally:
        process.kill()
        process.wait()
    raise AssertionError(report)


def _text(file) -> str:
    file.seek(0)
    return file.read()


def _state_of(pid: int) -> str:
    """The process's threads, Ray's free resources and actors by state, and the machine's memory and load."""
    spy = Path(sys.executable).with_name("py-spy")  # comes with Ray
    stacks = subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, text=True, check=False)
    lines = [stacks.stdout[-3000:] or stacks.stderr[-300:]]
    if ray.is_initialized():
        states = Counter((one["ActorClassName"], one["State"]) for one in ray._private.state.actors().values())
        lines.append(f"Ray has free {ray.available_resources()}; actors {dict(states)}")
    memory = psutil.virtual_memory()
    lines.append(f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, load {os.getloadavg()}")
    seen = [p for p in psutil.process_iter(["name", "status", "memory_info"]) if p.info["memory_info"]]  # no zombies
    busy = sorted(seen, key=lambda p: -p.info["memory_info"].rss)
    lines += [f"{p.pid} {p.info['name']} {p.info['status']} {p.info['memory_info'].rss >> 20} MiB" for p in busy[:12]]
    return "\n".join(lines)
