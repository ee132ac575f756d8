"""A digest of the code that a computation reaches, so that a result knows what made it.

The modules of our packages are read as text, never run. From a function, or from a page's source, the digest
follows every name to the top-level definition that it stands for, and from there onwards. It covers the texts
of those definitions and nothing else. They are numbered in the order in which they are first met, and in each
text the number stands for the name: modules, definitions and imports may be moved and renamed. Comments,
docstrings, layout and unrelated edits change nothing either; names of other packages count, written out.

Where a name cannot be followed (a module passed as a value), the whole module counts; what a comprehension or
the body of a class calls like a definition counts as that definition too. A class counts whole,
and so does every statement that may act when a module is imported from which something is reached.
"""

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["PACKAGES", "of_function", "of_loaded", "of_name", "of_source"]

PACKAGES = ("molrg", "experiments", "compendium")
"""The packages whose code counts; any other is known by the names that are used of it."""

_FOLDER = Path(__file__).resolve().parents[1]
_PAGE = "__page__"

_Key = tuple[str, str]  # a module and a name defined in it, or one of the following
_WHOLE = "*"
_EFFECTS = "!"


class _Use(NamedTuple):
    """A name with the attributes taken of it: in full, `module.name`, for each that it may stand for."""

    paths: tuple[str, ...]


_Piece = str | _Use

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_SILENT_FIELDS = ("ctx", "kind", "type_comment")
_COMPOUND = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.TryStar, ast.Match)


def of_function(function: Callable[..., Any]) -> str:
    """Digest (64 hexadecimal digits) of what a module-level function reaches, by the files as they are now.

    Raises `ValueError` for any other function: its code cannot be followed, or cannot be found again.
    """
    return of_name(_name(function))


def of_name(name: str) -> str:
    """Digest of the function `name`, such as `molrg.snr.theorem`, by the files as they are now.

    Raises `ValueError` where there is no such function at the top level of a module of our packages.
    """
    return _of_name(name, _read_sources())


def of_loaded(function: Callable[..., Any]) -> str:
    """Digest of what a function reaches, by the files as they were when this module was imported.

    It belongs to the code that runs in this process: an edit made since then does not change it.
    """
    return _of_name(_name(function), _LOADED)


def of_source(source: str) -> str:
    """Digest of Python source and of everything that it reaches in our packages' files as they are."""
    return _digest((_PAGE, _WHOLE), _read_sources() | {_PAGE: source})


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _of_name(name: str, sources: Mapping[str, str]) -> str:
    module, _, own = name.rpartition(".")
    if module not in sources or own not in _module(module, sources).definitions:
        raise ValueError(f"{name} must be a function at the top level of a module of {', '.join(PACKAGES)}")
    return _digest((module, own), sources)


def _digest(start: _Key, sources: Mapping[str, str]) -> str:
    reached, modules = _reach(start, sources)
    effects: dict[str, list[str]] = {}
    while waiting := sorted(modules - effects.keys()):
        for module in waiting:
            found, others = _reach((module, _EFFECTS), sources)
            effects[module] = list(found.values())
            modules |= others
    # Sorted by their texts: the modules' names do not count.
    acting = sorted(texts for module, texts in effects.items() if _module(module, sources).effects)
    return hashlib.sha256(repr((list(reached.values()), acting)).encode()).hexdigest()


def _read_sources() -> dict[str, str]:
    """The text of every module of our packages, by the module's name; of a mere folder it is empty."""
    sources: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((_FOLDER / package).rglob("*.py")):
            parts = path.relative_to(_FOLDER).with_suffix("").parts
            if path.is_file() and all(part.isidentifier() for part in parts):
                sources |= {
                    above: "" for i in range(1, len(parts)) if (above := ".".join(parts[:i])) not in sources
                }
                sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


_LOADED = _read_sources()


