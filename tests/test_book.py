"""The pages: each runs in its small size, none is out of date, and one that fails makes the build fail."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from compendium import claims, pages, parameters

ROOT = Path(__file__).resolve().parents[1]
PAGES = pages.page_ids()
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for results, so that the small sizes are computed for real; all workers share it."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "results"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_computes_its_small_size_for_real(page: str, tmp_path: Path, results: Path) -> None:
    done = subprocess.run(
        [TOOLS / "papermill", pages.notebook_path(page), tmp_path / "out.ipynb", "-p", "size", "smoke"],
        capture_output=True,
        text=True,
        env={**os.environ, "MOLRG_RESULTS": str(results), "MOLRG_DATA": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert list(pages.faults(out)) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_up_to_date_with_its_text_code_results_and_claims(page: str) -> None:
    assert pages.problems(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_keeps_the_rules(page: str) -> None:
    assert parameters.defaults(page)["size"] == "default"
    shown = nbformat.read(pages.notebook_path(page), as_version=4)
    for cell in shown.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            assert output.get("name") != "stderr"
            assert not re.search(r"0x[0-9a-f]{6,}", str(data.get("text/plain", "")) + output.get("text", ""))
            assert not {"application/javascript", "application/vnd.plotly.v1+json"} & set(data)
            if "image/png" in data:
                assert "mystnb" in cell.metadata, f"a figure of {page} has no caption"
                assert {"name", "caption"} <= set(cell.metadata["mystnb"]["figure"])


def test_every_claim_is_decided_on_its_page_and_shown_there() -> None:
    for claim in claims.load().values():
        assert claim.page in PAGES, claim
        shown = nbformat.read(pages.notebook_path(claim.page), as_version=4)
        outputs = "".join(o.get("text", "") for cell in shown.cells for o in cell.get("outputs", []))
        assert f"{claim.verdict} | {claim.id}: " in outputs, claim


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "book" / "_toc.yml").read_text()
    for page in PAGES:
        assert re.search(rf"(file|root): {page}$", contents, re.MULTILINE), page


@pytest.fixture
def page(page_source: Callable[..., str]) -> str:
    """The text of the small book's only page."""
    return page_source('size = "default"', "print(1 + 1)")


@pytest.fixture
def clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_clone: Callable[..., Path], page: str
) -> Path:
    """A clone whose book has one small page, in a folder with blanks and other letters in its name."""
    folder = make_clone(tmp_path / "ein Klon für später", "index", page)
    for name in ("_ext", "_static"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "book" / name, folder / "book" / name, ignore=ignore)
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / "book" / name, folder / "book" / name)
    (folder / "book" / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    return folder


def start_build(clone: Path) -> subprocess.Popen[str]:
    """Start what `make book` calls."""
    (line,) = re.findall(r"\$\(BIN\)/snakemake (.*)", (ROOT / "Makefile").read_text())
    command = [TOOLS / "snakemake", *line.replace("$(CORES)", "1").split()]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=clone, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def build(clone: Path) -> tuple[int, str]:
    """What `make book` does."""
    process = start_build(clone)
    said, _ = process.communicate()
    return process.returncode, said


def jupyter_book(clone: Path) -> tuple[int, str]:
    done = subprocess.run(
        [TOOLS / "jupyter-book", "build", "book"], cwd=clone, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def files(clone: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(clone)): path.read_bytes()
        for path in clone.rglob("*")
        if path.is_file() and not {"_build", ".snakemake", ".work", "__pycache__"} & set(path.parts)
    }


def test_the_second_build_executes_nothing_and_changes_nothing(clone: Path) -> None:
    code, said = build(clone)
    assert code == 0, said
    assert "executed index" in said
    assert (clone / "book" / "_build" / "html" / "_static" / "vendor" / "vega.js").stat().st_size > 500_000
    assert (
        "MathJax" in (clone / "book" / "_build" / "html" / "_static" / "licences" / "MathJax.txt").read_text()
    )
    before = files(clone)
    for path in clone.rglob("*.*"):
        os.utime(path, (1e9, 1e9) if path.suffix == ".ipynb" else None)  # what a clone may do
    code, said = build(clone)
    assert code == 0, said
    assert "executed index" not in said
    assert files(clone) == before


def test_a_failing_cell_fails_the_build_and_does_so_again(clone: Path, page: str) -> None:
    assert build(clone)[0] == 0
    (clone / "book" / "index.md").write_text(page.replace("1 + 1", "1 / 0"), encoding="utf-8")
    good = (clone / "book" / "index.ipynb").read_bytes()
    for _ in range(2):
        code, said = build(clone)
        assert code != 0
        assert "page index failed" in said
        assert "ZeroDivisionError" in said
        code, said = jupyter_book(clone)
        assert code != 0
        assert "page index: its notebook is older than its text" in said
        assert "run `make book`" in said
    assert (clone / "book" / "index.ipynb").read_bytes() == good


def test_a_warning_fails_the_build_and_does_so_again(clone: Path, page: str) -> None:
    (clone / "book" / "index.md").write_text(page + "\nSee {ref}`nowhere`.\n", encoding="utf-8")
    for _ in range(2):
        code, said = build(clone)
        assert code != 0
        assert "undefined label: 'nowhere'" in said
        assert "the book has 1 warning(s), and none is allowed" in said


def start_slow_build(clone: Path, page: str) -> subprocess.Popen[str]:
    """Start a build and return once its page runs, which takes five seconds."""
    begun = clone / "begun"
    slow = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(5)\nprint(1 + 1)"
    (clone / "book" / "index.md").write_text(page.replace("print(1 + 1)", slow), encoding="utf-8")
    process = start_build(clone)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.1)
    return process


