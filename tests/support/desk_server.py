"""A desk's application on a real uvicorn server in a thread, and people who visit it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import uvicorn

from psyco_ray.desk import app, people
from psyco_ray.desk.store import Store


@contextmanager
def serving(store: Store, hosts: Sequence[str] = ("127.0.0.1", "localhost"), secure: bool = False) -> Iterator[str]:
    """Serves a desk on a free port; the URL."""
    config = uvicorn.Config(app.create_app(store, hosts, secure), port=0, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive(), "the server did not stop"


class Visitor(httpx.Client):
    """A browser without scripts: keeps cookies and sends the CSRF token of the page that it has read last."""

    def __init__(self, url: str, store: Store | None = None, person: people.Person | None = None) -> None:
        """Open a window.

        Args:
            url: of the desk.
            store: of the desk, for a visitor who has logged in.
            person: who has logged in; None: nobody.
        """
        super().__init__(base_url=url, follow_redirects=True, timeout=30)
        self.csrf = ""
        if store and person:
            session = people.open_session(store, person)
            self.cookies.set("desk", session.token, domain="127.0.0.1")
            self.csrf = session.csrf

    def read(self, path: str, status: int = 200) -> str:
        """A page, whose CSRF token is kept."""
        response = self.get(path)
        assert response.status_code == status, response.text
        if found := re.search(r'name="csrf" value="([^"]*)"', response.text):
            self.csrf = found[1]
        return response.text

    def submit(self, path: str, **fields: str | list[str]) -> httpx.Response:
        """Send a form of the page."""
        return self.post(
            path, data={"csrf": self.csrf, **{name.replace("__", "."): value for name, value in fields.items()}}
        )

    def save(self, item: str, answer: object, base_version: int = 0, seconds: float = 1.0) -> httpx.Response:
        """Save an answer as a script does."""
        return self.post(
            f"/items/{item}/save",
            json={"answer": answer, "base_version": base_version, "seconds": seconds},
            headers={"X-CSRF-Token": self.csrf},
        )
