"""The directive `claims`: every claim of `book/claims.yml` with its verdict, grouped by page."""

from collections import Counter
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from compendium import claims


class ClaimsDirective(SphinxDirective):
    """A count of the verdicts, then a table of all claims; with the option `summary`, the count alone."""

    option_spec = {"summary": lambda argument: True}  # noqa: RUF012  the directive's interface

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the count and the table."""
        self.env.note_dependency(str(claims.LEDGER))
        ledger = claims.load().values()
        counts = Counter(claim.verdict for claim in ledger)
        words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in claims.VERDICTS if counts[verdict])
        count = nodes.paragraph(text=f"{len(ledger)} claims: {words}.")
        if "summary" in self.options:
            return [count]
        body = nodes.tbody("")
        for claim in ledger:
            row = nodes.row("")
            source, verdict = nodes.paragraph(text=claim.source), nodes.paragraph(text=claim.verdict)
            for cell in (self._statement(claim), source, self._page(claim.page), verdict):
                entry = nodes.entry("")
                entry += cell
                row += entry
            body += row
        group = nodes.tgroup("", cols=4)
        group += [nodes.colspec("", colwidth=width) for width in (45, 25, 15, 15)]
        head, titles = nodes.thead(""), nodes.row("")
        for title in ("Claim", "Where it is made", "Tested on", "Verdict"):
            titles += nodes.entry("", nodes.paragraph(text=title))
        head += titles
        group += [head, body]
        return [count, nodes.table("", group, classes=["claims"])]

    def _statement(self, claim: claims.Claim) -> nodes.paragraph:
        name = nodes.inline("", "", nodes.literal(text=claim.id), classes=["claim-id"])
        return nodes.paragraph("", "", nodes.Text(claim.statement + " "), name)

    def _page(self, page: str) -> nodes.paragraph:
        target = addnodes.pending_xref("", refdomain="std", reftype="doc", reftarget="/" + page, refwarn=True)
        target["refdoc"], target["refexplicit"] = self.env.docname, True
        target += nodes.inline(text=page)
        return nodes.paragraph("", "", target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("claims", ClaimsDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
