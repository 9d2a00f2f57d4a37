"""Loss and drain of cluster nodes."""

import json
import subprocess
import sys

import pytest
from support.paths import SUPPORT

pytestmark = pytest.mark.slow
SCRIPT = SUPPORT / "cluster_of_nodes.py"


@pytest.mark.long
def test_work_survives_a_dead_node_and_leaves_a_draining_one() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(f"recovery: node killed: {seen['seconds']} s until all actors worked again")
    assert seen["items"], "an item was lost or came twice"
    assert seen["used"] == 3
    assert not seen["late_on_second"]
    assert not seen["late_on_drained"]
    assert any("died at work" in text for text in seen["logged"])
    assert any("its node is being drained" in text for text in seen["logged"])
