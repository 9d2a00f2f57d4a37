"""Nodes of a cluster that die or are taken away."""

import json
import subprocess
import sys

import pytest
from support.paths import SUPPORT

pytestmark = pytest.mark.slow
SCRIPT = SUPPORT / "cluster_of_nodes.py"


def test_work_goes_on_when_a_node_dies_and_leaves_a_node_that_is_drained() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"recovery: node killed: {found['seconds']} s until all members worked again")
    assert found["items"], "an item was lost or came twice"
    assert found["used"] == 3
    assert not found["late_on_second"]
    assert not found["late_on_drained"]
    assert any("died at work" in text for text in found["said"])
    assert any("its node is being drained" in text for text in found["said"])
