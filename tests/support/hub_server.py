"""A server that answers as the Hugging Face hub does, for whole, gated, missing and broken repositories."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c" * 40
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "missing": (401, "RepoNotFound"),
    "down": (502, None),
}
"""By the name of a repository: status and X-Error-Code of all answers."""


@contextmanager
def hub(files: Path) -> Iterator[str]:
    """A hub that has `files` as every repository of a name that is not in REFUSALS, at the revisions main and v1.

    The repository `bins` has no weights but a pickle. Yields the hub's address.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, with_body: bool) -> None:
            status, headers, body = respond(urlsplit(self.path).path.strip("/").split("/"))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def paths(name: str) -> list[Path]:
        kept = [path for path in sorted(files.iterdir()) if name != "bins" or path.suffix != ".safetensors"]
        return kept if name != "bins" else [*kept, files / "pytorch_model.bin"]

    def respond(parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        if parts[0] == "api":
            _, _, _, name, *rest = parts
        else:
            parts = parts[1:] if parts[0] == "datasets" else parts
            _, name, *rest = parts
        if name in REFUSALS:
            status, code = REFUSALS[name]
            return status, {} if code is None else {"X-Error-Code": code}, b""
        if rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if rest[:1] == ["tree"]:
            listed = [
                {
                    "type": "file",
                    "path": path.name,
                    "size": path.stat().st_size if path.exists() else 9,
                    "oid": "0" * 40,
                }
                for path in paths(name)
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
        if rest[:1] == ["resolve"]:
            path = files / rest[2]
            if not path.exists():
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
            body = path.read_bytes()
            return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body
        info = {"id": f"owner/{name}", "sha": COMMIT, "siblings": [], "private": False, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
