"""Makes the lint importable and renders the manifests of a job."""

import json
import sys

import pytest
from support.manifests import CLUSTER

sys.path.insert(0, str(CLUSTER))


@pytest.fixture(scope="module")
def multi_node_job() -> list[dict]:
    """The manifests of the multi-node job, without shared parts."""
    from lint_manifests import rendered

    return json.loads(json.dumps(rendered(CLUSTER / "k8s/overlays/multi-node/job")))
