"""From a page's text to its executed notebook, which is what the book shows.

    python -m compendium.pages format book/theory/snr.md
    python -m compendium.pages execute book/theory/snr.md
    python -m compendium.pages status
    python -m compendium.pages show out.ipynb    # a run by papermill, as a page of its own in out_html/

A page is up to date when its text, the code of the package that it reaches, the stored results that it used
and the verdicts recorded for it are those of its last run: contents count, modification times do not. A page
that fails leaves the notebook of its last good run as it was. The notebook names a digest of its outputs, so
that one edited by hand is found.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compendium import claims, code_digest
from compendium.paths import page_text, results_folder
from compendium.results import listed
from molrg.support.atomic_files import write_atomically
from molrg.support.clone import ROOT

__all__ = [
    "BOOK",
    "FAILED",
    "HIDDEN",
    "PageError",
    "execute",
    "faults",
    "format_code",
    "formatted",
    "is_visible",
    "main",
    "notebook_path",
    "page_id",
    "page_ids",
    "problems",
    "show",
    "tidy",
]

BOOK = ROOT / "book"
FAILED = BOOK / "_build" / "failed"
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
"""Tags of code that the reader sees when asked for, or not at all."""
_REBUILD = "run `make book`"
_CODE_CELL = re.compile(  # what opens a cell, with its options; its code; what closes it
    r"^(```\{code-cell\}.*\n(?:---\n(?:.*\n)*?---\n|(?::.*\n)*)\n*)((?:(?!```).*\n)*)(```)$", re.MULTILINE
)


class PageError(RuntimeError):
    """A page failed, or its notebook is not fit to be shown."""


def page_ids() -> list[str]:
    """Every page that is executed: the texts of the book that hold code cells, in alphabetical order."""
    texts = (p for p in BOOK.rglob("*.md") if "_build" not in p.parts)
    return sorted(
        p.relative_to(BOOK).with_suffix("").as_posix() for p in texts if "{code-cell}" in p.read_text("utf-8")
    )


def page_id(path: str | Path) -> str:
    """The id of a page given by its text, its notebook or its id.

    Raises `ValueError` where the book has no such page; the message names those that it has.
    """
    candidate = Path(path).resolve()
    if candidate.is_relative_to(BOOK):
        candidate = candidate.relative_to(BOOK).with_suffix("")
        if page_text(candidate.as_posix()).is_file():
            return candidate.as_posix()
    if page_text(str(path)).is_file():
        return str(path)
    raise ValueError(f"{path} is no page of the book; its pages are {', '.join(page_ids())}")


def notebook_path(page: str) -> Path:
    """The executed notebook of a page."""
    return BOOK / f"{page}.ipynb"


def format_code(page: str) -> None:
    """Let ruff fix and format the code in a page's text; all else in the text stays as it is.

    Visible code gets lines of 80 characters, which fit beside the table of contents; hidden code lines as
    long as those of modules. Raises `PageError` where ruff cannot read the code.
    """
    text = page_text(page).read_text(encoding="utf-8")
    new = formatted(page, text)
    if new != text:
        write_atomically(page_text(page), new.encode())


def is_visible(cell: Any) -> bool:
    """Whether a code cell's source is shown to the reader."""
    return not HIDDEN & set(cell.metadata.get("tags", []))


