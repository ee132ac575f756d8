"""The README against what it speaks of."""

import base64
import inspect
import pydoc
import re

import nbformat

from molrg.support.clone import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_picture_is_that_of_the_front_page() -> None:
    """To renew it: write the first PNG of book/index.ipynb to book/_static/overview.png."""
    notebook = nbformat.read(ROOT / "book" / "index.ipynb", as_version=4)
    pictures = [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert base64.b64decode(pictures[0]) == (ROOT / "book" / "_static" / "overview.png").read_bytes()


def test_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(examples) == 2
    for code in examples:
        exec(compile(code, "README.md", "exec"), {})


def test_pages_and_links_exist() -> None:
    for page in re.findall(r"papermill (book/\S+\.ipynb)", README):
        assert (ROOT / page).exists(), page
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_names_and_files_of_the_sources_exist() -> None:
    names = re.findall(r"`((?:molrg|experiments|compendium)(?:\.\w+)+)`", README)
    assert len(names) > 10
    assert [name for name in names if pydoc.locate(name) is None] == []
    for path, name in re.findall(r"`(molrg/\S+\.py)`: `(\S+)`", README):
        assert inspect.getsourcefile(pydoc.locate(name)) == str(ROOT / "src" / path)  # type: ignore[arg-type]


def test_versions_of_the_cpu_note_are_the_pinned_ones() -> None:
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for requirement in re.findall(r"\b(?:torch|torchvision)==[\d.]+", README):
        assert requirement in pinned
