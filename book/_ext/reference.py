"""Docstrings for the library reference, before napoleon reads their sections.

They are written to be read in the source: an indented formula becomes a literal block, and characters that
reStructuredText would take for markup (`|`, `*`, a final underscore) stand for themselves.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"^\s*(-{3,}|(Args|Parameters|Returns|Raises|Yields):)$", re.MULTILINE)
_MARKUP = re.compile(r"(?P<code>`+[^`]+`+)(?P<after>[\w(]?)|[*|]|(?<=\w)_(?!\w)")


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
            lines += _MARKUP.sub(_plain, block).split("\n")


def _plain(match: re.Match[str]) -> str:
    code, after = match["code"], match["after"]
    if code:
        return code + (f"\\ {after}" if after else "")  # the escaped blank ends the markup and is not shown
    return f"\\{match[0]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", prepare, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
