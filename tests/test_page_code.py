"""The code of the pages: ruff reads the notebooks; here, that what a reader sees at once is short."""

import nbformat
import pytest

from compendium import pages

MOST_CHARACTERS = 80
MOST_LINES = 12


@pytest.mark.parametrize("page", pages.page_ids())
def test_a_visible_cell_is_short(page: str) -> None:
    cells = nbformat.read(pages.notebook_path(page), as_version=4).cells
    visible = [cell.source for cell in cells if cell.cell_type == "code" and pages.is_visible(cell)]
    assert not [source for source in visible if source.count("\n") >= MOST_LINES]


@pytest.mark.parametrize("page", pages.page_ids())
def test_visible_lines_fit_beside_the_table_of_contents(page: str) -> None:
    cells = nbformat.read(pages.notebook_path(page), as_version=4).cells
    visible = [cell.source for cell in cells if cell.cell_type == "code" and pages.is_visible(cell)]
    assert not [line for source in visible for line in source.splitlines() if len(line) > MOST_CHARACTERS]


@pytest.mark.parametrize("page", pages.page_ids())
def test_the_code_is_formatted(page: str) -> None:
    text = pages.page_text(page).read_text(encoding="utf-8")
    assert pages.formatted(page, text) == text, f"run python -m compendium.pages format {page}"