def _reach(start: _Key, sources: Mapping[str, str] = _LOADED) -> tuple[dict[_Key, str], set[str]]:
    """Every definition reached and its text, in the order first met, and the modules run for them."""
    numbers = {start: 0}
    waiting = [start]
    modules: set[str] = set()
    texts: dict[_Key, str] = {}

    def references(path: str) -> Iterator[str]:
        for target, attributes in _follow(path, sources, modules):
            if isinstance(target, str):
                yield f":{target}"
                continue
            if target not in numbers:
                numbers[target] = len(numbers)
                waiting.append(target)
            yield ".".join([f"#{numbers[target]}", *attributes])

    def text(piece: _Piece) -> str:
        if isinstance(piece, str):
            return piece
        return "|".join(dict.fromkeys(each for path in piece.paths for each in references(path)))

    for key in waiting:  # which grows
        modules.update(_with_parents(key[0], sources))
        texts[key] = "".join(map(text, _module(key[0], sources).part(key[1])))
    return texts, modules


def _follow(
    path: str, sources: Mapping[str, str], modules: set[str]
) -> Iterator[tuple[_Key | str, list[str]]]:
    """What `module.name.attribute` may stand for, and the attributes left over; the path if it is not ours.

    The modules that hand it on are added to `modules`.
    """
    module, *names = path.split(".")
    if module not in sources:
        yield path, []
        return
    while names:
        modules.update(_with_parents(module, sources))
        here, (name, *attributes) = _module(module, sources), names
        if name not in here.definitions and f"{module}.{name}" in sources:
            module, names = f"{module}.{name}", attributes
            continue
        if name in here.definitions:
            yield (module, name), attributes
        for target in here.imports.get(name, ()):
            yield from _follow(".".join([target, *attributes]), sources, modules)
        if name in here.definitions or name in here.imports:
            return
        break
    yield (module, _WHOLE), names


def _with_parents(module: str, sources: Mapping[str, str]) -> Iterator[str]:
    """A module and the packages around it, all of which are run when it is imported."""
    while module in sources:
        yield module
        module = module.rpartition(".")[0]


_Names = Mapping[str, tuple[str, ...]]
"""Names that are followed, with the full paths of what each may stand for."""


