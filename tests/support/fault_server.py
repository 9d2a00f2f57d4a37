"""A faulty judge: an OpenAI-compatible server in a separate process.

python tests/support/fault_server.py --port 0 [--latency 0.3] [--share 0.1] [--kinds 429,500,cut]   prints its port

POST /v1/chat/completions answers with JSON of the requested schema; equal requests get equal answers. A seeded share of
the requests fails at the first attempt: transport faults (429, 500, cut, html, hang) and invalid contents (malformed,
truncated, range). The model's name forces a fault of every call: status-401 etc., quota, filter, refusal, no-usage,
empty, o1-thinks (for 200 tokens), limited, too-large, echo, moved, odd-error,
usage-JSON, drafts (a longer JSON in its reasoning), wavers (two verdicts at
first). GET /counts returns counts, GET /times the arrival times of calls. /v1/files and /v1/batches are the batch API.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections import Counter
from email.utils import formatdate

ENQUEUED = (
    "Enqueued token limit reached for judge in organization org. Limit: 90,000 enqueued tokens. Please try again once "
    "some in_progress batches have been completed."
)
TRANSPORT = ("429", "500", "cut", "html", "hang")
CONTENT = ("malformed", "truncated", "range")
REFUSED = ("outage", "limited", "too-large", "quota", "echo", "moved", "odd-error")
ANSWER_TOKENS = 40


class Judge:
    """Decides the answers and counts them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.key = ""  # the caller's, repeated in error messages
        self.kinds = options.kinds.split(",") if options.kinds else []
        self.tries: Counter[bytes] = Counter()
        self.paid: Counter[bytes] = Counter()
        self.by_kind: Counter[str] = Counter()
        self.times: list[float] = []
        self.in_flight = self.max_in_flight = 0
        self.out_until = 0.0
        self.files: dict[str, bytes] = {}
        self.files_made = 0
        self.billed = [0, 0]  # prompt and completion tokens, as a provider counts: also of answers that get lost
        self.billed_once = [0, 0]  # without answers to requests that were answered before
        self.batches: dict[str, dict] = {}

    def fault(self, body: bytes, request: dict, digest: bytes) -> str | None:
        """The fault of this request; None without one."""
        options = self.options
        if options.outage_after and len(self.times) == options.outage_after:
            self.out_until = time.monotonic() + options.outage_s
        if time.monotonic() < self.out_until:
            return "outage"
        if self.tries[digest] > options.tries or not self.kinds:
            return None
        drawn = hashlib.blake2b(body, digest_size=8, key=str(options.seed).encode()).digest()
        if int.from_bytes(drawn[:4]) >= options.share * 2**32:
            return None
        kind = self.kinds[drawn[4] % len(self.kinds)]
        repeated = any(message["role"] == "assistant" for message in request["messages"])
        return None if kind in CONTENT and repeated else kind

    def answer(self, body: bytes) -> tuple[int, str, bytes | None]:
        """Status, extra headers and body. Without a body the connection is cut, or left open if the status is 0."""
        request = json.loads(body)
        digest = hashlib.blake2b(body, digest_size=16).digest()
        self.tries[digest] += 1
        self.times.append(time.monotonic())
        kind = self.fault(body, request, digest) or request["model"]
        self.by_kind[kind] += 1
        if kind in ("hang", "html", "cut") or not (kind.isdigit() or kind in REFUSED):
            self.billed[0] += prompt_tokens(request)
            self.billed[1] += ANSWER_TOKENS
        if kind == "429":
            return 429, self.retry_after(), error("slow down", "rate_limit_exceeded")
        if kind in ("500", "outage"):
            return 500 if kind == "500" else 503, "", error("overloaded", "server_error")
        if kind in ("cut", "hang"):
            return 500 if kind == "cut" else 0, "", None
        if kind == "limited":
            return 429, "", error("Rate limit reached on requests per day (RPD): Limit 9", "rate_limit_exceeded")
        if kind == "too-large":
            said = "Request too large for judge on tokens per min (TPM): Limit 30000, Requested 31000."
            return 429, self.retry_after(), error(said, "rate_limit_exceeded")
        if kind == "quota":
            return 429, self.retry_after(), error("you exceeded your quota", "insufficient_quota")
        if kind == "echo":
            said = " ".join(message["content"] for message in request["messages"])
            return 422, "", error(f"I cannot read {json.dumps(said)} sent with {self.key}", "nothing")
        if kind == "moved":
            return 307, "Location: http://127.0.0.1:1/v1/chat/completions?for=you\r\n", b""
        if kind == "odd-error":
            return 400, "", json.dumps({"error": {"message": ["no"], "code": {}, "type": [], "param": {}}}).encode()
        if kind.startswith("status-"):
            return int(kind[7:10]), "", error(f"no, {self.key}", "nothing", kind[11:] or None)
        self.paid[digest] += 1
        if self.paid[digest] == 1:
            self.billed_once[0] += prompt_tokens(request)
            self.billed_once[1] += ANSWER_TOKENS
        if kind == "html":
            return 200, "", b"<html>come back later</html>"
        return 200, "", completion(request, digest, kind)

    def retry_after(self) -> str:
        value = self.options.retry_after
        if value.startswith("date:"):
            return f"Retry-After: {formatdate(time.time() + float(value[5:]), usegmt=True)}\r\n"
        return f"retry-after-ms: {value[3:]}\r\n" if value.startswith("ms:") else f"Retry-After: {value}\r\n"

    def counts(self) -> dict:
        return {
            "served": len(self.times),
            "by_kind": dict(self.by_kind),
            "distinct": len(self.tries),
            "paid": sum(self.paid.values()),
            "paid_twice": sum(count - 1 for count in self.paid.values()),
            "max_in_flight": self.max_in_flight,
            "batches": len(self.batches),
            "billed": self.billed,
            "billed_once": self.billed_once,
            "files": len(self.files),
            "files_made": self.files_made,
            "batch_requests": sum(
                batch["request_counts"]["total"] for batch in self.batches.values() if batch["status"] != "failed"
            ),
            "failed_batches": sum(batch["status"] == "failed" for batch in self.batches.values()),
        }

    def api(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """All paths except chat completions."""
        reply: object
        if path == "/counts":
            reply = self.counts()
        elif path == "/times":
            reply = self.times
        elif path == "/v1/files":
            name = self.new_file()
            self.files[name] = uploaded(body)
            reply = {"id": name, "object": "file", "bytes": len(body), "created_at": 0, "filename": name}
        elif path.startswith("/v1/files/") and method == "DELETE":
            name = path.split("/")[3]
            if self.files.pop(name, None) is None:
                return 404, error("no such file", "not_found")
            reply = {"id": name, "object": "file", "deleted": True}
        elif path.startswith("/v1/files/"):
            return 200, self.files[path.split("/")[3]]
        elif path.startswith("/v1/batches") and method == "POST":
            reply = self.new_batch(json.loads(body)["input_file_id"])
            if self.options.refuse_creation and self.over_limit(reply, "validating", "in_progress"):
                del self.batches[reply["id"]]
                return 429, error(ENQUEUED, "token_limit_exceeded")
            if self.options.lose_batch and len(self.batches) == 1:
                return 0, b""
        elif path.startswith("/v1/batches/"):
            reply = self.progress(self.batches[path.split("/")[3]])
        elif path.startswith("/v1/batches"):
            reply = {"object": "list", "data": list(self.batches.values()), "has_more": False}
        else:
            return 404, error("no such path", "not_found")
        return 200, json.dumps(reply).encode()

    def new_file(self) -> str:
        self.files_made += 1
        return f"file-{self.files_made}"

    def new_batch(self, file: str) -> dict:
        name = f"batch-{len(self.batches)}"
        total = len(self.files[file].splitlines())
        batch = {"id": name, "object": "batch", "status": "validating", "input_file_id": file, "created_at": 0}
        batch |= {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch |= {"request_counts": {"total": total, "completed": 0, "failed": 0}, "created": time.monotonic()}
        self.batches[name] = batch
        return batch

    def over_limit(self, batch: dict, *statuses: str) -> bool:
        """Whether a batch holds more requests than may be enqueued, together with others."""
        others = [b for b in self.batches.values() if b["status"] in statuses and b is not batch]
        enqueued = sum(b["request_counts"]["total"] for b in [*others, batch])
        return bool(self.options.enqueued) and enqueued > self.options.enqueued

    def progress(self, batch: dict) -> dict:
        if batch["status"] == "validating":
            failed = not self.options.refuse_creation and self.over_limit(batch, "in_progress")
            batch["status"] = "failed" if failed else "in_progress"
            if failed:
                batch["errors"] = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": ENQUEUED}]}
                return batch
        ready = time.monotonic() - batch["created"] >= self.options.batch_s
        if ready and batch["status"] == "in_progress":
            lines: dict[str, list[bytes]] = {"output": [], "error": []}
            for line in self.files[batch["input_file_id"]].splitlines():
                asked = json.loads(line)
                status, _, body = self.answer(json.dumps(asked["body"]).encode())
                response = {"status_code": status, "body": json.loads(body or b"{}")}
                said = {"id": "x", "custom_id": asked["custom_id"], "response": response, "error": None}
                lines["output" if status == 200 else "error"].append(json.dumps(said).encode())
            for what, kind_lines in lines.items():
                if kind_lines:
                    name = self.new_file()
                    if self.options.garble:  # a blank line, one that is cut, and bodies of other forms
                        text = json.loads(kind_lines[1]) | {"response": {"status_code": 200, "body": "answered"}}
                        kind_lines[1:3] = [b"", json.dumps(text).encode(), kind_lines[2][:40], b"[1]"]
                    self.files[name] = b"\n".join(kind_lines) + b"\n"
                    batch[f"{what}_file_id"] = name
            batch["status"] = "completed"
        return batch


def error(message: str, code: str, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "type": code, "param": param}}).encode()


