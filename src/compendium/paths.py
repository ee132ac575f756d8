"""Where the compendium lives: found from the package, never from the working directory."""

import os
from pathlib import Path

from molrg.support.clone import ROOT

__all__ = ["networks_folder", "page_text"]


def page_text(page_id: str) -> Path:
    """The text of a page, for example `book/theory/snr.md` for `theory/snr`."""
    return ROOT / "book" / f"{page_id}.md"


def networks_folder() -> Path:
    """Where trained networks are kept: `MOLRG_NETWORKS`, or `molrg/networks` in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MOLRG_NETWORKS") or cache / "molrg" / "networks").resolve()