class _Module:
    """One module as text: its top-level statements, and the names that they bind."""

    def __init__(self, name: str, source: str, known: frozenset[str] = frozenset(_LOADED)):
        self.name = name
        is_package = any(other.startswith(f"{name}.") for other in known)
        self.package = name if is_package else name.rpartition(".")[0]
        self.ours = {each.partition(".")[0] for each in known | {name}}
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, ...]] = {}
        self.statements = [s for s in ast.parse(source).body if not _is_docstring(s)]
        for statement in self.statements:
            for each, paths in self._bound([statement]).items():
                if paths:
                    self.imports[each] = self.imports.get(each, ()) + paths
                else:
                    self.definitions.setdefault(each, []).append(statement)
        self.top = {each: (f"{name}.{each}",) for each in [*self.imports, *self.definitions]}
        self.effects = list(filter(self._acts, self.statements))  # they count with any part of the module
        self._parts: dict[str, list[_Piece]] = {}

    def _acts(self, statement: ast.stmt) -> bool:
        """Whether a statement may do more, when the module is imported, than bind its names."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            return False
        if isinstance(statement, ast.If) and not statement.orelse and _is_not_run(statement.test):
            return False
        if isinstance(statement, _COMPOUND) or not self._bound([statement]):
            return True
        decorators = self._pieces(getattr(statement, "decorator_list", []), self.top)
        return any(self._is_ours(path) for use in decorators if isinstance(use, _Use) for path in use.paths)

    def _is_ours(self, path: str) -> bool:
        """Whether a path leads to a definition of our packages, by the imports of this module."""
        own = path.removeprefix(f"{self.name}.").partition(".")[0]
        targets = [path] if own in self.definitions else self.imports.get(own, (path,))
        return any(target.partition(".")[0] in self.ours for target in targets)

    def part(self, name: str) -> list[_Piece]:
        """The text of a definition, of the effects, or of the whole module, whose names count as well."""
        if name not in self._parts:
            statements = {_WHOLE: self.statements, _EFFECTS: self.effects} | self.definitions
            names = [",".join(sorted(self.definitions))] if name == _WHOLE else []
            self._parts[name] = [*names, *self._pieces(statements[name], self.top)]
        return self._parts[name]

    def _bound(self, nodes: Iterable[ast.AST]) -> dict[str, tuple[str, ...]]:
        """The names that some nodes bind in their scope, with the paths of what is imported under them."""
        bound: dict[str, tuple[str, ...]] = {}
        for part in (part for node in nodes for part in _same_scope(node)):
            if isinstance(part, (ast.Import, ast.ImportFrom)):
                for name, path in self._imported(part):
                    bound[name] = tuple(dict.fromkeys([*bound.get(name, ()), path]))
            elif isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
                bound.setdefault(part.id, ())
            elif isinstance(part, (*_DEFINITIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
                bound.setdefault(part.name or "_", ())
            elif isinstance(part, ast.MatchMapping):
                bound.setdefault(part.rest or "_", ())
        return bound

    def _imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, alias.name if alias.asname else name
            return
        above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            if alias.name == "*":
                raise ValueError(f"{self.name} imports * from {module}, whose names cannot be followed")
            yield alias.asname or alias.name, f"{module}.{alias.name}"

    def _inside(self, node: Any, names: _Names) -> _Names:
        """The names that are followed in the body of a function: no variables, but its own imports."""
        arguments = [part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)]
        body: list[Any] = node.body if isinstance(node.body, list) else [node.body]
        inside = dict(names) | dict.fromkeys(arguments, ()) | self._bound(body)
        for part in (part for each in body for part in _same_scope(each)):
            if isinstance(part, ast.Global):
                inside |= {name: self.top.get(name, ()) for name in part.names}
        return inside

    def _pieces(self, node: Any, names: _Names, outermost: bool = True) -> Iterator[_Piece]:
        """A syntax tree as text, the same on every Python: no positions, docstrings or empty fields."""
        if isinstance(node, list):
            yield "["
            for each in node:
                if not (isinstance(each, ast.stmt) and _is_silent(each)):
                    yield from self._pieces(each, names, outermost)
                    yield ","
            yield "]"
        elif not isinstance(node, ast.AST):
            yield repr(node)
        elif use := _followed(node, names):
            yield use
        else:
            yield f"{type(node).__name__}("
            for name, value in ast.iter_fields(node):
                if name in _SILENT_FIELDS or value == [] or (value is None and name != "value"):
                    continue
                if isinstance(
                    node, ast.JoinedStr
                ):  # Pythons differ in how they split text between the fields
                    value = [each for each in value if not _is_empty_text(each)]
                yield f"{name}="
                if outermost and isinstance(node, _DEFINITIONS) and name == "name":
                    yield _Use(names[value])
                else:
                    inner = name == "body" and isinstance(node, _Function)
                    around = self._inside(node, names) if inner else names
                    yield from self._pieces(value, around, outermost and isinstance(node, _COMPOUND))
                yield ","
            yield ")"


def _followed(node: ast.AST, names: _Names) -> _Use | None:
    """What a name and the attributes taken of it may stand for; None where it is not followed."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or not names.get(node.id):
        return None
    return _Use(tuple(".".join([path, *attributes]) for path in names[node.id]))


def _same_scope(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it that may bind names in its scope; comprehensions bind in their own."""
    yield node
    if isinstance(node, _COMPREHENSIONS):
        yield from (each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
        return
    for name, value in ast.iter_fields(node):
        if name != "body" or not isinstance(node, _Function | ast.ClassDef):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    yield from _same_scope(each)


def _module(name: str, sources: Mapping[str, str]) -> _Module:
    return _parsed(name, sources[name], frozenset(sources))


_parsed = lru_cache(maxsize=256)(_Module)  # by content: an edited file is another key


def _is_not_run(test: ast.expr) -> bool:
    """Whether a condition is false whenever a module is imported: the guards of scripts and type checkers."""
    text = ast.unparse(test)
    return text in ("__name__ == '__main__'", "TYPE_CHECKING", "typing.TYPE_CHECKING")


def _is_silent(node: ast.stmt) -> bool:
    """Whether a statement is no text of its own: what is imported counts where it is used."""
    return isinstance(node, (ast.Import, ast.ImportFrom)) or _is_docstring(node)


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_empty_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""
