"""Old addresses lead to the new ones: `molrg/...` is called `learned/...`, and some pages were merged."""

from os.path import relpath
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MERGED = {"appendix/open_questions": "appendix/review", "images/layers": "images/probing"}
"""Pages that are no more, and those that took them up."""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Moved</title>
<meta http-equiv="refresh" content="0; url={url}"><link rel="canonical" href="{url}"></head>
<body><p>This page has moved to <a href="{url}">{url}</a>.</p></body></html>
"""


def redirect(app: Sphinx, exception: Exception | None) -> None:
    """Write a page that leads on, for each page of `learned` and each that was merged into another."""
    if exception is not None or app.builder.format != "html":
        return
    documents = app.env.found_docs
    moved = {doc.replace("learned/", "molrg/", 1): doc for doc in documents if doc.startswith("learned/")}
    moved |= {old: new for old, new in MERGED.items() if new in documents}
    for old, new in sorted(moved.items()):
        path = Path(app.outdir, f"{old}.html")
        path.parent.mkdir(exist_ok=True)
        url = Path(relpath(f"{new}.html", path.parent.relative_to(app.outdir))).as_posix()
        path.write_text(_PAGE.format(url=url), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("build-finished", redirect)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
