"""Where the compendium lives: found from the package, never from the working directory."""

import os
from pathlib import Path

from molrg.support.clone import ROOT

__all__ = ["networks_folder", "page_text", "reruns_folder", "results_folder"]


def page_text(page_id: str) -> Path:
    """Return the text of a page, for example `book/theory/snr.md` for `theory/snr`."""
    return ROOT / "book" / f"{page_id}.md"


def results_folder() -> Path:
    """Return where the results are that the book shows: `MOLRG_RESULTS`, or `results` in the repository."""
    return Path(os.environ.get("MOLRG_RESULTS") or ROOT / "results").resolve()


def reruns_folder() -> Path:
    """Return where the results of all other runs are: `MOLRG_RESULTS`, or a folder that git ignores."""
    return Path(os.environ.get("MOLRG_RESULTS") or _own() / "results").resolve()


def networks_folder() -> Path:
    """Return where trained networks are kept: `MOLRG_NETWORKS`, or a folder that git ignores."""
    return Path(os.environ.get("MOLRG_NETWORKS") or _own() / "networks").resolve()


def _own() -> Path:
    """`.work` in a clone; elsewhere, where the packages were installed, a folder in the user's cache."""
    if (ROOT / "book").is_dir():
        return ROOT / ".work"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "molrg"
