"""Where the repository is that this package was taken from; found from the package itself."""

from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(__file__).resolve().parents[3]
"""The repository that holds `src/molrg`; the pages are in `ROOT / "book"`."""
