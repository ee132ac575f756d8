"""Which tests the daily round runs, in a small clone."""

import shutil
import subprocess
import sys
from pathlib import Path

import changed
import pytest

FILES = {
    "src/library/__init__.py": "from library.one import f\n",
    "src/library/one.py": "from library import base\nf = base.g\n",
    "src/library/base.py": "g = 1\n",
    "src/library/other.py": "",
    "src/library/late.py": "def h():\n    import library.base as b\n    return b.g\n",
    "tests/conftest.py": "",
    "tests/test_handed_on.py": "from library import f\n",
    "tests/test_late.py": "from library.late import h\n",
    "tests/test_other.py": "from library import other\n",
    "tests/test_readme.py": "open('README.md')\n",
    "tests/test_book.py": "from library import f\n",
    "README.md": "",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(changed.__file__, tmp_path / "tests")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (
        ["init", "-qb", "main"],
        ["add", "."],
        [*who, "commit", "-qm", "All"],
        ["switch", "-qc", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("edited", "chosen"),
    [
        ([], []),
        (["src/library/one.py"], ["handed_on"]),
        (["src/library/__init__.py"], ["handed_on"]),
        (["src/library/base.py"], ["handed_on", "late"]),
        (["src/library/other.py", "README.md"], ["other", "readme"]),
        (["tests/test_other.py"], ["other"]),
        (["tests/test_new.py"], ["new"]),
        (["tests/conftest.py"], ["handed_on", "late", "other", "readme"]),
    ],
)
def test_tests_that_reach_what_was_edited(clone: Path, edited: list[str], chosen: list[str]) -> None:
    for name in edited:
        with (clone / name).open("a") as file:
            file.write("# edited\n")
    script = clone / "tests" / "changed.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"tests/test_{name}.py" for name in chosen]
