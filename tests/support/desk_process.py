"""A desk as users run it: a server process that can be killed and started again at the same address."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path


class DeskProcess:
    """`psyco-ray desk serve` over a directory.

    Attributes:
        url: of the running server.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        """Start the server on a free port."""
        self.directory, self.options = directory, options
        self._port = "0"
        self.start()

    def start(self) -> None:
        """Start it, at its last address."""
        command = [sys.executable, "-m", "psyco_ray.cli", "desk", "serve", str(self.directory)]
        with (self.directory.parent / "desk.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *self.options, "--port", self._port], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        self.url = self._said(r"^desk: (\S+)$")
        self._port = self.url.rsplit(":", 1)[1]

    def __enter__(self) -> DeskProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no server behind."""
        if self.process.poll() is None:
            self.kill()

    def invitation(self) -> str:
        """The link of the lead's invitation, which a desk without a lead prints after its address."""
        return self._said(r"invitation of the lead.*: (http\S+)$")

    def _said(self, pattern: str) -> str:
        for line in self.process.stdout:
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"the desk ended with {self.process.wait()}; its log is {self.directory.parent}/desk.log")

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, kind: signal.Signals) -> int:
        self.process.send_signal(kind)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code
