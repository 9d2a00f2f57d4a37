"""Objects that do not fit into memory are on disk for their user alone, and not for long."""

import platform
import subprocess
import sys

from psyco_ray.run import ray_session


def test_only_the_user_can_read_spilled_objects_and_killed_commands_leave_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / "cache" / "spilled" / f"{platform.node()}-{dead.pid}"
    left.mkdir(parents=True)
    others = [left.with_name(name) for name in (f"elsewhere-{dead.pid}", "notes")]
    for other in others:
        other.mkdir()
    (left / "object").write_bytes(b"a client's words")
    own = ray_session._spilling_directory()
    assert own.stat().st_mode & 0o777 == 0o700
    assert not left.exists()
    assert all(other.exists() for other in others), "another machine that shares the cache may still run"
    assert ray_session._spilling_directory() == own
