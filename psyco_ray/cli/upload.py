"""What ``submit`` uploads: the package, the job file and the files that the job names, and nothing else."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job

PACKAGE = "psyco_ray"
PACKAGE_ENDINGS = {".py", ".yaml", ".jsonl", ".txt", ".html", ".j2", ".css", ".js", ".svg"}
_MODEL_ENDINGS = {".safetensors", ".json", ".model", ".txt", ".jinja"}  # of weights, configs, tokenizers and templates
_MIB = 2**20
_ZIP_HEADERS = 76  # bytes for each file, and twice its name

_log = logging.getLogger(__name__)


def files_of(job: Job, job_path: Path, directory: Path) -> dict[Path, str]:
    """The files that a job needs on the cluster, by path inside the directory, with the setting that names them.

    Absolute paths, URIs and hub ids are left out: the cluster reads them itself. The package is left out where the
    directory has none: then the cluster's own is used.

    Raises:
        InputError: a file that the job names is missing, or lies outside the directory.
    """
    root = directory.resolve()
    found = {_inside(path, root): "the package" for path in _package_files(root)}
    found[_inside(job_path.resolve(), root)] = "the job"
    for key, name in _named_data(job).items():
        for path in _data_files(root, key, name):
            found[path] = key
    for key, name in _named_models(job).items():
        for path in _model_files(root, key, name):
            found[path] = key
    return found


def describe(found: Mapping[Path, str], directory: Path) -> None:
    """Log each file that a setting names, with its size and whether git ignores it: it may hold clients' words."""
    named = {path: key for path, key in found.items() if key not in ("the package", "the job")}
    ignored = _ignored_by_git(list(named), directory)
    for path, key in named.items():
        size = (directory / path).stat().st_size / _MIB
        also = ", which git ignores" if path in ignored else ""
        _log.info(f"uploads {path} ({size:.1f} MiB){also}: {key} names it")


def check_size(found: Mapping[Path, str], directory: Path) -> None:
    """Check that Ray's server accepts the files, before anything is sent.

    Raises:
        InputError: they are too large; the largest are named.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    sizes = {path: (directory / path).stat().st_size for path in found}
    total = sum(size + _ZIP_HEADERS + 2 * len(str(path).encode()) for path, size in sizes.items())
    if total >= DASHBOARD_CLIENT_MAX_SIZE:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{path} ({size / _MIB:.1f} MiB, {found[path]})" for path, size in largest)
        raise InputError(
            f"the upload is {total / _MIB:.0f} MiB, above Ray's limit of {DASHBOARD_CLIENT_MAX_SIZE // _MIB}; the "
            f"largest files are {named}; put them on storage that the cluster reaches and give that path"
        )


@contextmanager
def staged(found: Mapping[Path, str], directory: Path) -> Iterator[Path]:
    """A context with a temporary directory that holds links to the files, which Ray packs as the files themselves."""
    with tempfile.TemporaryDirectory(prefix="psyco-ray-submit-") as staging:
        for path in found:
            link = Path(staging) / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((directory / path).resolve())
        yield Path(staging)


def _named_data(job: Job) -> dict[str, str | None]:
    names: dict[str, str | None] = {
        "data.speeches": job.data.speeches,
        "data.pairs": job.data.pairs,
        "prompts.file": job.prompts.file,
    }
    mixtures = {"mixture": job.mixture, "reward.mixture": job.reward.mixture}
    return names | {f"{key}.{i}.pairs": part.pairs for key, parts in mixtures.items() for i, part in enumerate(parts)}


def _named_models(job: Job) -> dict[str, str | None]:
    scorers = job.scorers
    roles = ("reward_model", "heldout_model", "safety_model")
    return {"model": job.model, **{f"scorers.{role}": getattr(scorers, role) for role in roles}}


def _package_files(root: Path) -> list[Path]:
    return [path for path in sorted((root / PACKAGE).rglob("*")) if path.is_file() and path.suffix in PACKAGE_ENDINGS]


def _data_files(root: Path, key: str, name: str | None) -> list[Path]:
    from psyco_ray.data import pair_files
    from psyco_ray.files.records import SAMPLES

    if name is None or name in (*SAMPLES, "default") or name.startswith(pair_files.HUB):
        return []
    if _elsewhere(name.removeprefix(pair_files.DESK)):
        return []
    if name.startswith(pair_files.DESK):  # its export alone: accounts and judgements stay here
        name = str(pair_files.desk_export(name, root))
    path = _required(root, key, name)
    held = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return [_inside(file, root) for file in held]


def _model_files(root: Path, key: str, name: str | None) -> list[Path]:
    from psyco_ray.models import packaged

    if name is None or name in packaged.MODELS or _elsewhere(name) or not (root / name).exists():  # also: a hub id
        return []
    path = _required(root, key, name)
    return [_inside(file, root) for file in sorted(path.iterdir()) if file.suffix in _MODEL_ENDINGS]


def _elsewhere(name: str) -> bool:
    from psyco_ray.run.remote import is_remote

    return is_remote(name) or Path(name).is_absolute()


def _required(root: Path, key: str, name: str) -> Path:
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(root):
        raise InputError(
            f"{key} {name} lies outside {root}, from which jobs are submitted; put it on storage that the cluster "
            "reaches and give that path, or submit from a directory above it"
        )
    if not path.exists():
        raise InputError(f"{key} {name} does not exist in {root}, from which its files are uploaded; correct it")
    return path


def _inside(path: Path, root: Path) -> Path:
    return path.relative_to(root)


def _ignored_by_git(paths: list[Path], directory: Path) -> set[Path]:
    """Those of some paths that git ignores; none where git is missing or this is no repository."""
    command = ["git", "check-ignore", "--stdin", "-z"]
    names = "\0".join(map(str, paths))
    try:
        done = subprocess.run(command, cwd=directory, input=names, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return set()
    return {Path(name) for name in done.stdout.split("\0") if name} if done.returncode == 0 else set()
