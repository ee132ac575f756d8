"""The ledger in the book: the directive `claims`, the role `claim`, and an address for every check.

Where a page's output states a verdict, it gets the address `claim-<id>`; a claim that no page shows so makes
the build fail, as does an id that the ledger does not have.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from compendium import claims

_CHECK = re.compile(rf"^(?:{'|'.join(claims.VERDICTS)}) \| ([\w-]+): ", re.MULTILINE)
_OWN_WORDS = {
    "reproduced": "hold",
    "extended": "hold",
    "reproduced in part": "hold in part",
    "not reproduced": "do not hold",
}


def counts(ledger: Iterable[claims.Claim]) -> list[str]:
    """Two sentences: what became of what others say, and of what this book says."""
    ledger = list(ledger)
    theirs = Counter(c.verdict for c in ledger if c.source != claims.OWN)
    ours = Counter(_OWN_WORDS[c.verdict] for c in ledger if c.source == claims.OWN)
    by = Counter(c.source for c in ledger if c.source != claims.OWN)
    names = {"paper": "the paper", "reviewer": "its reviewers", "literature": "other work"}
    who = ", ".join(f"{by[source]} of {names[source]}" for source in claims.SOURCES if by[source])
    what = ", ".join(f"{theirs[verdict]} {verdict}" for verdict in claims.VERDICTS if theirs[verdict])
    own = ", ".join(f"{ours[word]} {word}" for word in dict.fromkeys(_OWN_WORDS.values()) if ours[word])
    return [
        f"{theirs.total()} claims of others ({who}): {what}.",
        f"{ours.total()} statements of this book's own: {own}.",
    ]


def check_link(claim: claims.Claim, text: str, document: str) -> addnodes.pending_xref:
    """A link to the output that states the claim's verdict."""
    link = addnodes.pending_xref("", refdomain="std", reftype="ref", reftarget=_address(claim.id))
    link["refdoc"], link["refexplicit"], link["refwarn"] = document, True, True
    link += nodes.inline(text=text)
    return link


def table(titles: Iterable[str], rows: Iterable[Iterable[nodes.Node]], widths: Iterable[int]) -> nodes.table:
    """A table of titles and rows of paragraphs."""
    found, head, body = nodes.table("", classes=["ledger"]), nodes.thead(""), nodes.tbody("")
    widths = list(widths)
    group = nodes.tgroup("", cols=len(widths))
    group += [nodes.colspec("", colwidth=width) for width in widths]
    for part, lines in ((head, [[nodes.paragraph(text=title) for title in titles]]), (body, rows)):
        for line in lines:
            row = nodes.row("")
            row += [nodes.entry("", cell) for cell in line]
            part += row
    group += [head, body]
    found += group
    return found


def cell(key: nodes.Node, detail: nodes.Node | str = "") -> nodes.paragraph:
    """What a cell is sorted and filtered by, and below it a detail in small letters."""
    found = nodes.paragraph("", "", nodes.inline("", "", key, classes=["key"]))
    if detail:
        small = nodes.Text(detail) if isinstance(detail, str) else detail
        found += [nodes.Text(" "), nodes.inline("", "", small, classes=["detail"])]
    return found


class ClaimsDirective(SphinxDirective):
    """What became of the claims, in two sentences; then a table of all, but for the option `summary`."""

    option_spec = {"summary": lambda argument: True}  # noqa: RUF012  the directive's interface

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the counts and the table."""
        self.env.note_dependency(str(claims.LEDGER))
        ledger = claims.load().values()
        sentences = [nodes.paragraph(text=sentence) for sentence in counts(ledger)]
        if "summary" in self.options:
            return [*sentences]
        rows = (
            (
                cell(nodes.Text(claim.statement), nodes.literal(text=claim.id)),
                cell(nodes.Text(claim.source), claim.where),
                cell(nodes.Text(claim.evidence), claim.scale),
                cell(nodes.Text(claim.verdict), check_link(claim, claim.page, self.env.docname)),
            )
            for claim in ledger
        )
        return [*sentences, table(("Claim", "Source", "Evidence", "Verdict"), rows, (46, 20, 18, 16))]


class ClaimRole(SphinxRole):
    """The recorded verdict of a claim, as a link to the check that states it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link, or an error where the ledger has no such claim."""
        self.env.note_dependency(str(claims.LEDGER))
        claim = claims.load().get(self.text)
        if claim is None:
            error = self.inliner.reporter.error(f"the ledger has no claim {self.text!r}", line=self.lineno)
            return [], [error]
        link = check_link(claim, claim.verdict, self.env.docname)
        return [nodes.inline("", "", link, classes=["claim"], title=claim.id)], []


def address_checks(app: Sphinx, document: nodes.document) -> None:
    """Give the outputs that state verdicts their addresses."""
    labels = app.env.get_domain("std").anonlabels  # type: ignore[attr-defined]
    for output in document.findall(nodes.literal_block):
        for claim_id in _CHECK.findall(output.astext()):
            output["ids"].append(_address(claim_id))
            labels[_address(claim_id)] = app.env.docname, _address(claim_id)


def _address(claim_id: str) -> str:
    return f"claim-{claim_id}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("claims", ClaimsDirective)
    app.add_role("claim", ClaimRole())
    app.connect("doctree-read", address_checks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
