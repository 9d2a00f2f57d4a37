"""A judge that is away for a minute while the other faults are tried, so that nobody waits for it."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.judging import run, server, told


@pytest.fixture(scope="session", autouse=True)
def outage(request, tmp_path_factory):
    """80 calls, 8 in flight; after 20 the server gives nothing but errors for 60 s. Its answers, counts and seconds."""
    if not any(item.path.name == "test_outage.py" for item in request.session.items):
        yield None
        return

    def ask():
        with server(outage_after=20, outage_s=60.0, latency=0.01) as url:
            began = time.monotonic()
            asked = run(url, tmp_path_factory.mktemp("outage"), 80, concurrency=8, key_env=None)
            return asked, told(url), time.monotonic() - began

    with ThreadPoolExecutor(1) as apart:
        yield apart.submit(ask)
