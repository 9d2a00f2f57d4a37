"""The server of a desk as users start it: a real process over HTTP and TLS."""

import argparse
import contextlib
import datetime
import ipaddress
import json
import re
import shlex
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from psyco_ray.cli import train
from psyco_ray.cli.main import build_parser, main
from psyco_ray.config.errors import INPUT_ERROR, RESUMABLE, InputError
from psyco_ray.config.training import Job
from psyco_ray.desk.serve import Listening, opened
from psyco_ray.desk.store import Store

HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed")
AND_TELL = f"""
import sys
from psyco_ray.cli import train
from psyco_ray.cli.main import build_parser, main
code = main(sys.argv[1:])
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""


@contextlib.contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """A running server, its address, and the file of its output."""
    command = [sys.executable, "-c", AND_TELL, "desk", "serve", *map(str, arguments), "--port", "0"]
    out = Path(str(arguments[0]) + ".out")
    with open(out, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"^desk: (\S+)$", out.read_text(), re.MULTILINE)):
            assert process.poll() is None, out.read_text()
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.05)
        yield process, found[1], out
    finally:
        process.kill()
        process.wait()


def fetched(url: str, context: ssl.SSLContext | None = None, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ended(process: subprocess.Popen, number: int) -> int:
    process.send_signal(number)
    return process.wait(timeout=20)


def test_a_desk_is_served_until_a_signal_and_then_goes_on(tmp_path) -> None:
    desk = tmp_path / "desk"
    with served(desk, "--from", "sample", "--count", 3, "--overlap", 2, "--seed", 7) as (process, url, out):
        assert fetched(f"{url}/healthz")[0] == 200
        status, page = fetched(f"{url}/")
        assert status == 200
        assert "passphrase" in page.casefold()
        assert fetched(f"{url}/healthz", host="evil.example")[0] in (200, 421)
        assert fetched(f"{url}/login", host="evil.example")[0] == 421  # DNS rebinding
        invitation = re.search(r"http://\S+/join/\S+", out.read_text())
        assert invitation, out.read_text()
        assert fetched(invitation[0])[0] == 200
        second = subprocess.run(
            [sys.executable, "-m", "psyco_ray.cli", "desk", "serve", desk], capture_output=True, text=True, check=False
        )
        assert second.returncode == INPUT_ERROR
        assert "is in use by process" in second.stderr
        assert ended(process, signal.SIGTERM) == RESUMABLE
    told = out.read_text()
    assert "sample: 3 new items" in told
    assert "psyco-ray: stopped" in told
    assert "heavy: []" in told, "starts in seconds: no engine is imported"
    assert not any(item.speech[:20] in told for item in Store.open(desk).items())
    settings = Store.open(desk).settings
    assert (settings.overlap, settings.seed) == (2, 7)
    with served(desk) as (process, again, out):  # the settings and items stay
        assert fetched(f"{again}/healthz")[0] == 200
        assert Store.open(desk).settings == settings
        assert main(["desk", "invite", str(desk), "--role", "reviewer"]) == 0
        assert ended(process, signal.SIGINT) == RESUMABLE


def test_the_terminals_end_stops_a_desk_and_tls_protects_it(tmp_path) -> None:
    cert, key = certificate(tmp_path)
    with served(tmp_path / "desk", "--from", "sample", "--count", 2, "--tls-cert", cert, "--tls-key", key) as (
        process,
        url,
        _,
    ):
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        assert fetched(f"{url}/healthz", trusting)[0] == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            fetched(f"{url}/healthz")
        assert ended(process, signal.SIGHUP) == RESUMABLE


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of this machine's, which signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    own = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(own, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (directory / "cert.pem").write_bytes(made.public_bytes(pem))
    (directory / "key.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return directory / "cert.pem", directory / "key.pem"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "over the network in the clear; give --tls-cert"),
        (["--host", "0.0.0.0", "--behind-proxy"], "give that name with --host-name"),
        (["--behind-proxy"], "give that name with --host-name"),
        (["--host", "192.0.2.7", "--behind-proxy", "--host-name", "desk.org"], "cannot listen on 192.0.2.7"),
        (["--host", "no such host"], "in the clear"),
        (["--tls-cert", "cert.pem"], "needs both --tls-cert and --tls-key"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "cannot be loaded"),
        (["--port", "70000"], "--port 70000 is no port"),
        (["--overlap", "0"], "overlap"),
        (["--overlap", "some"], "overlap"),
    ],
)
def test_what_would_be_unsafe_or_wrong_is_refused_in_a_sentence(tmp_path, capsys, arguments, says) -> None:
    assert (
        main(["desk", "serve", str(tmp_path / "desk"), "--from", "sample", "--count", "1", *arguments]) == INPUT_ERROR
    )
    told = capsys.readouterr().err
    assert says in told
    assert told.splitlines()[-1].startswith("psyco-ray: "), "no traceback"


def test_a_desk_without_items_names_the_way_to_some(tmp_path, capsys) -> None:
    assert main(["desk", "serve", str(tmp_path / "desk")]) == INPUT_ERROR
    assert "has no items; name their source with --from" in capsys.readouterr().err
    for command in (["invite"], ["export"], ["export", "--format", "argilla"]):
        assert main(["desk", command[0], str(tmp_path / "none"), *command[1:]]) == INPUT_ERROR
    assert "is no desk" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["desk", "serve", "s3://bucket/desk", "--from", "sample"])
    assert "s3://bucket/desk is remote" in capsys.readouterr().err


def test_the_seed_is_fixed_once_somebody_has_an_item(tmp_path) -> None:
    store = opened(tmp_path / "desk", 3, None)
    assert store.settings.seed == 3
    assert opened(tmp_path / "desk", 4, "all").settings.seed == 4
    with store.transaction() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute("INSERT INTO people(id, name, role, passphrase, created_at) VALUES(1, 'a', 'annotator', '', 0)")
        db.execute("INSERT INTO items VALUES('i', 'pair', 's', 's', 't', '[]', '[]', '{}', 0, 0)")
        db.execute("INSERT INTO assignments VALUES('i', 1, 0, 0, 0, NULL)")
    assert opened(tmp_path / "desk", 4, None).settings.seed == 4
    with pytest.raises(InputError, match="has the seed 4, by which people have their items; leave out --seed"):
        opened(tmp_path / "desk", 5, None)
    assert opened(tmp_path / "desk", None, "3").settings.overlap == 3


@pytest.mark.parametrize(
    ("listening", "hosts", "url"),
    [
        (Listening(), ["127.0.0.1", "localhost", "::1"], "http://127.0.0.1:9"),
        (Listening(host="::1"), ["::1", "localhost", "127.0.0.1"], "http://[::1]:9"),
        (
            Listening("0.0.0.0", behind_proxy=True, names=("desk.example.org",)),
            ["desk.example.org"],
            "https://desk.example.org",
        ),
        (Listening("0.0.0.0", tls_cert=Path("c"), names=("desk.local",)), ["desk.local"], "https://desk.local:9"),
        (Listening("10.0.0.4", tls_cert=Path("c")), ["10.0.0.4"], "https://10.0.0.4:9"),
    ],
)
def test_names_and_address(listening, hosts, url) -> None:
    assert sorted(listening.hosts()) == sorted(hosts)
    assert listening.url(9) == url


def test_the_demo_ends_with_the_line_that_opens_its_answers(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(train, "_in_run", lambda job, options, work, check: work(FakeLedger(), None) or 0)
    monkeypatch.setattr(train, "_iterate", lambda job, ledger, telemetry: print("report: …"))
    monkeypatch.setattr("psyco_ray.training.reward_trainer.train_reward", lambda jobs, ledger, telemetry: None)
    monkeypatch.setattr(sys, "argv", ["psyco-ray"])
    run = tmp_path / "my runs" / "demo"
    assert train.demo(Job(run_dir=str(run)), argparse.Namespace()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(line.partition(": ")[2])
    assert command == ["psyco-ray", "desk", "serve", f"{run}-desk", "--from", str(run)]
    parsed = build_parser().parse_args(command[1:])
    assert (parsed.directory, parsed.sources) == (Path(f"{run}-desk"), [str(run)])


class FakeLedger:
    def place(self, name: str) -> str:
        return name


def test_commands_exchange_with_other_tools(tmp_path, capsys) -> None:
    desk = tmp_path / "desk"
    store = opened(desk, None, None)
    fields = {"prompt": "I am tired.", "response-1": "Rest.", "response-2": "Of what?"}
    answers = {"overall": [{"value": "response-2", "user_id": "u"}]}
    (tmp_path / "records.json").write_text(json.dumps([{"id": "1", "fields": fields, "responses": answers}]))
    assert main(["desk", "import", str(desk), str(tmp_path / "records.json"), "--format", "argilla"]) == 0
    assert "1 new items, 1 new judgements" in capsys.readouterr().out
    assert len(store.items()) == 1
    assert main(["desk", "export", str(desk)]) == 0
    assert "1 pairs, 0 pairs of edits, 0 approved drafts, 1 judgements of 1 people" in capsys.readouterr().out
    assert (desk / "export" / "pairs.parquet").exists()
    assert main(["desk", "export", str(desk), "--format", "label-studio"]) == 0
    assert (desk / "export-label-studio" / "pair" / "tasks.json").exists()
