"""Print the test modules that reach a file changed since the branch left main: what `make check` runs.

A test reaches a source file by imports, followed from file to file, and any other file by naming it.
"""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "src", ROOT / "tests", ROOT)  # where a module is looked for
NEED_THE_BOOK = ("test_book.py", "test_browser.py")


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def changed() -> set[Path]:
    """Files that differ from the commit at which the branch left main, and new ones."""
    bases = git("for-each-ref", "--format=%(refname)", "refs/heads/main", "refs/remotes/origin/main")
    start = git("merge-base", "HEAD", bases[0])[0] if bases else "HEAD"
    names = git("diff", "--name-only", start) + git("ls-files", "--others", "--exclude-standard")
    return {ROOT / name for name in names}


@cache
def bindings(path: Path) -> dict[str, tuple[str, str]]:
    """What the imports of a file bind, wherever they stand: name -> (module, name in it or nothing)."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


def file_of(module: str) -> Path | None:
    below = Path(*module.split("."))
    places = (folder / each for folder in FOLDERS for each in (f"{below}.py", below / "__init__.py"))
    return next((place for place in places if place.is_file()), None)


def files(module: str, name: str) -> Iterator[Path]:
    """The file that holds a name of a module, and those that hand it on."""
    if name and file_of(f"{module}.{name}"):
        yield from files(f"{module}.{name}", "")
    elif path := file_of(module):
        yield path
        if path.name == "__init__.py":
            handed_on = bindings(path)
            for each in [handed_on[name]] if name in handed_on else handed_on.values():
                yield from files(*each)


def reached(start: Path) -> set[Path]:
    """A file and all that its imports lead to."""
    found, waiting = {start}, [start]
    while waiting:
        for module, name in bindings(waiting.pop()).values():
            new = set(files(module, name)) - found
            found |= new
            waiting += [path for path in new if path.name != "__init__.py"]  # it is followed by name
    return found


def concerned(test: Path, differing: set[Path]) -> bool:
    """Whether a test module, with the fixtures that all share, reaches one of some files or names it."""
    sources = reached(test) | reached(test.with_name("conftest.py"))
    others = [path.name for path in differing if path.suffix != ".py"]
    return bool(sources & differing) or any(name in test.read_text(encoding="utf-8") for name in others)


def main() -> None:
    differing = changed()
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        if test.name not in NEED_THE_BOOK and concerned(test, differing):
            print(test.relative_to(ROOT))


if __name__ == "__main__":
    main()
