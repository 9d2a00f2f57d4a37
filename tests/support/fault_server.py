"""A judge that misbehaves: an OpenAI-compatible server in a process of its own.

python tests/fault_server.py --port 0 [--latency 0.3] [--share 0.1] [--kinds 429,500,cut,...]     prints its port

POST /v1/chat/completions answers with JSON of the wished schema, equal requests alike. A seeded share of the requests
is answered badly at the first try: transport faults (429, 500, cut, html, hang) and bad contents (malformed, truncated,
range). The model's name forces what always happens: status-401 and so on, quota, filter, refusal, no-usage, empty.
GET /counts tells what was served, GET /times when calls came. /v1/files and /v1/batches work as the batch API does.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections import Counter
from email.utils import formatdate

TRANSPORT = ("429", "500", "cut", "html", "hang")
CONTENT = ("malformed", "truncated", "range")


class Judge:
    """What to answer, and what was answered."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.key = ""  # the caller's, which a careless server repeats
        self.kinds = given.kinds.split(",") if given.kinds else []
        self.tries: Counter[bytes] = Counter()
        self.paid: Counter[bytes] = Counter()
        self.by_kind: Counter[str] = Counter()
        self.times: list[float] = []
        self.in_flight = self.max_in_flight = 0
        self.out_until = 0.0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}

    def fault(self, body: bytes, request: dict, digest: bytes) -> str | None:
        """How this request fails, if it does."""
        given = self.given
        if given.outage_after and len(self.times) == given.outage_after:
            self.out_until = time.monotonic() + given.outage_s
        if time.monotonic() < self.out_until:
            return "outage"
        if self.tries[digest] > given.tries or not self.kinds:
            return None
        drawn = hashlib.blake2b(body, digest_size=8, key=str(given.seed).encode()).digest()
        if int.from_bytes(drawn[:4]) >= given.share * 2**32:
            return None
        kind = self.kinds[drawn[4] % len(self.kinds)]
        asked_again = any(message["role"] == "assistant" for message in request["messages"])
        return None if kind in CONTENT and asked_again else kind

    def answer(self, body: bytes) -> tuple[int, str, bytes | None]:
        """Status, more headers and body; no body: the connection is to be cut, or, with status 0, left hanging."""
        request = json.loads(body)
        digest = hashlib.blake2b(body, digest_size=16).digest()
        self.tries[digest] += 1
        self.times.append(time.monotonic())
        kind = self.fault(body, request, digest) or request["model"]
        self.by_kind[kind] += 1
        if kind == "429":
            return 429, self.retry_after(), error("slow down", "rate_limit_exceeded")
        if kind in ("500", "outage"):
            return 500 if kind == "500" else 503, "", error("overloaded", "server_error")
        if kind in ("cut", "hang"):
            return 500 if kind == "cut" else 0, "", None
        if kind == "quota":
            return 429, self.retry_after(), error("you exceeded your quota", "insufficient_quota")
        if kind.startswith("status-"):
            return int(kind[7:10]), "", error(f"no, {self.key}", "nothing", kind[11:] or None)
        self.paid[digest] += 1
        if kind == "html":
            return 200, "", b"<html>come back later</html>"
        return 200, "", completion(request, digest, kind)

    def retry_after(self) -> str:
        wanted = self.given.retry_after
        if wanted.startswith("date:"):
            return f"Retry-After: {formatdate(time.time() + float(wanted[5:]), usegmt=True)}\r\n"
        return f"retry-after-ms: {wanted[3:]}\r\n" if wanted.startswith("ms:") else f"Retry-After: {wanted}\r\n"

    def counts(self) -> dict:
        return {
            "served": len(self.times),
            "by_kind": dict(self.by_kind),
            "distinct": len(self.tries),
            "paid": sum(self.paid.values()),
            "paid_twice": sum(count - 1 for count in self.paid.values()),
            "max_in_flight": self.max_in_flight,
            "batches": len(self.batches),
            "batch_requests": sum(batch["request_counts"]["total"] for batch in self.batches.values()),
        }

    def api(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Everything but chat completions."""
        found: object
        if path == "/counts":
            found = self.counts()
        elif path == "/times":
            found = self.times
        elif path == "/v1/files":
            name = f"file-{len(self.files)}"
            self.files[name] = uploaded(body)
            found = {"id": name, "object": "file", "bytes": len(body), "created_at": 0, "filename": name}
        elif path.startswith("/v1/files/"):
            return 200, self.files[path.split("/")[3]]
        elif path.startswith("/v1/batches") and method == "POST":
            found = self.new_batch(json.loads(body)["input_file_id"])
            if self.given.lose_batch and len(self.batches) == 1:
                return 0, b""
        elif path.startswith("/v1/batches/"):
            found = self.progress(self.batches[path.split("/")[3]])
        elif path.startswith("/v1/batches"):
            found = {"object": "list", "data": list(self.batches.values()), "has_more": False}
        else:
            return 404, error("no such path", "not_found")
        return 200, json.dumps(found).encode()

    def new_batch(self, file: str) -> dict:
        name = f"batch-{len(self.batches)}"
        total = len(self.files[file].splitlines())
        batch = {"id": name, "object": "batch", "status": "in_progress", "input_file_id": file, "created_at": 0}
        batch |= {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch |= {"request_counts": {"total": total, "completed": 0, "failed": 0}, "made": time.monotonic()}
        self.batches[name] = batch
        return batch

    def progress(self, batch: dict) -> dict:
        ready = time.monotonic() - batch["made"] >= self.given.batch_s
        if ready and batch["status"] == "in_progress":
            lines: dict[str, list[bytes]] = {"output": [], "error": []}
            for line in self.files[batch["input_file_id"]].splitlines():
                asked = json.loads(line)
                status, _, body = self.answer(json.dumps(asked["body"]).encode())
                response = {"status_code": status, "body": json.loads(body or b"{}")}
                said = {"id": "x", "custom_id": asked["custom_id"], "response": response, "error": None}
                lines["output" if status == 200 else "error"].append(json.dumps(said).encode())
            for what, found in lines.items():
                if found:
                    name = f"file-{len(self.files)}"
                    self.files[name] = b"\n".join(found) + b"\n"
                    batch[f"{what}_file_id"] = name
            batch["status"] = "completed"
        return batch


def error(message: str, code: str, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "type": code, "param": param}}).encode()


def completion(request: dict, digest: bytes, kind: str) -> bytes:
    wished = request.get("response_format", {}).get("json_schema", {}).get("schema")
    text = json.dumps(example(wished, digest, kind == "range")) if wished else f"I hear you. {digest.hex()}"
    message = {"role": "assistant", "content": text}
    ended = "stop"
    if kind == "malformed":
        message["content"] = text.replace("{", "(")
    elif kind == "truncated":
        message["content"], ended = text[: len(text) // 2], "length"
    elif kind == "filter":
        message["content"], ended = "", "content_filter"
    elif kind == "refusal":
        message |= {"content": None, "refusal": "I would rather not"}
    elif kind == "empty":
        message["content"] = ""
    usage = {"prompt_tokens": sum(len(m["content"]) for m in request["messages"]) // 4, "completion_tokens": 40}
    found = {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "usage": usage}
    if kind == "no-usage":
        del found["usage"]
    return json.dumps(found | {"choices": [{"index": 0, "message": message, "finish_reason": ended}]}).encode()


def example(schema: dict, digest: bytes, wrong: bool) -> object:
    """A value of a schema, drawn by a hash; `wrong`: its numbers are outside of their range."""
    drawn = digest[0]
    digest = digest[1:] + digest[:1]
    if "enum" in schema:
        return "nonsense" if wrong else schema["enum"][drawn % len(schema["enum"])]
    if schema["type"] == "object":
        found = {}
        for name, inner in schema["properties"].items():
            found[name] = example(inner, digest, wrong)
            digest = digest[1:] + digest[:1]
        return found
    if schema["type"] == "array":
        return [example(schema["items"], digest, wrong)]
    if schema["type"] in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 9)
        return high + 1 if wrong else low + drawn % (high - low + 1)
    return {"boolean": drawn % 2 == 0}.get(schema["type"], f"because {drawn}")


def uploaded(body: bytes) -> bytes:
    """The file in a multipart body."""
    edge = body[: body.index(b"\r\n")]
    part = next(part for part in body.split(edge) if b"filename=" in part[:300])
    return part[part.index(b"\r\n\r\n") + 4 : -2]


class Connection(asyncio.Protocol):
    """HTTP/1.1 as far as a client that we know speaks it; kept lean, for it is asked very often."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.buffer = judge, bytearray()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end])
            lower = head.lower()
            at = lower.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                if b"expect: 100" in lower:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            self.request(head, body)

    def request(self, head: bytes, body: bytes) -> None:
        judge = self.judge
        if not judge.key and (at := head.lower().find(b"authorization:")) >= 0:
            judge.key = head[at + 14 :].split(b"\r\n", 1)[0].decode().split()[-1]
        if not head.startswith(b"POST /v1/chat/completions "):
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            status, found = judge.api(method, path.split("?")[0], body)
            return self.send(status, "", found if status else None)
        judge.in_flight += 1
        judge.max_in_flight = max(judge.max_in_flight, judge.in_flight)
        status, headers, found = judge.answer(body)
        if status == 0:
            judge.in_flight -= 1
        elif judge.given.latency:
            asyncio.get_running_loop().call_later(judge.given.latency, self.finish, status, headers, found)
        else:
            self.finish(status, headers, found)
        return None

    def finish(self, status: int, headers: str, body: bytes | None) -> None:
        self.judge.in_flight -= 1
        self.send(status, headers, body)

    def send(self, status: int, headers: str, body: bytes | None) -> None:
        if body is None:
            self.transport.write(
                b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"id": "x'
            )
            self.transport.close()
            return
        kind = "text/html" if body.startswith(b"<html>") else "application/json"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve(given: argparse.Namespace) -> None:
    judge = Judge(given)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(judge), "127.0.0.1", given.port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a chat completion")
    parser.add_argument("--share", type=float, default=0.0, help="of the requests that fail")
    parser.add_argument("--kinds", default="", help=f"how, of {','.join(TRANSPORT + CONTENT)}")
    parser.add_argument("--tries", type=int, default=1, help="so often such a request fails before it succeeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-after", default="1", help="seconds, ms:milliseconds or date:seconds from now")
    parser.add_argument("--outage-after", type=int, default=0, help="calls after which an outage begins")
    parser.add_argument("--outage-s", type=float, default=2.0)
    parser.add_argument("--batch-s", type=float, default=0.0, help="seconds until a batch is done")
    parser.add_argument("--lose-batch", action="store_true", help="the first batch is made, but nobody is told")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
