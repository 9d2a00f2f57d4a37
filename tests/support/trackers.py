"""What trackers wrote: W&B's offline files and TensorBoard's event files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from support.processes import eventually

BLOCK = 1 << 15


def wandb_records(file: Path) -> Iterator:
    """The whole records of a ``.wandb`` file, a LevelDB log: blocks of pieces with checksum, length, kind and data."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    position, whole = 7, b""  # after the file's own header
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):  # the rest of the piece is not on disk
            return
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


class WandbSession:
    """One session of a run: its id, start, config, summary, step metrics and the logged rows."""

    def __init__(self, file: Path) -> None:
        self.rows: list[dict] = []
        self.summary: dict = {}
        self.step_metrics: dict[str, str] = {}
        self.exit_code: int | None = None
        self.id, self.started = "", 0
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.project, self.name = record.run.run_id, record.run.project, record.run.display_name
                self.started = record.run.start_time.ToNanoseconds()
                self.config = _values(record.run.config.update)
            elif kind == "history":
                self.rows.append(_values(record.history.item))
            elif kind == "summary":
                self.summary |= _values(record.summary.update)
            elif kind == "metric" and record.metric.glob_name:
                self.step_metrics[record.metric.glob_name] = record.metric.step_metric
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def steps(self, group: str, figure: str) -> list[int]:
        """The steps at which a figure of a group was logged."""
        return [row[f"{group}/step"] for row in self.rows if f"{group}/{figure}" in row]


def wandb_sessions(root: Path, killed: bool = False, within_s: float = 30) -> list[WandbSession]:
    """The sessions below a run directory, in the order of time.

    W&B returns from the end of an offline session before its file is on disk, so this waits for their exit records.

    Args:
        root: the run directory.
        killed: whether drivers were killed. Then only the last session has to end, and one that W&B had not begun to
            write is left out.
        within_s: seconds to wait for the exit records.

    Raises:
        AssertionError: a session has not ended in time.
    """

    def read() -> list[WandbSession]:
        files = root.glob("wandb/offline-run-*/*.wandb")  # offline-run-DATE_TIME-ID
        found = [(file.parent.name.rpartition("-")[0], WandbSession(file)) for file in files]
        return [session for _, session in sorted(found, key=lambda pair: (pair[0], pair[1].started))]

    def ended() -> bool:
        expected = [session.exit_code for session in read()]
        return None not in (expected[-1:] if killed else expected)

    assert eventually(ended, within_s), f"W&B has not written the end of a session below {root} in {within_s} s"
    return [session for session in read() if session.id]


def tensorboard_scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by figure, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def tensorboard_text(directory: Path, name: str) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()


def _values(items) -> dict:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
