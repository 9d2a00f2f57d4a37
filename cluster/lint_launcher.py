"""What a file for `ray up` must have: what Ray itself asks for, and the same groups as on Kubernetes."""

from __future__ import annotations

import re

from lint_manifests import ROLE, ROLES, Found, Manifest


def valid(launcher: Manifest) -> Found:
    """Ray takes the file."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(launcher))
    except ValidationError as error:
        yield ".".join(str(key) for key in error.path) or "file", f"is refused by ray up: {error.message}"
    except ValueError as error:
        yield "available_node_types", f"are refused by ray up: {error}"


def groups(launcher: Manifest) -> Found:
    """There is a node type for each role, with bounds, and learners stay as many as they are."""
    types, head = launcher.get("available_node_types") or {}, launcher.get("head_node_type")
    given = {name: (kind.get("labels") or {}).get(ROLE) for name, kind in types.items() if name != head}
    for name, role in given.items():
        low, high = types[name].get("min_workers", 0), types[name].get("max_workers")
        if role not in ROLES:
            yield f"available_node_types.{name}.labels", f"has {ROLE}: {role}; placement knows {', '.join(ROLES)}"
        if high is None or low > high or (role == "learner" and low != high):
            yield f"available_node_types.{name}.max_workers", f"is {high}, min_workers {low}; learners need them equal"
    for role in set(ROLES) - set(given.values()):
        yield "available_node_types", f"has no type labelled {ROLE}: {role}, so that actors of it would wait; add one"
    if sum(types[name].get("max_workers") or 0 for name in given) > launcher.get("max_workers", 0):
        yield "max_workers", "is below the sum of the types' max_workers, so that not all can grow; raise it"


def image(launcher: Manifest) -> Found:
    """An image is the same one tomorrow."""
    name = str((launcher.get("docker") or {}).get("image", ""))
    if "@sha256:" not in name and name.rpartition("/")[2].partition(":")[2] in ("", "latest"):
        yield "docker.image", f"{name!r} is not pinned; give it a tag of its own or a digest"


def token(launcher: Manifest) -> Found:
    """Every node starts with the token, which is a file and never in this one."""
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in launcher.get(field) or [] if "ray start" in line]
        if not starts or not all("RAY_AUTH_MODE=token" in line for line in starts):
            yield field, "start Ray without RAY_AUTH_MODE=token; put it before ray start"
    if not any(name.endswith(".ray/auth_token") for name in launcher.get("file_mounts") or {}):
        yield "file_mounts", "lack ~/.ray/auth_token, which ray get-auth-token --generate makes"


def no_keys(launcher: Manifest) -> Found:
    """Keys come with the machine's role or a mounted file."""
    if re.search(r"AKIA[0-9A-Z]{16}|\w*(KEY|TOKEN|SECRET|PASSWORD)=(?!token\b)\S+", str(launcher)):
        yield "setup_commands", "or another field holds a key; give machines a role, or mount a file"


RULES = (valid, groups, image, token, no_keys)
