"""The command ``forget``: removes a client from what runs have left."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.cli.arguments import add_command
from psyco_ray.config.errors import InputError
from psyco_ray.config.names import named_file

if TYPE_CHECKING:
    from psyco_ray.data.forget_seen import Outcome

_log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "forget",
        forget,
        "remove a client from runs, datasets, evaluations, desks, exports and caches",
        "psyco-ray forget runs/data runs/psyco-3b --text-file withdrawn.txt",
    )
    command.add_argument("directories", nargs="+", metavar="RUN", help="a run directory, or one of exports")
    command.add_argument("--speech-id", action="append", default=[], metavar="ID", help="of the speech; repeatable")
    command.add_argument(
        "--text-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="with the client's words; repeatable",
    )


def forget(_: None, options: argparse.Namespace) -> int:
    """Removes a client and says what still holds them."""
    from psyco_ray.data import forget as forgetting
    from psyco_ray.data.forget_seen import seen
    from psyco_ray.data.traces import Traces
    from psyco_ray.desk import forget as desks
    from psyco_ray.run import storage
    from psyco_ray.run.directory import RunDirectory
    from psyco_ray.run.remote import is_remote

    if not (options.speech_id or options.text_file):
        raise InputError("nobody is named; give --speech-id ID, or --text-file with the client's words")
    for speech in options.speech_id:
        if len(speech) != 16 or set(speech) - set("0123456789abcdef"):
            raise InputError("--speech-id takes the 16 hex digits of a speech_id column, as in speeches.parquet")
    traces = forgetting.traces_of(options.speech_id, [_read(path) for path in options.text_file])
    missing = next((path for path in options.directories if not (is_remote(path) or Path(path).is_dir())), None)
    if missing is not None:
        raise InputError(
            f"RUN {named_file(missing)} is not a directory; name run directories, or directories of exports"
        )
    with contextlib.ExitStack() as held:
        directories = [
            held.enter_context(contextlib.closing(RunDirectory(path, may_be_remote=True)))
            for path in options.directories
        ]
        roots = [directory.root for directory in directories]
        roots += [cache for cache in [storage.cache_dir()] if cache.is_dir()]
        known = -1
        while known != (known := traces.size):  # what one root tells leads to more in another
            for root in roots:
                desks.learn(root, traces)
                forgetting.learn(root, traces)
        targets = {str(directory.root): directory.run_dir for directory in directories}
        outcomes = {str(root): seen(root, traces, targets.get(str(root))) for root in roots}
        said = Traces(set(traces.ids), dict(traces.needles))
        for root in roots:
            desks.remove(root, traces, said, outcomes[str(root)])
            forgetting.remove_rows(root, traces, said, outcomes[str(root)])
        for root in roots:
            forgetting.remove_words(root, traces, said, outcomes[str(root)])
        for directory in directories:
            outcome = outcomes[str(directory.root)]
            if outcome.files or outcome.trained:
                forgetting.audit(directory.root, outcome)
                for name in [*outcome.files, forgetting.AUDIT]:
                    directory.push(name)
    if not any(outcome.files or outcome.kept or outcome.trained for outcome in outcomes.values()):
        raise InputError(
            "none of the directories holds anything of this client; check the id, or give the client's words"
        )
    for path, outcome in outcomes.items():
        print(_described(path, outcome))
    return 0


def _described(path: str, outcome: Outcome) -> str:
    lines = [f"{path}: {len(outcome.files)} files cleaned, {outcome.rows} rows removed"]
    if outcome.trained:
        lines.append(f"  weights that saw the client: {', '.join(outcome.trained)}; weights do not forget: train again")
    if outcome.sources:
        lines.append(
            f"  files of its job that hold the client: {', '.join(outcome.sources)}; remove the client there, too"
        )
    if outcome.kept:
        lines.append(f"  files that still hold traces: {', '.join(outcome.kept)}; remove them")
    for file, deleted in outcome.provider_files.items():
        lines.append(
            f"  file {file} at the provider of a batch: {'deleted' if deleted else 'NOT deleted; delete it there'}"
        )
    return "\n".join(lines)


def _read(path: Path) -> str:
    from psyco_ray.data.traces import SHORTEST

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"text file {named_file(path)} cannot be read: {type(error).__name__}; give a UTF-8 file"
        ) from None
    if not text.strip():
        raise InputError(f"text file {path} is empty; give the client's words")
    if sum(map(str.isalnum, text)) < SHORTEST:
        _log.warning(f"text file {path} has fewer than {SHORTEST} letters: it is not looked for inside other texts")
    return text
