"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import atexit
import contextlib
import functools
import ipaddress
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from psyco_ray.config.errors import InputError
from psyco_ray.run import preemption, storage

_log = logging.getLogger(__name__)


def prepare_local() -> None:
    """Set the environment of a Ray that serves this process alone. Only effective before Ray is imported.

    A token of this run keeps other users of the machine out; Ray itself would write one into the home directory.
    """
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # Ray's switch to loopback, the default where it supports no clusters
    )
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # of learner ranks and of engines with several GPUs
        os.environ.setdefault(variable, _loopback_interface())


def _loopback_interface() -> str:
    """The name of the network interface with the address 127.0.0.1, such as `lo`."""
    return next(name for name, of in psutil.net_if_addrs().items() if "127.0.0.1" in [each.address for each in of])


def _check_reachable(address: str) -> None:
    """Raises an OSError if nothing listens at the address; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():  # other addresses are names, such as `auto`
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def connect(address: str | None) -> None:
    """Connects to a Ray cluster, or starts one on this machine for this process.

    Args:
        address: of the cluster; None: RAY_ADDRESS, else a new local cluster.

    Raises:
        InputError: no cluster answers there.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": "warning", "log_to_driver": bool(os.environ.get("PSYCO_RAY_ACTOR_LOGS"))}
    if address:
        try:
            _check_reachable(address)
            _init(address=address, **quiet)
        except OSError as error:
            raise InputError(
                f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}); check --address and RAY_ADDRESS"
            ) from None
    else:
        with _new_sessions():
            _init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=False,
                object_spilling_directory=str(_spilling_directory()),
                **quiet,
            )
        if not ipaddress.ip_address(host := ray.util.get_node_ip_address()).is_loopback:
            _log.warning(f"the local Ray listens on {host}, because Ray was imported before `prepare_local`")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the line above configures Ray Data's logging


def _spilling_directory() -> Path:
    """A directory of this process for objects that do not fit into memory; Ray's own can be read by every user."""
    place = storage.private_dir(storage.cache_dir() / "spilled")
    for left in place.iterdir():  # by commands that were killed on this machine; others may share the cache
        machine, _, process = left.name.rpartition("-")
        if machine == platform.node() and process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    own = storage.private_dir(place / f"{platform.node()}-{os.getpid()}")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _init(**settings: Any) -> None:
    """``ray.init``; its handler of SIGTERM, which exits, gives way to that of the command."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings)
    except SystemExit:  # by Ray's handler
        raise preemption.Preempted from None
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _new_sessions() -> Iterator[None]:
    """A context in which every process that starts gets a session of its own.

    A signal to the group of the command, as by Ctrl-C, `timeout` or a batch system, must not end Ray first: the
    command needs it to write its checkpoint. Ray has no option for that. Its daemons still end with the command,
    because each asks the kernel to (PR_SET_PDEATHSIG).
    """
    start = subprocess.Popen.__init__
    subprocess.Popen.__init__ = functools.partialmethod(start, start_new_session=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
