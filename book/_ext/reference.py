"""Docstrings for the library reference, before napoleon reads their sections.

They are written to be read in the source: an indented formula becomes a literal block, and characters that
reStructuredText would take for markup (`|`, `*`, a final underscore) stand for themselves.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"^\s*(-{3,}|(Args|Parameters|Returns|Raises|Yields):)$", re.MULTILINE)


def prepare(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: replace the lines in place."""
    blocks = re.split(r"\n(?=\n)", "\n".join(lines))  # each begins with its blank line
    lines.clear()
    prose = True
    for block in blocks:
        prose = prose and not _SECTION.search(block)
        if prose and block.startswith("\n "):
            lines += ["", "::", *block.split("\n")]
        else:
            lines += "".join(map(_plain, re.split(r"(`+[^`]+`+)", block))).split("\n")


def _plain(text: str) -> str:
    return text if text.startswith("`") else re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", prepare, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
