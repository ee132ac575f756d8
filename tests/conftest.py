"""A small page and a small clone of the repository, for the tests of what handles pages."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A page
"""


@pytest.fixture(scope="session")
def page_source() -> Callable[..., str]:
    """The text of a page with these code cells, of which the first holds its parameters."""

    def source(parameters: str, *cells: str) -> str:
        blocks = [f":tags: [parameters]\n\n{parameters}", *cells]
        return HEAD + "".join(f"\n```{{code-cell}} ipython3\n{block}\n```\n" for block in blocks)

    return source


@pytest.fixture(scope="session")
def make_clone() -> Callable[..., Path]:
    """Makes a clone with one page at `folder`; without PyTorch in it, which takes seconds to import."""

    def make(folder: Path, page: str, text: str, claims: str = "{}") -> Path:
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "src" / "molrg" / "__init__.py").write_text("")
        for name in ("conftest.py", "pyproject.toml", "Snakefile"):
            shutil.copy(ROOT / name, folder)
        (folder / "results").mkdir()
        path = folder / "book" / f"{page}.md"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        (folder / "book" / "claims.yml").write_text(claims)
        return folder

    return make
