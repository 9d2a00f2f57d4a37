"""The commands ``psyco-ray desk …``: people judge drafts and pairs in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.cli.arguments import add_command, add_group
from psyco_ray.config.errors import InputError
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote

if TYPE_CHECKING:
    from psyco_ray.desk.store import Store


def add(subparsers: Any) -> None:
    """Adds the commands."""
    example = "psyco-ray desk serve runs/demo-desk --from runs/demo"
    steps = add_group(subparsers, "desk", "let professionals judge drafts and pairs in a browser", "STEP", example)
    _add_serve(steps, example)
    command = add_command(
        steps, "invite", invite, "print an invitation link for one person", "psyco-ray desk invite runs/demo-desk"
    )
    _add_directory(command)
    roles = ("annotator", "reviewer", "lead")
    command.add_argument("--role", choices=roles, default="annotator", help="(default: annotator)")
    command = add_command(
        steps,
        "export",
        export,
        "write pairs, judgements and approved drafts, for training or for another tool",
        "psyco-ray desk export runs/demo-desk",
    )
    _add_directory(command)
    command.add_argument("--format", choices=_formats(), help="write the items for this tool, with all judgements")
    command = add_command(
        steps,
        "import",
        import_,
        "read items and judgements that another tool has exported",
        "psyco-ray desk import runs/demo-desk records.json --format argilla",
    )
    _add_directory(command)
    command.add_argument("file", type=Path, help="JSON of the tool, or a directory of Argilla's to_disk")
    command.add_argument("--format", choices=_formats(), required=True, help="the tool")
    _add_suggest(steps)


def _add_suggest(steps: Any) -> None:
    command = add_command(
        steps,
        "suggest",
        suggest,
        "add the pairs that reward models disagree on or are unsure of, for the next judgements",
        "psyco-ray desk suggest runs/demo-desk --from pairs.parquet --reward runs/a/reward runs/b/reward --count 50",
    )
    _add_directory(command)
    command.add_argument(
        "--from", required=True, dest="source", metavar="SOURCE", help="pairs, as serve takes them; those of a run too"
    )
    command.add_argument(
        "--reward", nargs="+", required=True, metavar="MODEL", help="reward models: directories or hub ids"
    )
    command.add_argument("--count", type=int, required=True, help="pairs to add")
    command.add_argument("--seed", type=int, default=0, help="decides between pairs that tell as much (default: 0)")


def _add_serve(steps: Any, example: str) -> None:
    command = add_command(steps, "serve", serve, "serve a desk, on this machine alone by default", example)
    command.add_argument("directory", type=_local, metavar="DESK_DIR", help="of the desk; made at the first start")
    command.add_argument(
        "--from",
        nargs="+",
        default=[],
        dest="sources",
        metavar="SOURCE",
        help="directories of training runs, of evaluate-policy or of data build, files of pairs, or sample",
    )
    command.add_argument(
        "--task",
        choices=("pairs", "scores", "drafts"),
        help="(default: drafts of runs, pairs of files, pairs and scores of evaluations)",
    )
    command.add_argument("--count", type=int, help="items of each source and task (default: all)")
    command.add_argument("--seed", type=int, help="of draw, order and sides (default: 0); fixed at the first start")
    command.add_argument("--overlap", help="people for each item, or all (default: all)")
    command.add_argument(
        "--split", choices=("dev", "train"), default="dev", help="of runs: answers to these speeches (default: dev)"
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=8710, help="0 takes a free one (default: 8710)")
    command.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM of the certificate and its chain")
    command.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM of its key")
    command.add_argument("--behind-proxy", action="store_true", help="a proxy on the way ends TLS")
    command.add_argument(
        "--host-name", action="append", default=[], metavar="NAME", help="that people use in the browser; repeatable"
    )


def serve(_: None, options: argparse.Namespace) -> int:
    """Adds the items of the sources and serves the desk until a signal comes."""
    from psyco_ray.desk import sources
    from psyco_ray.desk.serve import Listening, opened, serve
    from psyco_ray.run.directory import RunDirectory

    listening = Listening(
        options.host, options.port, options.tls_cert, options.tls_key, options.behind_proxy, tuple(options.host_name)
    )
    listening.check()
    directory = RunDirectory(str(options.directory))
    try:
        store = opened(options.directory, options.seed, options.overlap)
        request = sources.Request(options.task, options.count, store.settings.seed, options.split)
        for source in options.sources:
            added = store.add_items(sources.read(source, request, store.ids()))
            print(f"{source}: {added} new items")
        if not store.ids():
            raise InputError(f"desk {options.directory} has no items; name their source with --from")
        serve(store, listening)
    finally:
        directory.close()
    return 0


def invite(_: None, options: argparse.Namespace) -> int:
    """Prints an invitation."""
    from psyco_ray.desk import people
    from psyco_ray.desk.serve import URL

    store = _store(options.directory)
    token = people.invite(store, options.role, None)
    url = options.directory / URL
    place = url.read_text(encoding="utf-8").strip() if url.exists() else "the desk's address, then "
    hours = store.settings.invitation_hours
    print(f"invitation of one {options.role}, valid for {hours:g} hours: {place}/join/{token}")
    return 0


def export(_: None, options: argparse.Namespace) -> int:
    """Writes what people said, for training or for another tool."""
    from psyco_ray.desk import exchange
    from psyco_ray.desk.export import export as write

    store = _store(options.directory)
    if options.format:
        print(exchange.write(store, options.format))
        return 0
    record = write(store)
    counts = record["counts"]
    print(
        f"{options.directory / 'export'}: {counts.get('pairs', 0)} pairs, {counts.get('edits', 0)} pairs of edits, "
        f"{counts.get('drafts', 0)} approved drafts, {counts['judgements']} judgements of {counts['annotators']} people"
    )
    if counts.get("undecided"):
        print(f"{counts['undecided']} pairs are left out: as many people are for one response as for the other")
    return 0


def import_(_: None, options: argparse.Namespace) -> int:
    """Reads what another tool has exported."""
    from psyco_ray.desk import exchange

    print(exchange.read(_store(options.directory), options.file, options.format))
    return 0


def suggest(_: None, options: argparse.Namespace) -> int:
    """Adds the pairs to ask about next."""
    from psyco_ray.desk.suggest import suggest as add_pairs

    done = add_pairs(_store(options.directory), options.source, options.reward, options.count, options.seed)
    print(f"{options.directory}: {done.added} pairs are added, of {done.of} that could be asked about")
    return 0


def _store(directory: Path) -> Store:
    from psyco_ray.desk.store import Store

    return Store.open(directory)


def _add_directory(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=_local, metavar="DESK_DIR", help="of the desk")


def _local(text: str) -> Path:
    """The path of a desk's directory."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is remote; a desk needs a directory on a disk of this machine")
    return storage.local_path(text)


def _formats() -> tuple[str, ...]:
    return ("argilla", "label-studio")