def prompt_tokens(request: dict) -> int:
    return sum(len(message["content"]) for message in request["messages"]) // 4


def completion(request: dict, digest: bytes, kind: str) -> bytes:
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema")
    text = json.dumps(example(schema, digest, kind == "range")) if schema else f"I hear you. {digest.hex()}"
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
    elif kind == "drafts":
        draft = json.dumps(example(schema, digest, True) | {"note": "a draft, longer than the answer" * 9})
        message["content"] = f"First I thought {draft}, but no.</think>\n```json\n{text}\n```"
    elif kind == "wavers" and not any(said["role"] == "assistant" for said in request["messages"]):
        message["content"] = f"{text}\nOn second thought: {json.dumps(example(schema, digest[::-1], False))}"
    elif kind == "empty":
        message["content"] = ""
    elif kind == "o1-thinks" and request["max_completion_tokens"] < 200:
        message["content"], ended = "", "length"
    usage = {"prompt_tokens": prompt_tokens(request), "completion_tokens": ANSWER_TOKENS}
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "usage": usage}
    if kind == "no-usage":
        del reply["usage"]
    if kind.startswith("usage-"):
        reply["usage"] = json.loads(kind.removeprefix("usage-"))
    return json.dumps(reply | {"choices": [{"index": 0, "message": message, "finish_reason": ended}]}).encode()


