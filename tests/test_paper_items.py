"""The paper item by item: what the page names exists, and its verdicts are the ledger's."""

import sys
from pathlib import Path

import pytest

from compendium import claims
from compendium.claims import Claim

BOOK = Path(__file__).resolve().parents[1] / "book"
sys.path.insert(0, str(BOOK / "_ext"))

import paper_items  # noqa: E402  an extension of the book, not of a package

LEDGER = {
    name: Claim(name, "It is so.", "Theorem 1", "paper", "proved", "part/page", verdict)
    for name, verdict in (("one", "reproduced"), ("two", "not reproduced"), ("three", "extended"))
}


def test_the_book_has_every_page_and_claim_that_its_items_name() -> None:
    items = [item for group in paper_items.load().values() for item in group]
    assert len(items) >= 40
    named = {claim for item in items for claim in item.claims}
    of_the_paper = {claim.id for claim in claims.load().values() if claim.source == "paper"}
    assert of_the_paper - named == set(), "claims of the paper that no item of book/paper_items.yml names"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("pages: [part/page], claims: [one]", None),
        ("missing: all of it", None),
        ("pages: [part/other]", "item 'Table 1' of the paper: the book has no page 'part/other'"),
        ("pages: [part/page], claims: [four]", "item 'Table 1' of the paper: the ledger has no claim 'four'"),
        ("claims: [one]", "neither pages nor what is missing"),
        ("pages: [part/page], verdict: reproduced", r"unknown \['verdict'\]"),
    ],
)
def test_an_item_that_names_what_is_not_there_is_refused(
    tmp_path: Path, keys: str, message: str | None
) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "page.md").write_text("# A page")
    path = tmp_path / "items.yml"
    path.write_text(f"Tables:\n- {{item: Table 1, version: both, says: It is so., {keys}}}\n")
    if message is None:
        assert list(paper_items.load(path, LEDGER)) == ["Tables"]
    else:
        with pytest.raises(ValueError, match=message):
            paper_items.load(path, LEDGER)


@pytest.mark.parametrize(
    ("judges", "pages", "word"),
    [
        ((), (), "not in the book"),
        ((), ("part/page",), "shown only"),
        (("one", "three"), ("part/page",), "reproduced"),
        (("one", "two"), ("part/page",), "mixed"),
    ],
)
def test_an_item_is_judged_by_the_ledger(judges: tuple[str, ...], pages: tuple[str, ...], word: str) -> None:
    item = paper_items.Item("Table 1", "both", "It is so.", pages, judges)
    assert paper_items.judgement(item, LEDGER) == word
