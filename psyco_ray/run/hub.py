"""Files of the Hugging Face hub: downloads into its cache, and errors that say what is wrong.

A name may pin a commit, tag or branch: ``owner/name@revision``. huggingface_hub is imported where it is used, because
it takes a second.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.run import storage


def split_revision(name: str) -> tuple[str, str | None]:
    """The hub id and the revision of ``owner/name`` or ``owner/name@revision``; None: the main branch."""
    hub_id, _, revision = name.partition("@")
    return hub_id, revision or None


def is_id(name: str) -> bool:
    """Whether a name has the form of a hub id, perhaps with a revision."""
    return not name.startswith((".", "/", "~")) and split_revision(name)[0].count("/") == 1


def is_commit(revision: str | None) -> bool:
    """Whether a revision is the hash of a commit, which never changes, unlike a tag or a branch."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def snapshot(hub_id: str, patterns: Sequence[str], revision: str | None = None, kind: str = "model") -> Path:
    """The directory of a repository in the hub's cache; missing files are downloaded.

    Args:
        hub_id: owner/name.
        patterns: of the files.
        revision: commit, tag or branch; None: the main branch.
        kind: model or dataset.

    Raises:
        InputError: the repository or its revision does not exist, is gated, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _errors(kind, hub_id, revision):
        return Path(snapshot_download(hub_id, repo_type=kind, revision=revision, allow_patterns=list(patterns)))


def cached_model(name: str) -> Path | None:
    """The directory of a model in the hub's cache, if its tokenizer is there; nothing is downloaded.

    Args:
        name: of the model, perhaps with a revision.
    """
    from huggingface_hub import try_to_load_from_cache

    hub_id, revision = split_revision(name)
    file = try_to_load_from_cache(hub_id, "tokenizer_config.json", revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def on_this_machine(model: str) -> Path | None:
    """The directory of a model that a job names, if it is here; nothing is downloaded."""
    if storage.local_path(model).is_dir():
        return storage.local_path(model)
    return cached_model(model) if is_id(model) else None


def dataset_file(hub_id: str, path: str, revision: str | None = None) -> Path:
    """A file of a dataset in the hub's cache; it is downloaded if it is missing.

    Raises:
        InputError: as `snapshot`, or the dataset has no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with _errors("dataset", hub_id, revision):
        try:
            return Path(hf_hub_download(hub_id, path, repo_type="dataset", revision=revision))
        except RemoteEntryNotFoundError:
            raise InputError(f"the hub's dataset {hub_id} has no file {path}; correct its name") from None


@contextlib.contextmanager
def _errors(kind: str, hub_id: str, revision: str | None) -> Iterator[None]:
    """A context in which errors of the hub's client become one sentence."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    client_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library that this version uses
    what = f"the hub's {kind} {hub_id}"
    try:
        yield
        return
    except HFValidationError:
        reason = f"{hub_id} is no name of a {kind} on the hub; give owner/name"
    except GatedRepoError:  # also a RepositoryNotFoundError
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
        reason = (
            f"{what} is gated, and the account of your token has no access; accept its licence at {page}, or wait "
            "until the request is granted"
            if get_token()
            else f"{what} is gated; accept its licence at {page}, and set HF_TOKEN to a token of that account"
        )
    except RevisionNotFoundError:
        reason = f"{what} has no revision {revision}; give one of its commits, tags or branches"
    except RepositoryNotFoundError:
        reason = (
            f"the hub has no {kind} {hub_id}, or it is private; correct the name, or set HF_TOKEN to a token that may "
            "read it"
        )
    except DisabledRepoError:
        reason = f"the hub has disabled access to {kind} {hub_id}; choose another"
    except (LocalEntryNotFoundError, OSError, client_error) as error:
        failed = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        if constants.HF_HUB_OFFLINE:
            reason = (
                f"{what} is not complete in the hub's cache, and HF_HUB_OFFLINE forbids to download it; unset "
                "HF_HUB_OFFLINE, or copy the cache of a machine that has it"
            )
        elif isinstance(failed, HfHubHTTPError):
            status = failed.response.status_code
            way_out = "set HF_TOKEN to a valid token, or unset it" if status == 401 else "try again later"
            reason = f"the hub answers HTTP {status} for {kind} {hub_id}; {way_out}"
        elif isinstance(failed, OSError) and failed.errno is not None and not isinstance(failed, ConnectionError):
            reason = f"{what} cannot be stored in the hub's cache: {failed.strerror}; make room or set HF_HOME"
        else:
            reason = (
                f"{what} is not complete in the hub's cache, and the hub at {constants.ENDPOINT} cannot be reached; "
                "check the network, or give a directory"
            )
    raise InputError(reason)