def example(schema: dict, digest: bytes, wrong: bool) -> object:
    """A value of a schema, by a hash; `wrong`: numbers are out of range."""
    drawn = digest[0]
    digest = digest[1:] + digest[:1]
    if "enum" in schema:
        return "nonsense" if wrong else schema["enum"][drawn % len(schema["enum"])]
    if schema["type"] == "object":
        value = {}
        for name, inner in schema["properties"].items():
            value[name] = example(inner, digest, wrong)
            digest = digest[1:] + digest[:1]
        return value
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
    """The subset of HTTP/1.1 that the client uses; fast, because it serves many calls."""

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
            status, reply = judge.api(method, path.split("?")[0], body)
            return self.send(status, "", reply if status else None)
        judge.in_flight += 1
        judge.max_in_flight = max(judge.max_in_flight, judge.in_flight)
        status, headers, reply = judge.answer(body)
        if status == 0:
            judge.in_flight -= 1
        elif judge.options.latency:
            asyncio.get_running_loop().call_later(judge.options.latency, self.finish, status, headers, reply)
        else:
            self.finish(status, headers, reply)
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


async def serve(options: argparse.Namespace) -> None:
    judge = Judge(options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(judge), "127.0.0.1", options.port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a chat completion")
    parser.add_argument("--share", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--kinds", default="", help=f"faults, of {','.join(TRANSPORT + CONTENT)}")
    parser.add_argument("--tries", type=int, default=1, help="failures of such a request before it succeeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-after", default="1", help="seconds, ms:milliseconds or date:seconds from now")
    parser.add_argument("--outage-after", type=int, default=0, help="calls after which an outage begins")
    parser.add_argument("--outage-s", type=float, default=2.0)
    parser.add_argument("--batch-s", type=float, default=0.0, help="seconds until a batch is done")
    parser.add_argument("--lose-batch", action="store_true", help="the reply to the first batch's creation is lost")
    parser.add_argument("--enqueued", type=int, default=0, help="requests that all batches in progress may hold")
    parser.add_argument("--garble", action="store_true", help="damage two lines of each batch's answers")
    parser.add_argument("--refuse-creation", action="store_true", help="above that at once, not in validation")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
