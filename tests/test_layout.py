"""The arrows between the packages point one way, and nobody reaches into another module."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
FLOORS = ("support", "model", "snr", "measuring", "learning", "images")
"""The folders of the library, from the ground up: each may use those before it."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(SRC.rglob("*.py"))}


@lru_cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, str | None, str]]:
    """What a module imports, also inside functions: (module, name in it or None, what it is called)."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = (whole, None) if whole in MODULES else (node.module or "", alias.name)
                yield *known, alias.asname or alias.name


def imported(module: str) -> set[str]:
    return {target for target, _, _ in imports(module) if target.partition(".")[0] in PACKAGES}


PACKAGES = {module.partition(".")[0] for module in MODULES}


def floor(module: str) -> int:
    """The floor of a module of the library; its front door, `molrg` itself, is above all."""
    return FLOORS.index(module.split(".")[1]) if "." in module else len(FLOORS)


def test_there_are_three_packages() -> None:
    assert {"molrg", "experiments", "compendium"} == PACKAGES
    assert {module.split(".")[1] for module in MODULES if module.startswith("molrg.")} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module: str) -> None:
    package = module.partition(".")[0]
    for target in imported(module):
        if package == "molrg":
            assert target.partition(".")[0] == "molrg", f"{module} imports {target}"
            assert floor(target) <= floor(module), f"{module} imports {target}, which is above it"
        elif package == "compendium":
            allowed = ("compendium", "molrg.support")
            assert target.startswith(allowed), f"{module} imports {target}"


@pytest.mark.parametrize("module", MODULES)
def test_nobody_uses_names_that_are_private_to_another_module(module: str) -> None:
    local = {called: target for target, name, called in imports(module) if name is None and target in MODULES}
    used = [
        f"{target}.{name}"
        for target, name, _ in imports(module)
        if name and target.partition(".")[0] in PACKAGES
    ]
    used += [
        f"{local[node.value.id]}.{node.attr}"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in local
    ]
    private = [each for each in used if each.rpartition(".")[2].startswith("_")]
    assert not private, f"{module} uses {private}"


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_listed(module: str) -> None:
    names: dict[str, ast.expr | None] = {}
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id: node.value for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    listed = names.pop("__all__", None)
    public = {name for name in names if not name.startswith("_")}
    if listed is None:
        assert not public, f"{module} has no __all__"
    else:
        found = ast.literal_eval(listed)
        handed_on = {called for _, _, called in imports(module)}
        assert public <= set(found) <= public | handed_on, f"{module} lists {found}"


def test_the_picture_shows_the_arrows_between_the_packages() -> None:
    picture = (SRC.parent / "book" / "_static" / "structure.svg").read_text(encoding="utf-8")
    drawn = set(re.findall(r'id="arrow-(\w+)-(\w+)"', picture))
    used = {
        (module.partition(".")[0], target.partition(".")[0])
        for module in MODULES
        for target in imported(module)
    }
    used |= {("book", package) for package in PACKAGES}
    assert drawn == {(package, target) for package, target in used if package != target}
    folders = [folder for folder in re.findall(r">(\w+): ", picture) if folder in FLOORS]
    assert folders == [*reversed(FLOORS)]