def test_a_build_that_was_killed_does_not_block_the_next(clone: Path, page: str) -> None:
    with start_slow_build(clone, page) as process:
        os.killpg(process.pid, signal.SIGKILL)
    code, said = build(clone)
    assert code == 0, said
    assert "executed index" in said


def test_a_build_waits_for_one_that_runs(clone: Path, page: str) -> None:
    with start_slow_build(clone, page) as first:
        code, said = build(clone)
    assert code == 0, said
    assert "another `make book` is running here: waiting until it ends" in said
    assert "executed index" not in said
    assert first.returncode == 0


def test_a_run_elsewhere_is_shown_as_a_page_that_needs_no_network(tmp_path: Path) -> None:
    shown = nbformat.read(pages.notebook_path("theory/snr"), as_version=4)
    shown.metadata["papermill"] = {"exception": None, "parameters": {"rank": 7}}
    nbformat.write(shown, tmp_path / "out.ipynb")
    page = pages.show(tmp_path / "out.ipynb")
    assert page == tmp_path / "out_html" / "index.html"
    text = page.read_text(encoding="utf-8")
    assert "A run with rank = 7." in re.sub(r"<[^>]+>", "", text)
    assert text.count('class="proof theorem') >= 2
    assert 'class="math notranslate' in text
    assert "vega-lite" in text
    needed = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"?#]+)', text)
    assert {each for each in needed if re.match(r"https?:|//", each)} == set()
    assert {"_static/vendor/tex-svg-full.js", "_static/charts.js"} <= set(needed)
    assert (page.parent / "_static" / "vendor" / "vega.js").exists()
    assert [each for each in needed if not (page.parent / each).exists()] == []


def test_a_run_that_failed_is_not_shown(tmp_path: Path) -> None:
    shown = nbformat.read(pages.notebook_path("theory/snr"), as_version=4)
    next(cell for cell in shown.cells if cell.cell_type == "code").execution_count = None
    nbformat.write(shown, tmp_path / "out.ipynb")
    with pytest.raises(
        pages.PageError, match="code cell 1 has not been executed: run it again with papermill"
    ):
        pages.show(tmp_path / "out.ipynb")
    (tmp_path / "text.ipynb").write_text("no notebook")
    for wrong in ("text.ipynb", "absent.ipynb"):
        with pytest.raises(pages.PageError, match="cannot be read as a notebook"):
            pages.show(tmp_path / wrong)
    assert not list(tmp_path.glob("*_html"))
