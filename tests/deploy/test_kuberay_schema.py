"""KubeRay's own schemas accept the manifests; KUBERAY_CRDS names the directory with KubeRay's CRD files."""

import copy
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from lint_manifests import rendered
from support.manifests import HEAD, OVERLAYS, RAY, ROLLOUT, relative, set_field

CRDS = os.environ.get("KUBERAY_CRDS")


def strict(schema):
    """The schema of a CRD such that unknown fields are errors, as in the API server's strict mode."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if result.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    properties = result.get("properties")
    if isinstance(properties, dict) and "type" in result:
        if not result.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
        defaults = {key for key, value in properties.items() if isinstance(value, dict) and "default" in value}
        result["required"] = [key for key in result.get("required", []) if key not in defaults]
    return result


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    if CRDS is None:
        pytest.skip("KUBERAY_CRDS names no directory with KubeRay's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml")
    schemas = {}
    for file, kind in (("ray.io_rayclusters.yaml", "RayCluster"), ("ray.io_rayjobs.yaml", "RayJob")):
        versions = yaml.safe_load((Path(CRDS) / file).read_text())["spec"]["versions"]
        schemas[kind] = strict(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])
        schemas[kind]["properties"]["metadata"] = {"type": "object"}
    return schemas


@pytest.mark.parametrize("path", OVERLAYS, ids=relative)
def test_kuberay_knows_every_field(path: Path, schemas: dict[str, dict]) -> None:
    for manifest in rendered(path):
        if manifest["kind"] in schemas:
            jsonschema.validate(manifest, schemas[manifest["kind"]])


@pytest.mark.parametrize(
    ("field", "value"),
    [("spec.rayClusterSpec.autoscaler", {}), (f"{ROLLOUT}.replicas", "3"), (f"{HEAD}.{RAY}.imagePullpolicy", "Never")],
)
def test_the_schema_refuses_unknown_fields_and_wrong_types(
    field: str, value: object, multi_node_job: list[dict], schemas: dict[str, dict]
) -> None:
    job = copy.deepcopy(next(m for m in multi_node_job if m["kind"] == "RayJob"))
    set_field(job, field, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schemas["RayJob"])
