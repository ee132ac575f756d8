"""A page runs whole or leaves its last good notebook; what is up to date is decided by contents."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from compendium import pages

PARAMETERS = """\
size = "default"
num_classes = 3
delta = 0.2"""
READ = """\
from compendium import claims, parameters
from compendium.parameters import Field


class Page(parameters.Page):
    num_classes: int = Field(ge=2, le=1000)
    delta: float = Field(gt=0, lt=1)


p = Page.read("part/page")
check = claims.Checker("part/page", p)"""
CHECK = """\
check.identity("one against one", error=1e-13, bound=1e-9)
check.claim(
    "one-is-one",
    "reproduced" if p.num_classes < 100 else "not reproduced",
    "1 against 1",
)"""
CLAIMS = """\
one-is-one:
  {statement: One is one., where: Here, source: paper, evidence: proved, page: part/page, verdict: reproduced}
"""


@pytest.fixture(scope="session")
def make(make_clone: Callable[..., Path], page_source: Callable[..., str]) -> Callable[[Path], Path]:
    """Makes a clone with the page above at a folder."""
    return lambda folder: make_clone(folder, "part/page", page_source(PARAMETERS, READ, CHECK), CLAIMS)


@pytest.fixture(scope="module")
def good_notebook(tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], Path]) -> bytes:
    """The page's notebook after a run."""
    folder = make(tmp_path_factory.mktemp("clone") / "folder")
    subprocess.run(
        [sys.executable, "-m", "compendium.pages", "execute", "part/page"],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
    )
    return notebook(folder).read_bytes()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]) -> Path:
    """A clone in a folder with blanks and other letters in its name; the page has not run."""
    folder = make(tmp_path / "a clone für später")
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    monkeypatch.delenv("MOLRG_RESULTS", raising=False)
    return folder


@pytest.fixture
def executed(clone: Path, good_notebook: bytes) -> Path:
    """The same clone, after the page has run."""
    notebook(clone).write_bytes(good_notebook)
    return clone


def text(clone: Path) -> Path:
    return clone / "book" / "part" / "page.md"


def notebook(clone: Path) -> Path:
    return clone / "book" / "part" / "page.ipynb"


def start(*command: str, cwd: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", *command], cwd=cwd, stdout=pipe, stderr=pipe, text=True)


def call(*command: str, cwd: Path) -> tuple[int, str]:
    process = start(*command, cwd=cwd)
    said = "".join(process.communicate(timeout=120))
    return process.returncode, said


def execute(clone: Path, *options: str) -> tuple[int, str]:
    return call("compendium.pages", "execute", *options, "book/part/page.md", cwd=clone)


def status(clone: Path) -> tuple[int, str]:
    return call("compendium.pages", "status", cwd=clone)


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")


def test_a_page_is_executed_once_and_gives_the_same_bytes_again(clone: Path) -> None:
    assert status(clone) == (1, "page part/page was never executed: run `make book`\n")
    assert "executed part/page" in execute(clone)[1]
    first = notebook(clone).read_bytes()
    for path in (text(clone), notebook(clone), clone / "src" / "compendium" / "claims.py"):
        os.utime(path, (0, 0) if path.suffix == ".ipynb" else None)  # what a clone may do
    assert "up to date part/page" in execute(clone)[1]
    assert status(clone) == (0, "up to date: page part/page\n")
    assert "executed part/page" in execute(clone, "--force")[1]
    assert notebook(clone).read_bytes() == first

    shown = json.loads(first)
    assert set(shown["metadata"]) == {"kernelspec", "language_info", "molrg"}
    assert [cell["id"] for cell in shown["cells"]] == [f"cell-{i}" for i in range(len(shown["cells"]))]
    assert all(set(cell["metadata"]) <= {"tags"} for cell in shown["cells"])
    assert shown["cells"][-1]["outputs"][0]["text"] == [
        "holds | one against one: difference <= 1e-09\n",
        "reproduced | one-is-one: 1 against 1\n",
    ]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("book/part/page.md", "# A page", "# The page"),
        ("src/compendium/claims.py", 'print(f"holds', 'print(f"it holds'),
        ("book/claims.yml", "One is one.", "One is still one."),
    ],
)
def test_a_change_of_text_code_or_ledger_is_seen(executed: Path, file: str, old: str, new: str) -> None:
    edit(executed / file, old, new)
    code, said = status(executed)
    assert code == 1
    assert "page part/page: its notebook is older than its text, code, results or recorded verdicts" in said


