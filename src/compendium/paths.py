"""Where the compendium lives: found from the package, never from the working directory."""

import os
from pathlib import Path

from molrg.support.clone import ROOT

__all__ = ["networks_folder", "page_text", "reruns_folder", "results_folder"]


def page_text(page_id: str) -> Path:
    """The text of a page, for example `book/theory/snr.md` for `theory/snr`."""
    return ROOT / "book" / f"{page_id}.md"


def networks_folder() -> Path:
    """Where trained networks are kept: `MOLRG_NETWORKS`, or `molrg/networks` in the user's cache folder."""
    return Path(os.environ.get("MOLRG_NETWORKS") or _cache() / "networks").resolve()


def results_folder() -> Path:
    """Where the results are that the book shows: `MOLRG_RESULTS`, or `results` in the repository."""
    return Path(os.environ.get("MOLRG_RESULTS") or ROOT / "results").resolve()


def reruns_folder() -> Path:
    """Where the results of all other runs are: `MOLRG_RESULTS`, or a folder of the clone that git ignores.

    Outside a clone, `molrg/results` in the user's cache folder.
    """
    own = ROOT / "results" / ".reruns" if (ROOT / "book").is_dir() else _cache() / "results"
    return Path(os.environ.get("MOLRG_RESULTS") or own).resolve()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "molrg"
