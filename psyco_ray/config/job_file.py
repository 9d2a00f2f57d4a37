"""Job files: reads YAML, checks the settings, and describes the first invalid one in a sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from psyco_ray.config.errors import InputError
from psyco_ray.config.keys import refuse_keys, without_keys
from psyco_ray.config.names import dotted, named_file, setting

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
NotNegativeCount = Annotated[int, Field(ge=0)]
TemplateOptions = dict[str, bool | int | float | str]

_QUOTED = re.compile(r"(['\"])(?!<)[^'\"]{2,}\1")  # by YAML, but for names of its tokens, such as '<scalar>'


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(
            f"the name {setting(name)} is invalid as a directory name; use letters, digits, spaces, '.', '+', '-', '_'"
        )
    return name


Name = Annotated[str, AfterValidator(_file_name)]
"""A name of the user's that is also one of a file or directory, which a path could lead elsewhere."""


class Section(BaseModel):
    """A frozen part of a job; unknown keys are an error.

    The docstring under a key is its explanation: ``psyco-ray config`` prints it.

    Example:
        >>> class Sampling(Section):
        ...     temperature: Positive = 1.0
        ...     \"""Softmax temperature.\"""
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


AnyJob = TypeVar("AnyJob", bound=Section)


def load_as(kind: type[AnyJob], path: str | Path | None, overrides: list[str] | None = None) -> AnyJob:
    """Read a job file and apply overrides.

    Args:
        kind: of job.
        path: the file; None: only defaults.
        overrides: such as ``sampling.responses=4``, with values in YAML.

    Raises:
        InputError: naming the file, the key, the invalid value and what is valid; or a value holds an API key.
    """
    file = Path(path or "defaults")
    settings = (read_yaml(file, "job file") if path else None) or {}
    if not isinstance(settings, dict):
        raise InputError(f"job file {file} must hold keys and values, not a {type(settings).__name__}")
    for override in overrides or []:
        _apply(settings, override)
    refuse_keys(settings, str(file))  # before any message quotes a value
    return parse(kind, settings, where=str(file))


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file.

    Args:
        path: the file.
        what: its kind, for messages.

    Raises:
        InputError: it is missing or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what} {named_file(path)} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = without_keys(" ".join(str(getattr(error, "strerror", None) or error).split()))
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            problem = _QUOTED.sub("[…]", error.problem or "")  # the whole message quotes the line
            reason = f"line {error.problem_mark.line + 1}: {problem}"
        raise InputError(f"{what} {named_file(path)} cannot be read as YAML: {reason}") from None


def parse(kind: type[AnyJob], settings: dict[str, Any], where: str) -> AnyJob:
    """Check settings and fill in the defaults.

    Raises:
        InputError: for the first invalid key or value, with the closest valid key.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(kind, error)}") from None


def dump(job: Section) -> str:
    """The whole job as YAML, defaults included.

    Raises:
        InputError: a setting holds a key, which no file may.
    """
    settings = job.model_dump(mode="json")
    refuse_keys(settings, "the job")
    return yaml.safe_dump(settings, sort_keys=False)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _apply(settings: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` override in nested settings."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {setting(override)} is not of the form key=value, such as sampling.responses=4")
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise InputError(f"override {setting(override)}: {dotted([parent])} is a value, not a section")
    try:
        settings[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        settings[last] = text


def _explain(kind: type[Section], error: ValidationError) -> str:
    """One sentence about pydantic's first error."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = dotted(path)
    if first["type"] == "extra_forbidden":
        known = _keys_at(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        elsewhere = [".".join(k) for k in _all_keys(kind) if k[-1] == path[-1]]
        hint = elsewhere[0] if elsewhere else dotted([*path[:-1], near[0]]) if near else None
        return f"unknown key {key}" + (f"; did you mean {hint}?" if hint else f"; known here: {', '.join(known)}")
    if first["type"] == "missing":  # whose input is the whole section
        return f"{key} is missing; set it"
    reason = first["msg"].removeprefix("Value error, ")
    if not key or first["type"] == "value_error":
        return f"{key}: {reason}" if key else reason
    return f"{key}: invalid value {setting(first['input'])}: {reason[0].lower()}{reason[1:]}"


def _keys_at(kind: type[Section], path: list[str]) -> list[str]:
    """The valid keys of a section, which may be in a list, a mapping or optional."""
    section: Any = kind
    for part in path:
        fields = getattr(section, "model_fields", {})
        section = section_in(fields[part].annotation) if part in fields else section
    return list(section.model_fields)


def section_in(annotation: Any) -> Any:
    """The section in an annotation such as ``list[Source]`` or ``Endpoint | None``, else the annotation itself."""
    inner = [section_in(argument) for argument in get_args(annotation)]
    return next((kind for kind in inner if hasattr(kind, "model_fields")), annotation)


def _all_keys(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += _all_keys(kind, (*prefix, name))
        else:
            keys.append((*prefix, name))
    return keys
