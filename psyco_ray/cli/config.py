"""The command ``config``: every key of a job with its type, default and explanation."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from psyco_ray.cli.arguments import add_command
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.config.job_file import Section, section_in
from psyco_ray.config.training import Job

_KINDS: dict[str, type[Section]] = {
    "training": Job,
    "data": DataJob,
    "evaluate-reward": EvaluateRewardJob,
    "evaluate-policy": PolicyEvaluationJob,
}
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """One key of a job.

    `path` is dotted, with ``[]`` for the entries of a list; `default` is YAML, or None where the key is required;
    `is_section` is true where keys below this one follow; `on_gpus` is the default of a role on GPUs, if it is another.
    """

    path: str
    type: str
    default: str | None
    text: str
    is_section: bool = False
    on_gpus: str | None = None

    def describe(self) -> str:
        """The key in a few lines for a terminal."""
        if self.is_section and self.default == "":
            return f"\n# {self.path}: {self.text}"
        value = "(required)" if self.default is None else f"= {self.default}"
        value += "" if self.on_gpus is None else f" (on GPUs {self.on_gpus})"
        text = textwrap.fill(self.text, 112, initial_indent="    ", subsequent_indent="    ")
        return f"{self.path} {value}  [{self.type}]\n{text}"


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "config",
        config,
        "print every key of a job with its type, default and explanation",
        "psyco-ray config dpo.optimizer",
    )
    command.add_argument("section", nargs="?", metavar="SECTION", help="a section or key, such as sampling")
    command.add_argument("--job", choices=_KINDS, default="training", help="kind of job (default: training)")


def config(_: None, options: argparse.Namespace) -> int:
    """Prints the keys."""
    kind = _KINDS[options.job]
    keys = list(keys_of(kind))
    lines: list[str] = []
    if options.section is None:
        lines.append(_first_line(kind))
    else:
        names = [key.path for key in keys]
        keys = [key for key in keys if _is_below(key.path, options.section)]
        if not keys:
            near = difflib.get_close_matches(options.section, names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"a {options.job} job has no key {options.section}{hint}")
    lines.append("\n".join(key.describe() for key in keys).strip())
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def keys_of(kind: type[Section], values: Section | None = None, prefix: str = "") -> Iterator[Key]:
    """All keys of a job or section, in the order of its model.

    Args:
        kind: the model.
        values: an instance whose values are the defaults; None: the model's own.
        prefix: of the paths.
    """
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        section = section_in(field.annotation)
        below = section if isinstance(section, type) and issubclass(section, Section) else None
        default = _default(field) if values is None else getattr(values, name)
        if below is not None and section is field.annotation and default is not _REQUIRED:
            yield Key(path, "section", "", _first_line(below), is_section=True)
            yield from keys_of(below, default, f"{path}.")
            continue
        text = field.description or (_first_line(below) if below else "")
        shown = None if default is _REQUIRED else as_yaml(default)
        yield Key(path, type_name(field.annotation, field.metadata), shown, text, below is not None, _on_gpus(field))
        if below is not None:
            is_list = any(get_origin(part) in (list, tuple) for part in (field.annotation, *get_args(field.annotation)))
            yield from keys_of(below, None, f"{path}[]." if is_list else f"{path}.")


def type_name(annotation: Any, metadata: list[Any] | None = None) -> str:
    """A type in words, with its bounds, such as ``integer >= 1 or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], [*(metadata or []), *_constraints(arguments[1:])])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"list of {len(arguments)} x {type_name(arguments[0])}"
    if origin in (list, tuple):
        filled = " (at least 1)" if any(getattr(item, "min_length", 0) for item in metadata or []) else ""
        return f"list of {type_name(arguments[0])}{filled}"
    if origin is dict:
        return f"map to {type_name(arguments[1])}"
    bounds = [
        f" {sign} {getattr(item, bound)}"
        for item in metadata or []
        for bound, sign in _BOUNDS.items()
        if getattr(item, bound, None) is not None
    ]
    return _NAMES.get(annotation, "section") + ",".join(bounds)


def _constraints(metadata: tuple[Any, ...]) -> list[Any]:
    return [item for entry in metadata for item in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return _REQUIRED
    return field.get_default(call_default_factory=True, validated_data={})


def _on_gpus(field: FieldInfo) -> str | None:
    if field.default_factory is None:
        return None
    on_cpu, on_gpus = (
        field.get_default(call_default_factory=True, validated_data=settings) for settings in ({}, {"gpus": 1.0})
    )
    return None if on_cpu == on_gpus else as_yaml(on_gpus)


def as_yaml(value: Any) -> str:
    """A value in YAML, on one line."""
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _first_line(kind: type[Section]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _is_below(path: str, section: str) -> bool:
    return path == section or path.startswith((f"{section}.", f"{section}["))
