"""Where the file of preference pairs is that a name stands for: on disk, in the package, on the hub, or in a desk."""

from __future__ import annotations

from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.files.records import SAMPLES, RecordFile, locate, open_records
from psyco_ray.run import hub

HUB = "hub:"
DESK = "desk:"
EXPORT = Path("export") / "pairs.parquet"
"""The pairs of a desk, as `psyco-ray desk export` writes them into its directory."""


def opened(name: str) -> RecordFile:
    """The rows of a file of pairs.

    Args:
        name: as in `preferences.read`.

    Raises:
        InputError: the file is missing, damaged or of an unknown kind, or the desk has no export.
    """
    if name.startswith(HUB):
        return open_records(_from_hub(name.removeprefix(HUB)), "pairs")
    if name.startswith(DESK):
        return open_records(desk_export(name), "pairs")
    return open_records(name, "pairs")


def is_gone(name: str) -> bool:
    """Whether a file or export that was there is not on this disk any more."""
    if name in SAMPLES or name.startswith(HUB):
        return False
    return not (_export_of(name) if name.startswith(DESK) else locate(name)[0]).exists()


def desk_export(name: str, root: Path = Path()) -> Path:
    """The file of pairs that a desk has exported, as an absolute path or one relative to `root`.

    Args:
        name: ``desk:DIR``.
        root: the directory that a relative DIR is in.

    Raises:
        InputError: the desk is missing or has no export.
    """
    export, directory = _export_of(name), name.removeprefix(DESK)
    if not (root / export).is_file():
        if not (root / directory).is_dir():
            raise InputError(f"pairs {name}: the directory {directory} does not exist; name the directory of a desk")
        raise InputError(f"desk {directory} has no export yet; run psyco-ray desk export {directory}")
    return export


def _export_of(name: str) -> Path:
    directory = name.removeprefix(DESK)
    if not directory:
        raise InputError(f"pairs {name} names no desk; give {DESK}DIR, the directory of one")
    return Path(directory) / EXPORT


def _from_hub(path: str) -> str:
    """Local path of a file of a hub dataset; downloaded unless cached."""
    if path.count("/") < 2:
        raise InputError(f"pairs {HUB}{path} is not of the form {HUB}owner/name/path/to/file")
    owner, dataset, file = path.split("/", 2)
    name, revision = hub.split_revision(dataset)
    return str(hub.dataset_file(f"{owner}/{name}", file, revision))
