"""The server of a desk: uvicorn in this process, on this machine alone unless TLS or a proxy protects the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
import yaml

from psyco_ray.config import job_file
from psyco_ray.config.desk import Desk
from psyco_ray.config.errors import InputError
from psyco_ray.desk import app, people
from psyco_ray.desk.store import Store
from psyco_ray.run import preemption, storage

URL = "url"
"""File of a desk directory with the address that it is served at; `invite` reads it."""

SETTINGS = "desk.yaml"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANY = ("0.0.0.0", "::")
_PROXIES = "127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"
"""Who may name a client's address in X-Forwarded-For: machines of private networks. Its first entries are the client's
own words."""

_LAST_PORT = 65535
_CLOSE_S = 5  # until open connections are cut at a stop


@dataclass(frozen=True)
class Listening:
    """Where a desk is served.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        tls_cert: PEM file of the certificate and its chain; None: no TLS.
        tls_key: PEM file of its key.
        behind_proxy: whether a proxy on the way ends TLS.
        names: host names that people use; requests to others are refused.
    """

    host: str = "127.0.0.1"
    port: int = 8710
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False
    names: Sequence[str] = field(default_factory=tuple)

    @property
    def secure(self) -> bool:
        """Whether browsers reach the desk over TLS."""
        return self.tls_cert is not None or self.behind_proxy

    def hosts(self) -> list[str]:
        """Host names that are served."""
        own = [] if self.host in _ANY else [self.host]
        return list(dict.fromkeys([*self.names, *own, *(_LOOPBACK if self._is_loopback() else ())]))

    def check(self) -> None:
        """Refuse to send clients' words over a network in the clear.

        Raises:
            InputError: the host is not this machine's and nothing protects the way, nothing names the desk, or the
                certificate and its key cannot be loaded.
        """
        if not 0 <= self.port <= _LAST_PORT:
            raise InputError(f"--port {self.port} is no port; give one from 1 to {_LAST_PORT}, or 0 for a free one")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs both --tls-cert and --tls-key; give the PEM files of a certificate and its key")
        if not self._is_loopback() and not self.secure:
            raise InputError(
                f"--host {self.host} would send clients' words and passphrases over the network in the clear; give "
                "--tls-cert and --tls-key, or --behind-proxy if a proxy on the way ends TLS"
            )
        if not self.names and (self.behind_proxy or self.host in _ANY):
            raise InputError(
                f"{'--behind-proxy' if self.behind_proxy else f'--host {self.host}'} does not say by which name people "
                "reach the desk, and it answers to no other; give that name with --host-name"
            )
        if self.tls_cert is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key)
            except (OSError, ssl.SSLError) as error:
                reason = error.strerror or error
                raise InputError(
                    f"--tls-cert {self.tls_cert} and --tls-key {self.tls_key} cannot be loaded: {reason}; give the PEM "
                    "files of a certificate and its key, without a password"
                ) from None

    def url(self, port: int) -> str:
        """The address for a browser.

        Args:
            port: that the server listens on.
        """
        name = next(iter(self.names), None) or (self.host if self.host not in _ANY else "localhost")
        place = f"[{name}]" if ":" in name else name
        if self.behind_proxy:
            return f"https://{place}"  # the proxy's own port
        return f"{'https' if self.tls_cert else 'http'}://{place}:{port}"

    def _is_loopback(self) -> bool:
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def opened(directory: Path, seed: int | None, overlap: str | None) -> Store:
    """The desk in a directory, made if there is none, with the settings of the command line written to its desk.yaml.

    Args:
        directory: of the desk.
        seed: None: as it is.
        overlap: number of people for each item, or all; None: as it is.

    Raises:
        InputError: a setting is invalid, or it is another seed and people have items in the order of the old one.
    """
    file = directory / SETTINGS
    before = job_file.load_as(Desk, file) if file.exists() else Desk()
    given = {"seed": seed, "overlap": yaml.safe_load(overlap) if overlap else None}
    changed = {name: value for name, value in given.items() if value is not None}
    settings = job_file.parse(Desk, before.model_dump(mode="json") | changed, "the command line")
    if settings.seed != before.seed and _has_begun(directory):
        raise InputError(
            f"desk {directory} has the seed {before.seed}, by which people have their items; leave out --seed"
        )
    if settings != before or not file.exists():
        storage.write_text(file, job_file.dump(settings))
    return Store.open(directory, create=True)


def _has_begun(directory: Path) -> bool:
    """Whether somebody has an item."""
    exists = (directory / "desk.db").exists()
    return exists and Store.open(directory).read().execute("SELECT 1 FROM assignments").fetchone() is not None


def serve(store: Store, listening: Listening) -> None:
    """Serve a desk until a signal stops it. Its directory is locked by the caller.

    At the first start, and until a lead has joined, it prints the lead's invitation link.

    Args:
        store: of the desk.
        listening: where.

    Raises:
        InputError: as `Listening.check`, or the address is in use.
        Preempted: a signal came; requests in flight are answered first.
    """
    listening.check()
    with _bound(listening) as bound:
        url = listening.url(bound.getsockname()[1])
        config = uvicorn.Config(
            app.create_app(store, listening.hosts(), listening.secure),
            log_config=None,
            access_log=False,  # paths hold invitations
            server_header=False,
            proxy_headers=listening.behind_proxy,
            forwarded_allow_ips=_PROXIES,
            ssl_certfile=listening.tls_cert,
            ssl_keyfile=listening.tls_key,
            timeout_graceful_shutdown=_CLOSE_S,
        )
        server = _Server(config, store, url)
        with preemption.deferred():
            asyncio.run(server.serve(sockets=[bound]))


class _Server(uvicorn.Server):
    """A server that this program's signals stop, and that says where it is once it listens."""

    def __init__(self, config: uvicorn.Config, store: Store, url: str) -> None:
        super().__init__(config)
        self._store, self._url = store, url

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to `preemption`, which `on_tick` asks."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens and says where."""
        await super().startup(sockets)
        storage.write_text(self._store.directory / URL, self._url + "\n")
        print(f"desk: {self._url}", flush=True)
        if not any(person.role == "lead" for person in people.everyone(self._store)):
            token = people.invite(self._store, "lead", None)
            print(f"invitation of the lead, for one person: {self._url}/join/{token}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        return preemption.requested() or await super().on_tick(counter)


@contextlib.contextmanager
def _bound(listening: Listening) -> Iterator[socket.socket]:
    """The socket, bound and not yet listening.

    Raises:
        InputError: the address is in use or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listening.host, listening.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {listening.host} --port {listening.port} is no address: {error}; give another"
        ) from None
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"the desk cannot listen on {listening.host}, port {listening.port}: {reason}; choose another --port "
                "or --host"
            ) from None
        yield bound