def formatted(page: str, text: str) -> str:
    """Return a page's text with its code fixed and formatted."""
    import nbformat

    def ruff(content: str, *command: str) -> str:
        place = ["--quiet", "--stdin-filename", str(notebook_path(page)), "-"]
        run = [sys.executable, "-m", "ruff", *command, *place]
        done = subprocess.run(run, input=content, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise PageError(f"page {page}: {done.stderr}")
        return done.stdout

    fixed = ruff(nbformat.writes(_source(page)), "check", "--fix-only")
    short, long = (
        nbformat.reads(ruff(fixed, "format", f"--line-length={length}"), as_version=4).cells
        for length in (80, 110)
    )
    cells = (
        (narrow if is_visible(narrow) else wide).source
        for narrow, wide in zip(short, long, strict=True)
        if narrow.cell_type == "code"
    )
    return _CODE_CELL.sub(lambda cell: f"{cell[1]}{next(cells).strip()}\n{cell[3]}", text)


def execute(page: str) -> Path:
    """Run a page at its default parameters and put its notebook in place; return the notebook's path.

    Raises `PageError` where a cell fails, with its traceback, and where what the page depends on was edited
    while it ran. The failed notebook is kept under `book/_build/failed` until the page runs to its end, and
    the page's previous notebook is untouched.
    """
    before = _digest(page, [])
    source = _source(page)
    with listed() as used:
        done = _run(page, source)
        if any(output.get("name") == "stderr" for output in _outputs(done)):
            done = _run(page, source)  # progress of what was computed: the second run finds it stored
    _check_outputs(page, done)
    for cell, ran in zip(source.cells, done.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = tidy(ran.outputs)
    used_results = sorted(used)
    now = _digest(page, used_results)
    if _digest(page, []) != before:
        raise PageError(f"page {page}: its text, code or recorded verdicts changed while it ran: {_REBUILD}")
    source.metadata["molrg"] = {
        "digest": now,
        "results": used_results,
        "outputs": _outputs_digest(source),
    }
    _write(notebook_path(page), source)
    (FAILED / f"{page}.ipynb").unlink(missing_ok=True)
    return notebook_path(page)


def show(notebook: Path) -> Path:
    """Build one page from a notebook that papermill ran, wherever it is; return the page's file.

    It stands with what it needs in the folder `<name>_html` beside the notebook, with theorems, formulas and
    charts as in the book, and needs no network. What it refers to on other pages becomes plain text.

    Raises `PageError` where the notebook cannot be read, did not run to its end, or cannot be built.
    """
    import nbformat
    import yaml

    notebook = notebook.resolve()
    try:
        shown = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise PageError(f"{notebook} cannot be read as a notebook: {error}") from None
    if found := list(faults(shown)):
        raise PageError(f"{notebook} is not shown: {'; '.join(found)}: run it again with papermill")
    if given := shown.metadata.get("papermill", {}).get("parameters"):
        words = ", ".join(f"`{name} = {value!r}`" for name, value in given.items())
        shown.cells.insert(1, nbformat.v4.new_markdown_cell(f"*A run with {words}.*"))
    shown.cells.append(nbformat.v4.new_markdown_cell("```{bibliography}\n```"))
    config = yaml.safe_load((BOOK / "_config.yml").read_text("utf-8"))
    for key in ("repository", "launch_buttons"):
        del config[key]
    for extension in ("strict", "redirects"):
        del config["sphinx"]["local_extensions"][extension]
    with tempfile.TemporaryDirectory(prefix="molrg-") as folder:
        source = Path(folder, "book")
        shutil.copytree(BOOK, source, ignore=shutil.ignore_patterns("*.md", "*.ipynb", "_build"))
        (source / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (source / "_toc.yml").write_text("format: jb-book\nroot: index\n", encoding="utf-8")
        nbformat.write(shown, source / "index.ipynb")
        build = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(source)]
        done = subprocess.run(build, capture_output=True, text=True)
        html = source / "_build" / "html"
        if done.returncode or not (html / "index.html").is_file():
            raise PageError(f"{notebook} cannot be built as a page:\n{done.stdout}{done.stderr}")
        target = notebook.with_name(f"{notebook.stem}_html")
        shutil.copytree(html, target, dirs_exist_ok=True)
    return target / "index.html"


def problems(page: str) -> list[str]:
    """Why a page's notebook is not fit to be shown, in sentences; empty where it is."""
    import nbformat

    path = notebook_path(page)
    name = f"page {page}"
    if not path.exists():
        return [f"{name} was never executed: {_REBUILD}"]
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        return [f"{name}: its notebook cannot be read ({error}): {_REBUILD}"]
    found = [f"{name}: {fault}: {_REBUILD}" for fault in faults(notebook)]
    record = notebook.metadata.get("molrg")
    if not _is_record(record):
        return [*found, f"{name}: its notebook has no whole record of its run: {_REBUILD}"]
    if record["outputs"] != _outputs_digest(notebook):
        found.append(f"{name}: the outputs in its notebook are not those of its run: {_REBUILD}")
    try:
        now = _digest(page, record["results"])
    except (OSError, ImportError, SyntaxError, ValueError) as error:
        return [*found, f"{name}: {error}"]
    if record["digest"] != now:
        found.append(
            f"{name}: its notebook is older than its text, code, results or recorded verdicts: {_REBUILD}"
        )
    elif _cells(notebook) != _cells(_source(page)):
        found.append(f"{name}: its notebook differs from its text: {_REBUILD}")
    return found


def _source(page: str) -> Any:
    """The page's text as a notebook that has not run, with nothing in it that changes from run to run."""
    import jupytext

    notebook = jupytext.read(page_text(page))
    notebook.metadata.pop("jupytext", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"
    return notebook


def _run(page: str, source: Any) -> Any:
    """Run the notebook through papermill in a temporary folder and return what it wrote."""
    import nbformat
    import papermill

    with tempfile.TemporaryDirectory(prefix="molrg-") as folder:
        given, written = Path(folder, "given.ipynb"), Path(folder, "written.ipynb")
        nbformat.write(source, given)
        try:
            papermill.execute_notebook(given, written, cwd=page_text(page).parent, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            kept = FAILED / f"{page}.ipynb"
            write_atomically(kept, written.read_bytes())
            raise PageError(
                f"page {page} failed; its notebook with the traceback is {kept}\n{error}"
            ) from None
        done = nbformat.read(written, as_version=4)
    if done.metadata.papermill.exception is not None or done.metadata.papermill.end_time is None:
        raise PageError(f"page {page} did not run to its end")
    return done


def _check_outputs(page: str, notebook: Any) -> None:
    found = list(faults(notebook))
    found += [f"writes to stderr: {o.text}" for o in _outputs(notebook) if o.get("name") == "stderr"]
    if found:
        raise PageError(f"page {page}: " + "; ".join(found))


def faults(notebook: Any) -> Iterator[str]:
    """What shows that an executed notebook failed, did not run to its end, or was cleared."""
    if notebook.metadata.get("papermill", {}).get("exception"):
        yield "papermill reports an exception"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, start=1):
        if cell.execution_count is None:
            yield f"code cell {number} has not been executed"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"code cell {number} failed"
    if code and not any(cell.outputs for cell in code):
        yield "its outputs were cleared"


def _outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def tidy(outputs: Sequence[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream: where the kernel cuts them is chance."""
    tidy: list[Any] = []
    for output in outputs:
        before = tidy[-1] if tidy else None
        if before and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            tidy.append(output)
    return tidy


def _cells(notebook: Any) -> list[tuple[str, str, str]]:
    return [(c.cell_type, c.source, json.dumps(c.metadata, sort_keys=True)) for c in notebook.cells]


def _outputs_digest(notebook: Any) -> str:
    """Digest of all outputs and their numbers, as they are in the notebook's file."""
    import nbformat

    stored = nbformat.reads(nbformat.writes(notebook), as_version=4)
    shown = [(cell.get("execution_count"), cell.get("outputs")) for cell in stored.cells]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def _is_record(record: Any) -> bool:
    """Whether a notebook's record of its run has the form in which `execute` writes it."""
    if not isinstance(record, dict) or not isinstance(record.get("results"), list):
        return False
    texts = [record.get("digest"), record.get("outputs"), *record["results"]]
    return all(isinstance(text, str) for text in texts)


def _digest(page: str, used_results: Sequence[str]) -> str:
    """Digest of everything that a page's notebook depends on."""
    text = page_text(page).read_text(encoding="utf-8")
    code = "\n".join(cell.source for cell in _source(page).cells if cell.cell_type == "code")
    record = {
        "text": text,
        "code": code_digest.of_source(code),
        "results": {name: _file_digest(results_folder() / name) for name in used_results},
        "claims": [
            (c.id, c.statement, c.affirmed, c.verdict) for c in claims.load().values() if c.page == page
        ],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _write(path: Path, notebook: Any) -> None:
    import nbformat

    nbformat.validate(notebook)
    write_atomically(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m compendium.pages", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "execute", help="run pages that are not up to date and put their notebooks in place"
    )
    run.add_argument("page", nargs="+", help="a page's text, notebook or id")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    style = commands.add_parser("format", help="let ruff fix and format the code in the texts of pages")
    style.add_argument("page", nargs="+", help="a page's text, notebook or id")
    rerun = commands.add_parser("show", help="build a page from a notebook that papermill ran")
    rerun.add_argument("notebook", type=Path, help="what papermill wrote, in any folder")
    commands.add_parser("status", help="say which pages are up to date; fails if one is not")
    given = parser.parse_args(arguments)
    try:
        if given.command == "format":
            for page in map(page_id, given.page):
                format_code(page)
            return 0
        if given.command == "execute":
            for page in map(page_id, given.page):
                if given.force or problems(page):
                    execute(page)
                    print(f"executed {page}")
                else:
                    print(f"up to date {page}")
            return 0
        if given.command == "show":
            print(show(given.notebook))
            return 0
        unfit = False
        for page in page_ids():
            found = problems(page)
            unfit = unfit or bool(found)
            print("\n".join(found) or f"up to date: page {page}")
        return int(unfit)
    except (PageError, ImportError, SyntaxError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
