"""Docstrings for the library reference: plain prose with `names` and indented formulas, as reStructuredText.

The docstrings are written to be read in the source. Here names in single backticks become code, indented
blocks become literal blocks, and every other character that reStructuredText would interpret is escaped.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx


def to_restructured_text(lines: list[str]) -> list[str]:
    """The docstring's lines as reStructuredText that says the same and means nothing more."""
    text = textwrap.dedent("\n".join(lines)).strip("\n")
    return [line for block in re.split(r"\n\s*\n", text) for line in [*_block(block), ""]]


def _block(block: str) -> Iterator[str]:
    lines = block.split("\n")
    if len(lines) > 1 and re.fullmatch("-{3,}", lines[1]):  # a heading with the list of what it names
        yield from [f"**{lines[0]}**", "", *map(_inline, lines[2:])]
    elif lines[0].startswith(" "):
        yield from ["::", "", *(f"    {line}" for line in textwrap.dedent(block).split("\n"))]
    else:
        for number, line in enumerate(lines):
            if line.startswith(" ") and not lines[number - 1].startswith((" ", "-")):
                yield from ["", *_block("\n".join(lines[number:]))]
                return
            yield _inline(line)


def _inline(line: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(map(_part, parts)).rstrip()


def _part(text: str) -> str:
    if text.startswith("`"):
        return f"``{text.strip('`')}``\\ "  # the escaped blank ends the markup and is not shown
    return re.sub(r"([*_|\\])", r"\\\1", text)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: replace the lines in place."""
    lines[:] = to_restructured_text(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", process)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