def test_a_change_that_the_page_does_not_reach_is_not(executed: Path) -> None:
    edit(
        executed / "src" / "compendium" / "claims.py",
        '"""The checks of one page.',
        '"""All checks of one page.',
    )
    assert status(executed)[0] == 0


def test_a_failing_cell_leaves_the_last_good_notebook_and_keeps_the_failed_one(executed: Path) -> None:
    good = notebook(executed).read_bytes()
    edit(text(executed), "error=1e-13", "error=1e-3")
    for _ in range(2):
        code, said = execute(executed)
        assert code == 1
        assert "CheckFailed: one against one: difference 0.001 exceeds the bound 1e-09" in said
        assert notebook(executed).read_bytes() == good
    failed = nbformat.read(executed / "book" / "_build" / "failed" / "part" / "page.ipynb", as_version=4)
    assert any(o.output_type == "error" for cell in failed.cells for o in cell.get("outputs", []))
    assert status(executed)[0] == 1


def test_a_good_run_removes_the_failed_notebook(clone: Path) -> None:
    failed = clone / "book" / "_build" / "failed" / "part" / "page.ipynb"
    edit(text(clone), "error=1e-13", "error=1e-3")
    assert execute(clone)[0] == 1
    assert failed.exists()
    edit(text(clone), "error=1e-3", "error=1e-13")
    assert execute(clone)[0] == 0
    assert not failed.exists()


def test_an_edit_during_a_run_is_refused(clone: Path) -> None:
    code = clone / "src" / "compendium" / "claims.py"
    append = f"with open({str(code)!r}, 'a') as file:\n    _ = file.write('\\nif True:\\n    MORE = 1\\n')\n"
    edit(text(clone), "check.identity(", append + "check.identity(")
    exit_code, said = execute(clone)
    assert exit_code == 1
    assert "page part/page: its text, code or recorded verdicts changed while it ran" in said
    assert not notebook(clone).exists()


def test_a_change_of_verdict_stops_the_page_at_its_defaults_only(clone: Path) -> None:
    edit(clone / "book" / "claims.yml", "verdict: reproduced", "verdict: extended")
    code, said = execute(clone)
    assert code == 1
    assert "the recorded verdict is 'extended', this run finds 'reproduced'" in said


def test_output_to_stderr_is_refused(clone: Path) -> None:
    edit(text(clone), "check.identity(", "import warnings\nwarnings.warn('careful')\ncheck.identity(")
    code, said = execute(clone)
    assert code == 1
    assert "page part/page: writes to stderr:" in said
    assert "careful" in said


def test_two_runs_of_one_page_at_once(clone: Path) -> None:
    runs = [start("compendium.pages", "execute", "--force", "book/part/page.md", cwd=clone) for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert status(clone)[0] == 0
    assert sorted(p.name for p in notebook(clone).parent.iterdir()) == ["page.ipynb", "page.md"]


def test_a_page_is_found_from_anywhere_by_text_notebook_or_id(clone: Path, tmp_path: Path) -> None:
    assert "executed part/page" in call("compendium.pages", "execute", str(text(clone)), cwd=tmp_path)[1]
    assert "up to date part/page" in call("compendium.pages", "execute", "part/page", cwd=tmp_path)[1]
    assert (
        "up to date part/page" in call("compendium.pages", "execute", str(notebook(clone)), cwd=tmp_path)[1]
    )
    code, said = call("compendium.pages", "execute", "part/pages", cwd=tmp_path)
    assert code == 1
    assert said == "part/pages is no page of the book; its pages are part/page\n"


def papermill(clone: Path, folder: Path, name: str, value: str) -> tuple[int, str, Any]:
    """Plain papermill, from a folder elsewhere."""
    out = folder / "out.ipynb"
    process = start("papermill", str(notebook(clone)), str(out), "-p", name, value, cwd=folder)
    said = "".join(process.communicate(timeout=120))
    return process.returncode, said, nbformat.read(out, as_version=4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_clases", "10", "unknown parameter 'num_clases'. Did you mean 'num_classes'?"),
        ("num_classes", "ten", "num_classes = 'ten' is not allowed; it must be int, >= 2, <= 1000."),
        ("delta", "1.5", "delta = 1.5 is not allowed; it must be float, > 0, < 1."),
        ("claims", "x", "unknown parameter 'claims'."),
    ],
)
def test_plain_papermill_stops_at_a_wrong_parameter(
    executed: Path, tmp_path: Path, name: str, value: str, message: str
) -> None:
    code, said, out = papermill(executed, tmp_path, name, value)
    assert code != 0
    for words in (
        message,
        "num_classes: int, >= 2, <= 1000",
        "delta: float, > 0, < 1",
        "size: one of 'default'",
    ):
        assert words in said
    assert not out.cells[-1].outputs  # nothing was computed


