"""Make `pytest --nbval` refuse a notebook without outputs: it would pass without comparing anything."""

from collections.abc import Iterator
from pathlib import Path

import pytest


class _Cleared(pytest.Item):
    """The test of a notebook that cannot be compared with itself; it always fails."""

    def runtest(self) -> None:
        pytest.fail(f"{self.path}: {self.name}; run `make book`", pytrace=False)


class _ClearedFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        import nbformat

        from compendium.pages import faults

        for fault in faults(nbformat.read(self.path, as_version=4)):
            yield _Cleared.from_parent(self, name=fault)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Add to each notebook that nbval collects the faults that nbval does not see."""
    if file_path.suffix == ".ipynb" and (parent.config.option.nbval or parent.config.option.nbval_lax):
        return _ClearedFile.from_parent(parent, path=file_path)
    return None
