"""Where the file of preference pairs is that a name stands for: on disk, in the package, on the hub, or in a desk."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.files.records import SAMPLES, RecordFile, digest_of, locate, open_records
from psyco_ray.files.table import Cells, Table
from psyco_ray.run import hub
from psyco_ray.run.hashing import key_of

HUB = "hub:"
DESK = "desk:"
CONVERSATIONS = "sample-conversations"
EXPORT = Path("export") / "pairs.parquet"
"""The pairs of a desk, as `psyco-ray desk export` writes them into its directory."""


def opened(name: str) -> RecordFile:
    """The rows of a file of pairs.

    Args:
        name: as in `preferences.read`.

    Raises:
        InputError: the file is missing, damaged or of an unknown kind, or the desk has no export.
    """
    if name == CONVERSATIONS:
        return _SampleConversations()
    if name.startswith(HUB):
        return open_records(_from_hub(name.removeprefix(HUB)), "pairs")
    if name.startswith(DESK):
        return open_records(desk_export(name), "pairs")
    return open_records(name, "pairs")


class _SampleConversations(RecordFile):
    """The packaged pairs whose questions are contexts of the packaged conversations."""

    def __init__(self) -> None:
        path = SAMPLES[CONVERSATIONS]
        super().__init__(path, "pairs", _ConversationPairs(path))

    def digest(self) -> str:
        return key_of(super().digest(), digest_of(_pairs_beside(self.path), "pairs"))


class _ConversationPairs(Table):
    """Joins a file of conversations and a file of pairs of responses to them."""

    kind, columns = "JSON", ["pair_id", "question", "chosen", "rejected", "topic"]

    def __init__(self, conversations: Path) -> None:
        self._conversations = conversations

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        said = {row.cells["id"]: row.cells for row in open_records(self._conversations, "speeches") if row.cells}
        for number, row in enumerate(open_records(_pairs_beside(self._conversations), "pairs"), start=1):
            assert row.cells is not None
            conversation, turn = said[row.cells["conversation"]], row.cells["turn"]
            cells = {
                "pair_id": f"{conversation['id']}-{turn}-{number}",
                "question": Context.from_messages(conversation["messages"][: 2 * turn - 1]).text,
                "chosen": row.cells["chosen"],
                "rejected": row.cells["rejected"],
                "topic": conversation["topic"],
            }
            yield cells if columns is None else {name: cells[name] for name in columns if name in cells}


def _pairs_beside(conversations: Path) -> Path:
    return conversations.with_name("conversation-pairs.jsonl")


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
