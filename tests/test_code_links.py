"""Statements lead to their code and back, and the build says so where either is missing."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXTENSIONS = Path(__file__).resolve().parents[1] / "book" / "_ext"
CONF = """
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "proofs", "reference", "code_links"]
myst_enable_extensions = ["dollarmath"]
default_role = "code"
"""
LINE = "Code: {library}`sums.total`, {library}`sums.mean`"
STATEMENT = """
```{{prf:theorem}} Sums
:label: thm-sums

They are

$$
s=\\sum_ix_i .
$$ (eq-sum)
```

{}
"""
MODULE = '''
"""Sums |of| *some* things_."""


def total(x):
    """Return the sum of x, see `eq-sum`, with `x`(i) and

        s = |x_1| + *x_2

    for short.

    Parameters
    ----------
    x : list
        What is added up.
    """


def mean(x):
    """Return the mean of x. Source: `thm-sums`."""
'''


def build(folder: Path, statement: str, module: str = MODULE) -> tuple[int, str]:
    """Build a book of one statement and the reference of one module."""
    (folder / "conf.py").write_text(CONF)
    (folder / "sums.py").write_text(module)
    (folder / "index.md").write_text(f"# Adding\n{statement}\n\n```{{toctree}}\nreference\n```\n")
    automodule = "```{eval-rst}\n.. automodule:: sums\n   :members:\n```"
    (folder / "reference.md").write_text(f"# Reference\n\n{automodule}\n")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", folder, folder / "html"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXTENSIONS), str(folder)])},
    )
    return done.returncode, done.stderr


def test_a_statement_leads_to_its_code_and_back(tmp_path: Path) -> None:
    assert build(tmp_path, STATEMENT.format(LINE)) == (0, "")
    assert 'href="reference.html#sums.total"' in (tmp_path / "html" / "index.html").read_text()
    reference = (tmp_path / "html" / "reference.html").read_text()
    shown = html.unescape(re.sub("<[^>]+>", "", reference))
    assert reference.count('Computes: <a class="reference internal" href="index.html#thm-sums">') == 2
    assert "s = |x_1| + *x_2\n" in shown
    assert "Sums |of| *some* things_." in shown
    assert "Parameters" in shown


@pytest.mark.parametrize(
    ("statement", "warning"),
    [
        (STATEMENT.format(LINE.replace("total", "totl")), "py:obj reference target not found: sums.totl"),
        (STATEMENT.format(LINE.partition(",")[0]), "the docstring of sums.mean names `thm-sums`: put"),
        (STATEMENT.format(""), "the docstring of sums.total names `eq-sum`: put"),
        (STATEMENT.format(f"Text.\n\n{LINE}"), "`Code: sums.total` must stand right below a labelled"),
        (STATEMENT.format(f"See {LINE}"), "`Code: sums.mean` must stand right below a labelled"),
    ],
)
def test_what_is_missing_fails_the_build(tmp_path: Path, statement: str, warning: str) -> None:
    code, said = build(tmp_path, statement)
    assert code != 0
    assert warning in said
