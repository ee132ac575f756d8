"""A digest of the code that a computation reaches, so that a result knows what made it.

The package's modules are read as text, never run. From a function, or from a page's source, the digest
follows every name to the top-level definition in `molrg` that it stands for, and from there onwards. It
covers those definitions and no others: comments, docstrings, layout and unrelated edits leave it alone.
Where a name cannot be followed (a module passed as a value), the whole module counts. A class counts whole,
and so does every statement that may act when its module is imported.
"""

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = "molrg"
_FOLDER = Path(__file__).resolve().parent


def of_function(function: Callable[..., Any]) -> str:
    """Digest (64 hexadecimal digits) of what a module-level function reaches, by the files as they are now.

    Raises `ValueError` for any other function: its code cannot be followed, or cannot be found again.
    """
    return of_name(_name(function))


def of_name(name: str) -> str:
    """Digest of the function `name`, such as `molrg.snr.theorem`, by the files as they are now.

    Raises `ValueError` where there is no such function at the top level of a module of the package.
    """
    return _of_name(name, _read_sources())


def of_loaded(function: Callable[..., Any]) -> str:
    """Digest of what a function reaches, by the files as they were when this module was imported.

    It belongs to the code that runs in this process: an edit made since then does not change it.
    """
    return _of_name(_name(function), _LOADED)


def of_source(source: str) -> str:
    """Digest of Python source and of everything that it reaches in the files of the package as they are."""
    sources = _read_sources()
    page = _Module("__page__", source, frozenset(sources))
    return _digest(page.everything() | _reach(page.names_used(page.statements), sources))


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _of_name(name: str, sources: Mapping[str, str]) -> str:
    module, _, own = name.rpartition(".")
    if module not in sources or own not in _module(module, sources).definitions:
        raise ValueError(f"{name} must be a function at the top level of a module of {PACKAGE}")
    return _digest(_reach([(module, own)], sources))


def _digest(reached: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(reached.items())).encode()).hexdigest()


def _read_sources() -> dict[str, str]:
    """The text of every module of the package, by the module's name."""
    sources = {}
    for path in sorted(_FOLDER.rglob("*.py")):
        parts = path.relative_to(_FOLDER).with_suffix("").parts
        if path.is_file() and all(part.isidentifier() for part in parts):
            name = ".".join([PACKAGE, *parts]).removesuffix(".__init__")
            sources[name] = path.read_text(encoding="utf-8")
    return sources


_LOADED = _read_sources()


class _Module:
    """One module as text: its top-level statements, and the names that they bind."""

    def __init__(self, name: str, source: str, known: frozenset[str] = frozenset(_LOADED)):
        self.name = name
        self.known = known  # the names of all modules
        is_package = any(other.startswith(f"{name}.") for other in known)
        self.package = name if is_package else name.rpartition(".")[0]
        self.statements = [s for s in ast.parse(source).body if not _is_docstring(s)]
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}  # bound name -> (module, name in it)
        for statement in self.statements:
            self.imports |= self._imported(statement)
            for each in set(_bound(statement)):
                self.definitions.setdefault(each, []).append(statement)
        self.effects = list(filter(self._acts, self.statements))  # they count with any part of the module
        self._parts: dict[str, tuple[str, list[tuple[str, str | None]]]] = {}

    def _acts(self, statement: ast.stmt) -> bool:
        """Whether a statement may do more, when the module is imported, than bind its names."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            return False
        if isinstance(statement, ast.If) and not statement.orelse and _is_not_run(statement.test):
            return False
        if isinstance(statement, _COMPOUND) or not any(_bound(statement)):
            return True
        decorators = getattr(statement, "decorator_list", [])
        return any(name.partition(".")[0] == PACKAGE for name, _ in self.names_used(decorators))

    def everything(self) -> dict[str, str]:
        return {f"{self.name}.{i}": _canonical(s) for i, s in enumerate(self.statements)}

    def part(self, name: str, statements: list[ast.stmt]) -> tuple[str, list[tuple[str, str | None]]]:
        """The canonical text of the statements of a name in the module, and what they use; found once."""
        if name not in self._parts:
            text = "\n".join(map(_canonical, statements))
            self._parts[name] = text, list(self.names_used(statements))
        return self._parts[name]

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
            if original is not None and f"{module}.{original}" not in self.known:
                yield module, original
                return
            module = module if original is None else f"{module}.{original}"
            for attribute in attributes:  # walk down: molrg.snr.exact
                if f"{module}.{attribute}" not in self.known:
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


def _reach(start: Iterable[tuple[str, str | None]], sources: Mapping[str, str] = _LOADED) -> dict[str, str]:
    """Every definition reached from some names: its full name and its canonical text."""
    reached: dict[str, str] = {}
    waiting = list(start)
    seen: set[tuple[str, str | None]] = set()

    def count(module: _Module, name: str, statements: list[ast.stmt]) -> None:
        reached[name], used = module.part(name, statements)
        waiting.extend(used)

    while waiting:
        if (target := waiting.pop()) in seen:
            continue
        seen.add(target)
        name, wanted = target
        if name.partition(".")[0] != PACKAGE:
            reached[f"{name}:{wanted}"] = "outside"
            continue
        module = _module(name, sources)
        if wanted in module.definitions:
            count(module, f"{name}.{wanted}", module.definitions[wanted])
        elif wanted in module.imports:  # handed on from another module
            waiting.extend(module._resolve(wanted, [], module.imports))
        else:
            count(module, name, module.statements)  # all of it
        count(module, f"{name}: effects", module.effects)
    return reached


def _module(name: str, sources: Mapping[str, str]) -> _Module:
    if name not in sources:
        raise ImportError(f"{name} is not a module of {PACKAGE}")
    return _parsed(name, sources[name], frozenset(sources))


_parsed = lru_cache(maxsize=256)(_Module)  # by content: an edited file is another key

_COMPOUND = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.TryStar, ast.Match)


def _is_not_run(test: ast.expr) -> bool:
    """Whether a condition is false whenever a module is imported: the guards of scripts and type checkers."""
    text = ast.unparse(test)
    return text in ("__name__ == '__main__'", "TYPE_CHECKING", "typing.TYPE_CHECKING")


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