def test_plain_papermill_shows_what_it_finds_at_other_parameters(executed: Path, tmp_path: Path) -> None:
    code, said, out = papermill(executed, tmp_path, "num_classes", "100")
    assert code == 0, said
    assert "not reproduced | one-is-one: 1 against 1" in out.cells[-1].outputs[0].text


def clear(shown: Any) -> None:
    for cell in shown.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def fail(shown: Any) -> None:
    shown.metadata["papermill"] = {"exception": True}


def change(shown: Any) -> None:
    shown.cells[-1].source += "\nprint('more')"


def clear_one(shown: Any) -> None:
    shown.cells[-1].outputs = []


def improve(shown: Any) -> None:
    shown.cells[-1].outputs[0].text = shown.cells[-1].outputs[0].text.replace("1e-09", "1e-15")


def forget(shown: Any) -> None:
    shown.metadata["molrg"] = "none"


def forget_results(shown: Any) -> None:
    shown.metadata["molrg"]["results"] = [1]


OTHER_OUTPUTS = "page part/page: the outputs in its notebook are not those of its run: run `make book`"
NO_RECORD = "page part/page: its notebook has no whole record of its run: run `make book`"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (clear, "page part/page: its outputs were cleared: run `make book`"),
        (fail, "page part/page: papermill reports an exception: run `make book`"),
        (change, "page part/page: its notebook differs from its text: run `make book`"),
        (clear_one, OTHER_OUTPUTS),
        (improve, OTHER_OUTPUTS),
        (forget, NO_RECORD),
        (forget_results, NO_RECORD),
    ],
)
def test_a_notebook_that_is_not_fit_to_be_shown_is_named(executed: Path, damage: Any, message: str) -> None:
    shown = nbformat.read(notebook(executed), as_version=4)
    damage(shown)
    nbformat.write(shown, notebook(executed))
    code, said = status(executed)
    assert code == 1
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "cells", "outputs"])
def test_a_file_that_is_no_whole_notebook_is_named(executed: Path, content: str) -> None:
    path = notebook(executed)
    if content in ("cells", "outputs"):
        shown = json.loads(path.read_bytes())
        del (shown if content == "cells" else shown["cells"][-1])[content]
        content = json.dumps(shown)
    path.write_text(content)
    code, said = status(executed)
    assert code == 1
    assert "page part/page: its notebook cannot be read (" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("where", ["book", "."])
def test_nbval_passes_a_good_notebook_and_fails_a_cleared_one(executed: Path, where: str) -> None:
    code, said = call("pytest", "-q", "-p", "no:xdist", "--nbval", where, cwd=executed)
    assert code == 0, said
    assert "3 passed" in said
    shown = nbformat.read(notebook(executed), as_version=4)
    clear(shown)
    nbformat.write(shown, notebook(executed))
    code, said = call("pytest", "-q", "-p", "no:xdist", "--nbval", where, cwd=executed)
    assert code == 1
    assert "its outputs were cleared; run `make book`" in said


def test_a_page_outside_the_book_is_refused() -> None:
    with pytest.raises(ValueError, match="is no page of the book; its pages are"):
        pages.page_id("nothing/like/this")


def test_formatting_touches_the_code_alone_and_once(clone: Path) -> None:
    before = text(clone).read_text(encoding="utf-8")
    edit(text(clone), "num_classes = 3", "num_classes=3")
    edit(text(clone), "import claims, parameters", "import parameters, claims")
    for _ in range(2):
        assert call("compendium.pages", "format", "book/part/page.md", cwd=clone) == (0, "")
        assert text(clone).read_text(encoding="utf-8") == before


def test_code_that_cannot_be_read_is_not_formatted(clone: Path) -> None:
    edit(text(clone), "num_classes = 3", "num_classes = (")
    before = text(clone).read_bytes()
    code, said = call("compendium.pages", "format", "book/part/page.md", cwd=clone)
    assert code == 1
    assert "page part/page: " in said
    assert text(clone).read_bytes() == before
