"""Names, signatures and fields of a library, read from its Python files without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module of the library."""

    name: str


@dataclass(frozen=True)
class Function:
    """A function or method; a bound one has its first argument already."""

    module: str
    node: Definition
    bound: bool = False


@dataclass(frozen=True)
class Class:
    """A class, or where `instance` is set an object of it."""

    module: str
    node: ast.ClassDef
    instance: bool = False

    @property
    def name(self) -> str:
        return f"{self.module}.{self.node.name}"


@dataclass(frozen=True)
class ListOf:
    """A list or another iterable of something."""

    element: Value


@dataclass(frozen=True)
class Opaque:
    """Something that exists, whose kind the source does not tell."""


Value = Module | Function | Class | ListOf | Opaque
OPAQUE = Opaque()


@dataclass(frozen=True)
class Parameters:
    """What a call may pass."""

    names: tuple[str, ...]  # in order, those by position first
    by_position: int
    required: frozenset[str]
    more_positions: bool = False  # *args
    more_names: bool = False  # **kwargs


class Library:
    """The sources of one version of a package.

    Args:
        root: the directory with the package's directory.
        package: its import name.
    """

    def __init__(self, root: Path, package: str) -> None:
        self.root, self.package = root, package
        self._tree = cache(self._parse)
        self._names = cache(self._top_level)

    def module(self, name: str) -> Value | None:
        """A module by its dotted name; None if it does not exist."""
        if name.split(".")[0] != self.package:
            return OPAQUE
        path = self.root.joinpath(*name.split("."))
        if path.with_suffix(".py").exists() or path.is_dir():
            return Module(name)
        # a compiled module has no source; the directory has its stub or its parts under the same name
        return OPAQUE if path.name.startswith("_raylet") else None

    def member(self, module: str, name: str) -> Value | None:
        """What a module has under a name; None if it has nothing."""
        found = self._defined(module, name, frozenset())
        return found if found is not None else self.module(f"{module}.{name}")

    def dotted(self, module: str, text: ast.expr) -> Value | None:
        """What an expression like `a.b` means in a module; None if it has no such name."""
        if isinstance(text, ast.Name):
            return self.member(module, text.id)
        if isinstance(text, ast.Attribute):
            owner = self.dotted(module, text.value)
            return self.attribute(owner, text.attr) if owner is not None else None
        return OPAQUE

    def attribute(self, owner: Value, name: str) -> Value | None:
        """An attribute; None if the source shows that there is none."""
        if isinstance(owner, Module):
            return self.member(owner.name, name)
        if not isinstance(owner, Class):
            return OPAQUE
        complete = True
        for cls in self.lineage(owner):
            if cls is None:
                complete = False
            elif (found := self._own_attribute(cls, name, owner.instance)) is not None:
                return found
        return None if complete and not name.startswith("__") else OPAQUE

    def lineage(self, cls: Class) -> list[Class | None]:
        """A class and its bases, depth first; None stands for a base from elsewhere."""
        found: list[Class | None] = [cls]
        for base in cls.node.bases:
            plain = base.value if isinstance(base, ast.Subscript) else base
            value = self.dotted(cls.module, plain)
            if isinstance(value, Class):
                found += self.lineage(value)
            elif not (isinstance(plain, ast.Name) and plain.id in ("Generic", "ABC", "Protocol", "object", "Enum")):
                found.append(None)
        return found

    def parameters(self, called: Value) -> Parameters | None:
        """What a call may pass; None if the source does not tell."""
        if isinstance(called, Function):
            return _signature(called.node, called.bound)
        if not isinstance(called, Class) or called.instance:
            return None
        for cls in self.lineage(called):
            own = {node.name: node for node in cls.node.body if isinstance(node, Definition)} if cls else {}
            if "__init__" in own:
                return _signature(own["__init__"], bound=True)
            if cls is not None and _has_fields(cls.node):
                return self._fields(called)
        return None

    def result(self, called: Value) -> Value:
        """What a call returns."""
        if isinstance(called, Class) and not called.instance:
            return Class(called.module, called.node, instance=True)
        if isinstance(called, Function) and called.node.returns is not None:
            return self.annotated(called.module, called.node.returns)
        return OPAQUE

    def annotated(self, module: str, annotation: ast.expr) -> Value:
        """An object of an annotated type; of a union the first type that the library defines."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.BinOp):
            sides = [self.annotated(module, side) for side in (annotation.left, annotation.right)]
            return next((side for side in sides if side != OPAQUE), OPAQUE)
        if isinstance(annotation, ast.Subscript):
            outer = ast.unparse(annotation.value).split(".")[-1]
            parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            if outer in ("list", "List", "Iterator", "Iterable", "Sequence", "tuple"):
                return ListOf(self.annotated(module, parts[0]))
            if outer in ("Optional", "Union", "Annotated"):
                return self.annotated(module, parts[0])
        value = self.dotted(module, annotation) if isinstance(annotation, ast.Name | ast.Attribute) else None
        return Class(value.module, value.node, instance=True) if isinstance(value, Class) else OPAQUE

    def abstract(self, cls: Class) -> set[str]:
        """Names of the methods that a subclass must define."""
        defined: set[str] = set()
        missing: set[str] = set()
        for base in self.lineage(cls):
            for node in base.node.body if base else []:
                if isinstance(node, Definition) and node.name not in defined:
                    defined.add(node.name)
                    if any("abstractmethod" in ast.unparse(mark) for mark in node.decorator_list):
                        missing.add(node.name)
        return missing

    def _parse(self, module: str) -> ast.Module:
        path = self.root.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return ast.parse(file.read_text(encoding="utf-8")) if file.exists() else ast.Module([], [])

    def _top_level(self, module: str) -> dict[str, ast.stmt | ast.alias | None]:
        """What a module's statements bind outside functions; a name bound in two branches counts once."""
        names: dict[str, ast.stmt | ast.alias | None] = {}
        pending = list(self._tree(module).body)
        while pending:
            node = pending.pop(0)
            if isinstance(node, Definition | ast.ClassDef):
                names.setdefault(node.name, node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            names.setdefault(name.id, node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    names.setdefault(alias.asname or alias.name.split(".")[0], node)
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
                for part in ("body", "orelse", "finalbody"):
                    pending += getattr(node, part, [])
                pending += [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
        return names

    def _defined(self, module: str, name: str, seen: frozenset[str]) -> Value | None:
        if module in seen or module.split(".")[0] != self.package:
            return OPAQUE if module not in seen else None
        seen |= {module}
        node = self._names(module).get(name)
        if isinstance(node, ast.ClassDef):
            return Class(module, node)
        if isinstance(node, Definition):
            return Function(module, node)
        if isinstance(node, ast.Import):
            [alias] = [a for a in node.names if (a.asname or a.name.split(".")[0]) == name]
            return self.module(alias.name if alias.asname else name)
        if isinstance(node, ast.ImportFrom):
            [alias] = [a for a in node.names if (a.asname or a.name) == name][:1]
            return self._imported(self._source(module, node), alias.name, seen)
        if node is not None:
            return self._assigned(module, node)
        for statement in self._tree(module).body:
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                found = self._defined(self._source(module, statement), name, seen)
                if isinstance(found, Class | Function | Module):
                    return found
        return self._lazy(module, name)

    def _imported(self, module: str, name: str, seen: frozenset[str]) -> Value | None:
        if isinstance(self.module(module), Opaque):
            return OPAQUE
        found = self._defined(module, name, seen)
        return found if found is not None else self.module(f"{module}.{name}")

    def _assigned(self, module: str, node: ast.stmt) -> Value:
        """The value of an assignment: another name, an object of a class, or unknown."""
        value = getattr(node, "value", None)
        if isinstance(node, ast.AnnAssign):
            return self.annotated(module, node.annotation)
        if isinstance(value, ast.Call):
            called = self.dotted(module, value.func)
            return self.result(called) if called is not None else OPAQUE
        return OPAQUE

    def _lazy(self, module: str, name: str) -> Value | None:
        """What a module's `__getattr__` finds: vLLM keeps a dictionary of `.module:Name`."""
        if "__getattr__" not in self._names(module):
            return None
        for node in ast.walk(self._tree(module)):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                        target, _, member = str(value.value).partition(":")
                        return self.member(f"{module}{target}" if target.startswith(".") else target, member or name)
            if isinstance(node, ast.Constant) and node.value == name:
                return OPAQUE
        return None

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        """The dotted name of the module that a statement imports from."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = self.root.joinpath(*parts).is_dir()
        kept = parts[: len(parts) - node.level + is_package]
        return ".".join([*kept, *([node.module] if node.module else [])])

    def _own_attribute(self, cls: Class, name: str, instance: bool) -> Value | None:
        for node in cls.node.body:
            if isinstance(node, Definition) and node.name == name:
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                if any("property" in mark for mark in marks):
                    return self.annotated(cls.module, node.returns) if node.returns else OPAQUE
                return Function(
                    cls.module, node, bound="staticmethod" not in marks and (instance or "classmethod" in marks)
                )
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                return self.annotated(cls.module, node.annotation)
            if isinstance(node, ast.Assign) and name in [ast.unparse(target) for target in node.targets]:
                return OPAQUE
        return self._set_attribute(cls, name) if instance else None

    def _set_attribute(self, cls: Class, name: str) -> Value | None:
        """An attribute that a method sets."""
        for method in [node for node in cls.node.body if isinstance(node, Definition)]:
            types = {arg.arg: arg.annotation for arg in [*method.args.args, *method.args.kwonlyargs]}
            for node in ast.walk(method):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names = [ast.unparse(part) for t in targets if t is not None for part in getattr(t, "elts", [t])]
                if f"self.{name}" not in names or not isinstance(node, ast.Assign | ast.AnnAssign):
                    continue
                if isinstance(node, ast.AnnAssign):
                    return self.annotated(cls.module, node.annotation)
                if isinstance(node.value, ast.Name) and (annotation := types.get(node.value.id)) is not None:
                    return self.annotated(cls.module, annotation)
                return self._assigned(cls.module, node)
        return None

    def _fields(self, called: Class) -> Parameters | None:
        """The parameters of a class that is made of annotated fields."""
        fields: dict[str, bool] = {}  # whether it has a default
        for cls in reversed(self.lineage(called)):
            for node in cls.node.body if cls else []:
                if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                    fields[ast.unparse(node.target)] = node.value is not None
        required = frozenset(name for name, has_default in fields.items() if not has_default)
        return Parameters(tuple(fields), len(fields), required)


def _has_fields(node: ast.ClassDef) -> bool:
    """Whether a class gets its `__init__` from its annotations."""
    marks = [ast.unparse(mark) for mark in [*node.decorator_list, *node.bases]]
    return any(part in mark for mark in marks for part in ("dataclass", "config", "Struct", "Model", "NamedTuple"))


def _signature(node: Definition, bound: bool) -> Parameters:
    args = node.args
    positional = [arg.arg for arg in [*args.posonlyargs, *args.args]]
    required = set(positional[: len(positional) - len(args.defaults)])
    required |= {arg.arg for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True) if default is None}
    first = 1 if bound and positional else 0
    names = (*positional[first:], *(arg.arg for arg in args.kwonlyargs))
    more = args.vararg is not None, args.kwarg is not None
    return Parameters(names, len(positional) - first, frozenset(required & set(names)), *more)
