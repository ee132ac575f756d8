"""A digest of the code that a computation reaches, so that a result knows what made it.

The package's modules are read as text, never run. From a function, or from a page's source, the digest
follows every name to the top-level definition in `molrg` that it stands for, and from there onwards. It
covers those definitions and no others: comments, docstrings, layout and unrelated edits leave it alone.
Where a name cannot be followed (a module passed as a value), the whole module counts. Which class an object
has is not known: a method counts where its class is reached and its name is an attribute of anything.
"""

import ast
import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = "molrg"
_FOLDER = Path(__file__).resolve().parent


def of_function(function: Callable[..., Any]) -> str:
    """Digest (64 hexadecimal digits) of what a module-level function of the package reaches.

    Raises `ValueError` for any other function: its code cannot be followed, or cannot be found again.
    """
    module, name = function.__module__, function.__qualname__
    if not _exists(module) or name not in _module(module).definitions:
        raise ValueError(f"{module}.{name} must be a function at the top level of a module of {PACKAGE}")
    return _digest(_reach([(module, name)]))


def of_source(source: str) -> str:
    """Digest of Python source and of everything in the package that it reaches."""
    page = _Module("__page__", source)
    return _digest(page.everything() | _reach(page.names_used(page.statements), page.statements))


def _digest(reached: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(reached.items())).encode()).hexdigest()


class _Module:
    """One module as text: its top-level statements, and the names that they bind."""

    def __init__(self, name: str, source: str, is_package: bool = False):
        self.name = name
        self.package = name if is_package else name.rpartition(".")[0]
        self.statements = [s for s in ast.parse(source).body if not _is_docstring(s)]
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}  # bound name -> (module, name in it)
        self.effects: list[
            ast.stmt
        ] = []  # statements that bind nothing: they count with any part of the module
        for statement in self.statements:
            self.imports |= self._imported(statement)
            bound = set(_bound(statement))
            for each in bound:
                self.definitions.setdefault(each, []).append(statement)
            if not bound and not isinstance(statement, (ast.Import, ast.ImportFrom)):
                self.effects.append(statement)

    def everything(self) -> dict[str, str]:
        return {f"{self.name}.{i}": _canonical(s) for i, s in enumerate(self.statements)}

    def names_used(self, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str | None]]:
        """What the names in some nodes stand for: (module, name in it), or (module, None) for all of it."""
        for node in nodes:
            imports = self.imports | self._imported(node)
            followed: set[int] = set()
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and id(part) not in followed:
                    names, base = [part.attr], part.value
                    while isinstance(base, ast.Attribute):
                        names.insert(0, base.attr)
                        followed.add(id(base))
                        base = base.value
                    if isinstance(base, ast.Name):
                        followed.add(id(base))
                        yield from self._resolve(base.id, names, imports)
                elif isinstance(part, ast.Name) and id(part) not in followed:
                    yield from self._resolve(part.id, [], imports)

    def _resolve(
        self, name: str, attributes: list[str], imports: dict[str, tuple[str, str | None]]
    ) -> Iterator[tuple[str, str | None]]:
        if name in self.definitions:
            yield self.name, name
        if name in imports:
            module, original = imports[name]
            if original is not None and not _exists(f"{module}.{original}"):
                yield module, original
                return
            module = module if original is None else f"{module}.{original}"
            for attribute in attributes:  # walk down: molrg.snr.exact
                if not _exists(f"{module}.{attribute}"):
                    yield module, attribute
                    return
                module = f"{module}.{attribute}"
            yield module, None

    def _imported(self, node: ast.AST) -> dict[str, tuple[str, str | None]]:
        bound: dict[str, tuple[str, str | None]] = {}
        for part in ast.walk(node):
            if isinstance(part, ast.Import):
                for alias in part.names:
                    target = alias.name if alias.asname else alias.name.partition(".")[0]
                    bound[alias.asname or target] = (target, None)
            elif isinstance(part, ast.ImportFrom):
                above = self.package.split(".")[: len(self.package.split(".")) - part.level + 1]
                module = (
                    part.module or ""
                    if part.level == 0
                    else ".".join([*above, part.module or ""]).rstrip(".")
                )
                for alias in part.names:
                    bound[alias.asname or alias.name] = (module, alias.name)
        return bound


