"""The directive `paper-items`: the paper item by item, from `book/paper_items.yml` and the ledger."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from docutils import nodes
from ledger import cell, check_link, table
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from compendium import claims

SOURCE = Path(__file__).resolve().parents[1] / "paper_items.yml"


class Item(NamedTuple):
    """A definition, theorem, figure or table; `pages` and `claims` are empty where the book lacks it."""

    item: str
    version: str
    says: str
    pages: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    missing: str = ""


def load(
    path: Path = SOURCE, ledger: Mapping[str, claims.Claim] | None = None, book: Path | None = None
) -> dict[str, list[Item]]:
    """The items by group.

    Raises `ValueError`, naming the item, for a key that is unknown or lacking, for a page that the book does
    not have, for a claim that the ledger does not have, and for an item without page and what is missing.
    """
    ledger, book = claims.load() if ledger is None else ledger, book or path.parent
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: [_item(entry, ledger, book) for entry in entries] for name, entries in groups.items()}


def _item(entry: Mapping[str, Any], ledger: Mapping[str, claims.Claim], book: Path) -> Item:
    where = f"item {entry.get('item')!r} of the paper"
    if unknown := set(entry) - set(Item._fields):
        raise ValueError(f"{where}: unknown {sorted(unknown)}; the keys are {', '.join(Item._fields)}")
    if lacking := {"item", "version", "says"} - set(entry):
        raise ValueError(f"{where} lacks {sorted(lacking)}")
    for page in entry.get("pages", ()):
        if not (book / f"{page}.md").is_file():
            raise ValueError(f"{where}: the book has no page {page!r}")
    for claim in entry.get("claims", ()):
        if claim not in ledger:
            raise ValueError(f"{where}: the ledger has no claim {claim!r}")
    if not entry.get("pages") and not entry.get("missing"):
        raise ValueError(f"{where} has neither pages nor what is missing")
    return Item(**entry)


def judgement(item: Item, ledger: Mapping[str, claims.Claim]) -> str:
    """One word for an item: its claims' verdict, `mixed` where they differ by more than an extension."""
    verdicts = {ledger[claim].verdict for claim in item.claims}
    if "reproduced" in verdicts:
        verdicts -= {"extended"}
    if not verdicts:
        return "shown only" if item.pages else "not in the book"
    return verdicts.pop() if len(verdicts) == 1 else "mixed"


class PaperItemsDirective(SphinxDirective):
    """One table for each group of items."""

    def run(self) -> list[nodes.Node]:
        """Return a heading and a table for each group."""
        for source in (SOURCE, claims.LEDGER):
            self.env.note_dependency(str(source))
        ledger = claims.load()
        found: list[nodes.Node] = []
        for name, items in load(ledger=ledger).items():
            rows = [self._row(item, ledger) for item in items]
            section = nodes.section("", nodes.title(text=name), ids=[nodes.make_id(name)])
            section += table(("Item", "It says", "Here", "Verdict", "Missing"), rows, (22, 24, 16, 22, 16))
            found.append(section)
        return found

    def _row(self, item: Item, ledger: Mapping[str, claims.Claim]) -> list[nodes.Node]:
        judged = [ledger[claim] for claim in item.claims]
        pages, verdicts = nodes.paragraph(), cell(nodes.Text(judgement(item, ledger)))
        for page in item.pages:
            target = addnodes.pending_xref(
                "", refdomain="std", reftype="doc", reftarget=f"/{page}", refwarn=True
            )
            target["refdoc"], target["refexplicit"] = self.env.docname, True
            target += nodes.inline(text=page)
            pages += nodes.inline("", "", target, classes=["line"])
        scales = dict.fromkeys(f"{c.evidence}: {c.scale}" if c.scale else c.evidence for c in judged)
        pages += [nodes.inline("", scale, classes=["detail"]) for scale in scales]
        for claim in judged:
            link = check_link(claim, claim.id, self.env.docname)
            verdicts += nodes.inline("", f"{claim.verdict}: ", link, classes=["detail"])
        return [
            cell(nodes.Text(item.item), item.version),
            nodes.paragraph(text=item.says),
            pages,
            verdicts,
            nodes.paragraph(text=item.missing),
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("paper-items", PaperItemsDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
