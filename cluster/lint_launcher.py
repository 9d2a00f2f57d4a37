"""Rules for the files of `ray up`: Ray accepts them, and they have the same groups as on Kubernetes."""

from __future__ import annotations

import re

from lint_manifests import ROLE, ROLES, Manifest, Violations
from lint_policy import DIGEST


def valid(launcher: Manifest) -> Violations:
    """Ray accepts the file."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(launcher))
    except ValidationError as error:
        yield ".".join(str(key) for key in error.path) or "file", f"is refused by ray up: {error.message}"
    except ValueError as error:
        yield "available_node_types", f"are refused by ray up: {error}"


def groups(launcher: Manifest) -> Violations:
    """Each role has a node type with bounds, and the number of learner nodes is fixed."""
    types, head = launcher.get("available_node_types") or {}, launcher.get("head_node_type")
    roles = {name: (kind.get("labels") or {}).get(ROLE) for name, kind in types.items() if name != head}
    for name, role in roles.items():
        low, high = types[name].get("min_workers", 0), types[name].get("max_workers")
        if role not in ROLES:
            yield f"available_node_types.{name}.labels", f"has {ROLE}: {role}; placement knows {', '.join(ROLES)}"
        if high is None or low > high or (role == "learner" and low != high):
            yield f"available_node_types.{name}.max_workers", f"is {high}, min_workers {low}; learners need them equal"
    for role in set(ROLES) - set(roles.values()):
        yield "available_node_types", f"has no type labelled {ROLE}: {role}, so its actors would wait forever; add one"
    if sum(types[name].get("max_workers") or 0 for name in roles) > launcher.get("max_workers", 0):
        yield "max_workers", "is below the sum of the types' max_workers; raise it"


def image(launcher: Manifest) -> Violations:
    """The image is pinned by digest."""
    name = str((launcher.get("docker") or {}).get("image", ""))
    if not DIGEST.search(name):
        yield "docker.image", f"{name!r} is not pinned; give it the digest of the pushed image (@sha256:…)"


def closed(launcher: Manifest) -> Violations:
    """No node is open to strangers: on AWS the groups are the user's, on Google Cloud nodes have no address outside."""
    for name, kind in (launcher.get("available_node_types") or {}).items():
        node, field = kind.get("node_config") or {}, f"available_node_types.{name}.node_config"
        if launcher["provider"]["type"] == "aws" and not node.get("SecurityGroupIds"):
            yield (
                f"{field}.SecurityGroupIds",
                "is missing; Ray's own group opens SSH to everybody, so name yours",
            )
        interfaces = node.get("networkInterfaces")
        if launcher["provider"]["type"] == "gcp" and (not interfaces or any("accessConfigs" in i for i in interfaces)):
            yield f"{field}.networkInterfaces", "give the node an address outside; name a subnetwork, no accessConfigs"


def token(launcher: Manifest) -> Violations:
    """Every node starts with token authentication; the token is a mounted file."""
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in launcher.get(field) or [] if "ray start" in line]
        if not starts or not all("RAY_AUTH_MODE=token" in line for line in starts):
            yield field, "starts Ray without RAY_AUTH_MODE=token; put it before ray start"
    if not any(name.endswith(".ray/auth_token") for name in launcher.get("file_mounts") or {}):
        yield "file_mounts", "lacks ~/.ray/auth_token; make it with ray get-auth-token --generate"


def no_keys(launcher: Manifest) -> Violations:
    """No field holds a key: keys come from the machine's role or a mounted file."""
    if re.search(r"AKIA[0-9A-Z]{16}|\w*(KEY|TOKEN|SECRET|PASSWORD)=(?!token\b)\S+", str(launcher)):
        yield "setup_commands", "or another field holds a key; give the machines a role, or mount a file"


RULES = (valid, groups, image, closed, token, no_keys)
