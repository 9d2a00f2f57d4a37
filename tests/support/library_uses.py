"""What source files use of a library, checked against the sources of one of its versions.

The statements of a file are followed with what is known of each name: imported modules and classes, objects that they
make, annotated parameters and attributes of `self`. Every attribute, keyword and number of arguments is looked up in
the library. What is not known (say an item of a dictionary) is not checked; `Checker.checked` counts what was.

An import under `try` with `except ImportError` is a branch: where it fails, the handler and the functions that only it
calls are checked, else the rest of the function.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.library_source import OPAQUE, Class, Definition, Function, Library, ListOf, Module, Value

_SAME = ("list", "sorted", "iter", "reversed", "tuple", "next")  # builtins whose result has the argument's elements


@dataclass(frozen=True)
class Keys:
    """A dictionary whose keys are known."""

    names: frozenset[str]


@dataclass
class Own:
    """An object of a class of the file: what its methods set, and its bases in the library."""

    node: ast.ClassDef
    bases: list[Class]
    attributes: dict[str, Any] = field(default_factory=dict)


Names = dict[str, Any]


class Checker:
    """Checks the files of a package.

    Args:
        library: a version of the library.
        forwards: a class that passes unknown keywords on -> the class that takes them.
    """

    def __init__(self, library: Library, forwards: dict[str, str] | None = None) -> None:
        self.library, self._forwards = library, forwards or {}
        self.problems: list[str] = []
        self.checked = 0
        self._file, self._silent = "", False

    def check(self, files: Iterable[Path]) -> list[str]:
        """What the files use and the version lacks, a sentence each."""
        for path in files:
            text = path.read_text(encoding="utf-8")
            if self.library.package in text:
                self._check_file(path, ast.parse(text))
        return self.problems

    def _check_file(self, path: Path, tree: ast.Module) -> None:
        self._file = path.name
        functions = {node.name: node for node in tree.body if isinstance(node, Definition)}
        handlers = [h for node in ast.walk(tree) if isinstance(node, ast.Try) for h in node.handlers if _of_imports(h)]
        elsewhere = Counter(_reads([tree])) - Counter(_reads(handlers))
        only_handled = {name for name in functions if name in _named(handlers) and name not in elsewhere}
        while more := {
            name
            for name in functions.keys() - only_handled
            if (users := _users(tree, functions, name)) and users <= only_handled
        }:
            only_handled |= more
        self._taken: list[ast.ExceptHandler] = []
        names: Names = {}
        self._block([node for node in tree.body if getattr(node, "name", "") not in only_handled], names)
        reached: set[str] = set()
        while fresh := (_named([*self._taken, *(functions[name] for name in reached)]) & only_handled) - reached:
            reached |= fresh
            self._block([functions[name] for name in sorted(fresh)], names)

    def _block(self, statements: list[ast.stmt], names: Names) -> bool:
        """Follows statements; returns whether they end the function."""
        deferred = []  # functions see the names that the module binds after them
        for node in statements:
            if isinstance(node, Definition):
                names.setdefault(node.name, None)
                deferred.append(node)
            elif self._statement(node, names):
                return True
        for node in deferred:
            self._function(node, names)
        return False

    def _statement(self, node: ast.stmt, names: Names) -> bool:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node, names)
        elif isinstance(node, ast.ClassDef):
            self._class(node, names)
        elif isinstance(node, ast.Try):
            return self._try(node, names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.For | ast.AsyncFor | ast.With | ast.AsyncWith):
            self._binding(node, names)
        elif isinstance(node, ast.Return | ast.Raise):
            self._children(node, names)
            return True
        else:
            self._children(node, names)
        return False

    def _children(self, node: ast.AST, names: Names) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child, names)
            elif isinstance(child, ast.stmt):
                self._block([child], names)
            else:
                self._children(child, names)

    def _binding(self, node: Any, names: Names) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            value = self._value(node.value, names) if node.value is not None else None
            if isinstance(node, ast.AnnAssign) and value in (None, OPAQUE):
                value = self._annotated(node.annotation, names)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self._bind(target, value, names)
            return
        if isinstance(node, ast.For | ast.AsyncFor):
            value = self._value(node.iter, names)
            self._bind(node.target, value.element if isinstance(value, ListOf) else None, names)
        else:
            for item in node.items:
                value = self._value(item.context_expr, names)
                if item.optional_vars is not None:
                    self._bind(item.optional_vars, value if isinstance(value, Class) else None, names)
        self._block(node.body, names)
        self._block(getattr(node, "orelse", []), names)

    def _bind(self, target: ast.expr, value: Any, names: Names) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._bind(part, None, names)
        elif isinstance(target, ast.Attribute) and isinstance(owner := names.get(ast.unparse(target.value)), Own):
            owner.attributes[target.attr] = value or owner.attributes.get(target.attr)
        elif not isinstance(target, ast.Starred):
            self._children(target, names)

    def _import(self, node: ast.Import | ast.ImportFrom, names: Names) -> bool:
        """Binds imported names; returns whether all exist."""
        found = True
        for alias in node.names:
            if isinstance(node, ast.Import):
                value, name = self.library.module(alias.name), alias.asname or alias.name.split(".")[0]
                value = value if alias.asname or value is None else self.library.module(name)
            else:
                inside = (node.module or "").split(".")[0] == self.library.package and not node.level
                value = self.library.member(node.module, alias.name) if inside and node.module else OPAQUE
                name = alias.asname or alias.name
            if value != OPAQUE:
                self._count(value, f"there is no {getattr(node, 'module', '') or ''} {alias.name}", node)
            found &= value is not None
            names[name] = value
        return found

    def _try(self, node: ast.Try, names: Names) -> bool:
        catching = [handler for handler in node.handlers if _of_imports(handler)]
        imports = [child for child in node.body if isinstance(child, ast.Import | ast.ImportFrom)]
        if catching and imports:
            before = len(self.problems)
            found = [self._import(child, names) for child in imports]
            if not all(found):
                del self.problems[before:]
                self._taken += catching
                ended = [self._block(handler.body, names) for handler in catching]
                return any(ended)
        body_ended = self._block(node.body, names)
        for handler in node.handlers:
            if handler not in catching:
                self._children(handler, dict(names))
        self._block(node.orelse, names)
        self._block(node.finalbody, names)
        return body_ended and not node.handlers

    def _class(self, node: ast.ClassDef, names: Names) -> None:
        plain = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        bases = [value for base in plain if isinstance(value := self._value(base, names), Class)]
        own = Own(node, bases)
        names[node.name] = own
        inner = {**names, "self": own, "cls": own}
        methods = [child for child in node.body if isinstance(child, Definition)]
        was, self._silent = self._silent, True  # a method may use what a later one sets
        for method in methods:
            self._function(method, inner)
        self._silent = was
        self._block([child for child in node.body if not isinstance(child, Definition)], inner)
        for method in methods:
            self._function(method, inner)
        for base in bases:
            mine = {name for child in ast.walk(node) for name in [getattr(child, "name", getattr(child, "id", ""))]}
            for name in sorted(self.library.abstract(base) - mine):
                self._count(None, f"{base.name} wants a method {name}, which {node.name} lacks", node)

    def _function(self, node: Definition, names: Names) -> None:
        inner = dict(names)
        for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            if arg.arg not in ("self", "cls"):
                inner[arg.arg] = self._annotated(arg.annotation, names) if arg.annotation is not None else None
        self._block(node.body, inner)

    def _annotated(self, annotation: ast.expr, names: Names) -> Any:
        """An object of an annotated class of the library, else None."""
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("list", "Iterator", "Iterable"):
            element = self._annotated(annotation.slice, names)
            return ListOf(element) if element is not None else None
        value = names.get(ast.unparse(annotation)) if isinstance(annotation, ast.Name) else None
        return Class(value.module, value.node, instance=True) if isinstance(value, Class) else None

    def _value(self, node: ast.expr, names: Names) -> Any:
        """Checks an expression; returns what is known of its value."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, names)
        if isinstance(node, ast.Call):
            return self._call(node, names)
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            inner = dict(names)
            for part in getattr(node, "generators", []):
                value = self._value(part.iter, inner)
                self._bind(part.target, value.element if isinstance(value, ListOf) else None, inner)
            for arg in node.args.args if isinstance(node, ast.Lambda) else []:
                inner[arg.arg] = None
            self._children(node, inner)
            return None
        self._children(node, names)
        if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
            return Keys(frozenset(str(key.value) for key in node.keys if isinstance(key, ast.Constant)))
        if isinstance(node, ast.Subscript) and isinstance(value := self._quiet(node.value, names), ListOf):
            return value.element
        return None

    def _quiet(self, node: ast.expr, names: Names) -> Any:
        was, self._silent = self._silent, True
        value = self._value(node, names)
        self._silent = was
        return value

    def _attribute(self, node: ast.Attribute, names: Names) -> Any:
        owner = self._value(node.value, names)
        if isinstance(owner, Own):
            if node.attr in owner.attributes:
                return owner.attributes[node.attr]
            mine = {getattr(child, "name", None) for child in owner.node.body}
            mine |= {ast.unparse(child.target) for child in owner.node.body if isinstance(child, ast.AnnAssign)}
            mine |= {
                ast.unparse(t) for child in owner.node.body if isinstance(child, ast.Assign) for t in child.targets
            }
            if node.attr in mine or not owner.bases:
                return None
            owner = Class(owner.bases[0].module, owner.bases[0].node, instance=True)
        if not isinstance(owner, Module | Class):
            return None
        value = self.library.attribute(owner, node.attr)
        self._count(value, f"{ast.unparse(node.value)} ({owner.name}) has no {node.attr}", node)
        return value

    def _call(self, node: ast.Call, names: Names) -> Any:
        called = self._value(node.func, names)
        values = [self._value(arg.value if isinstance(arg, ast.Starred) else arg, names) for arg in node.args]
        given, open_ended = set(), any(isinstance(arg, ast.Starred) for arg in node.args)
        for keyword in node.keywords:
            value = self._value(keyword.value, names)
            if keyword.arg is not None:
                given.add(keyword.arg)
            elif isinstance(value, Keys):
                given |= value.names
            else:
                open_ended = True
        if isinstance(node.func, ast.Name) and node.func.id in _SAME and values:
            return values[0] if node.func.id != "next" else getattr(values[0], "element", None)
        if not isinstance(called, Class | Function):
            return None
        self._arguments(node, called, given, open_ended)
        return self.library.result(called)

    def _arguments(self, node: ast.Call, called: Class | Function, given: set[str], open_ended: bool) -> None:
        parameters = self.library.parameters(called)
        if parameters is None:
            return
        name = ast.unparse(node.func)
        known = set(parameters.names)
        if isinstance(called, Class) and called.name in self._forwards:
            module, _, target = self._forwards[called.name].rpartition(".")
            taker = self.library.member(module, target)
            known |= set((self.library.parameters(taker) if taker else parameters).names)  # type: ignore[union-attr]
        elif parameters.more_names:
            known |= given
        for keyword in sorted(given):
            self._count(keyword in known or None, f"{name} takes no {keyword}", node)
        positions = sum(not isinstance(arg, ast.Starred) for arg in node.args)
        enough = positions <= parameters.by_position or parameters.more_positions
        self._count(enough or None, f"{name} takes {parameters.by_position} arguments by position", node)
        if not open_ended:
            missing = parameters.required - given - set(parameters.names[:positions])
            self._count(not missing or None, f"{name} also needs {', '.join(sorted(missing))}", node)

    def _count(self, found: Value | bool | None, problem: str, node: Any) -> None:
        if self._silent:
            return
        self.checked += 1
        if found is None:
            self.problems.append(f"{self._file}:{node.lineno}: {problem}")


def _of_imports(handler: ast.ExceptHandler) -> bool:
    return handler.type is not None and "ImportError" in ast.unparse(handler.type)


def _reads(nodes: Iterable[ast.AST]) -> list[str]:
    return [name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)]


def _named(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that are read anywhere in some nodes."""
    return set(_reads(nodes))


def _users(tree: ast.Module, functions: dict[str, Any], name: str) -> set[str]:
    """The functions of a file that read a name; an empty name stands for the rest of the file."""
    users = {user for user, node in functions.items() if user != name and name in _named([node])}
    rest = [node for node in tree.body if node not in functions.values()]
    return users | ({""} if name in _named(rest) else set())
