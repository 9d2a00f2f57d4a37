"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import socket

from psyco_ray.config.errors import InputError


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
            ray.init(address=address, **quiet)
        except OSError as error:
            raise InputError(
                f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}); check --address and RAY_ADDRESS"
            ) from None
    else:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            **quiet,
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the line above configures Ray Data's logging