def _reach(start: Iterable[tuple[str, str | None]], nodes: Iterable[ast.AST] = ()) -> dict[str, str]:
    """Every definition reached from some names and nodes: its full name and its canonical text."""
    reached: dict[str, str] = {}
    waiting = list(start)
    seen: set[tuple[str, str | None]] = set()
    used = set().union(*map(_attributes, nodes))  # whatever object they are attributes of
    unused: list[
        tuple[_Module, str, ast.FunctionDef]
    ] = []  # methods of reached classes that nothing has named yet

    def count(module: _Module, name: str, parts: Sequence[ast.stmt]) -> None:
        reached[name] = "\n".join(map(_canonical, parts))
        waiting.extend(module.names_used(parts))
        used.update(*map(_attributes, parts))

    while waiting or any(method.name in used for _, _, method in unused):
        for module, name, method in [each for each in unused if each[2].name in used]:
            count(module, name, [method])
        unused = [each for each in unused if each[1] not in reached]
        if not waiting or (target := waiting.pop()) in seen:
            continue
        seen.add(target)
        name, wanted = target
        if name.partition(".")[0] != PACKAGE:
            reached[f"{name}:{wanted}"] = "outside"
            continue
        module = _module(name)
        if wanted in module.definitions:
            parts = []
            for node in module.definitions[wanted]:
                shell, methods = _split(node)
                parts.append(shell)
                unused += [(module, f"{name}.{wanted}.{method.name}", method) for method in methods]
            count(module, f"{name}.{wanted}", parts)
        elif wanted in module.imports:  # handed on from another module
            waiting.extend(module._resolve(wanted, [], module.imports))
        else:
            count(module, name, module.statements)  # all of it
        count(module, f"{name}: effects", module.effects)
    return reached


def _attributes(node: ast.AST) -> set[str]:
    """Every name by which a node may ask an object for a method: attributes, and texts for `getattr`."""
    parts = list(ast.walk(node))
    texts = {p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)}
    return {p.attr for p in parts if isinstance(p, ast.Attribute)} | texts


def _split(node: ast.stmt) -> tuple[ast.stmt, list[ast.FunctionDef]]:
    """A class without the methods that only a call by name can reach, and those methods.

    A class with a base counts whole: its base may call any of its methods.
    """
    if not isinstance(node, ast.ClassDef) or node.bases or node.keywords:
        return node, []
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("__")]
    shell = copy.copy(node)
    shell.body = [part for part in node.body if part not in methods]
    return shell, methods


@lru_cache
def _module(name: str) -> _Module:
    path = _path(name)
    if path is None:
        raise ImportError(f"{name} is not a module of {PACKAGE}")
    return _Module(name, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")


def _exists(name: str) -> bool:
    return _path(name) is not None


def _path(name: str) -> Path | None:
    head, *rest = name.split(".")
    if head != PACKAGE:
        return None
    base = _FOLDER.joinpath(*rest)
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return file if file.is_file() else None


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds, imports aside."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            yield from _bound(child)
        elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
            for inner in child.body:
                yield from _bound(inner)
        else:
            for part in ast.walk(child):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _canonical(node: Any) -> str:
    """A syntax tree as text, the same on every Python: no positions, docstrings or empty fields."""
    if isinstance(node, list):
        kept = [n for n in node if not (isinstance(n, ast.stmt) and _is_docstring(n))]
        return "[" + ",".join(map(_canonical, kept)) + "]"
    if isinstance(node, ast.JoinedStr):  # Pythons differ in how they split the text between the fields
        return f"JoinedStr({','.join(_canonical(v) for v in node.values if not _is_empty_text(v))})"
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "kind", "type_comment") or (value is None and name != "value") or value == []:
                continue
            fields.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(fields)})"
    return repr(node)


def _is_empty_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""
