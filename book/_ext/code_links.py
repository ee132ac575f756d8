"""Below a statement, its code; below the code, its statement; and a warning where either is missing.

    Code: {library}`molrg.snr.theorem`

stands as a paragraph of its own right below a labelled equation or statement and leads to the library
reference, which leads back. A name that the reference lacks is a warning, and so is a label that a docstring
names, in backticks (`thm-snr`), if no such line stands below it: the build allows no warnings.
"""

import pydoc
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

_LABEL = re.compile(r"`((?:eq|def|thm|prop|cor|lem)-[\w-]+)`")
_log = logging.getLogger(__name__)


class LibraryRole(XRefRole):
    """A name in the library reference, with a link; it must be there."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Mark the link as one to code, which the Python domain is to resolve."""
        refnode.attributes.update(refdomain="py", reftype="obj", is_code=True)
        return title, target


def statement_above(reference: nodes.Element) -> nodes.Element | None:
    """The labelled equation or statement right above a line of code; None where there is none."""
    line = reference.parent
    if not (isinstance(line, nodes.paragraph) and line.astext().startswith("Code: ")):
        return None
    above = line.previous_sibling()
    return above if isinstance(above, nodes.Element) and above.get("label") else None


def labelled(statement: nodes.Element) -> Iterator[nodes.Element]:
    """A statement and the labelled equations in it."""
    yield statement
    yield from (
        each for each in statement.findall(nodes.math_block) if each.get("label") and each is not statement
    )


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Collect which code stands below which label, and warn of what is missing in either direction."""
    code_of: dict[str, set[str]] = defaultdict(set)
    app.statements_of = defaultdict(list)
    for docname in sorted(env.found_docs):
        for reference in env.get_doctree(docname).findall(addnodes.pending_xref):
            if "is_code" not in reference:
                continue
            name, statement = reference["reftarget"], statement_above(reference)
            if statement is None:
                _log.warning(
                    "`Code: %s` must stand right below a labelled statement", name, location=reference
                )
                continue
            app.statements_of[name].append((docname, statement["ids"][0], statement.get("title")))
            for each in labelled(statement):
                code_of[each["label"]].add(name)
    for name, entry in sorted(env.get_domain("py").objects.items()):
        for label in _LABEL.findall(pydoc.getdoc(pydoc.locate(name))):
            if name not in code_of[label]:
                _log.warning(
                    "the docstring of %s names `%s`: put `Code: {library}`%s`` below that",
                    name,
                    label,
                    name,
                    location=entry.docname,
                )


def lead_back(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Below each function in the reference, add links to the statements that it computes."""
    for signature in doctree.findall(addnodes.desc_signature):
        found = [each for name in signature["ids"] for each in app.statements_of[name]]
        if not found:
            continue
        line = nodes.paragraph("", "Computes: ")
        for number, (page, anchor, title) in enumerate(dict.fromkeys(found)):
            text = app.env.titles[page].astext() + (f", {title}" if title else "")
            line += nodes.Text("; " if number else "")
            line += make_refnode(app.builder, docname, page, anchor, nodes.Text(text))
        signature.parent[-1] += line


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_role("library", LibraryRole(warn_dangling=True))
    app.connect("env-check-consistency", check)
    app.connect("doctree-resolved", lead_back)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
