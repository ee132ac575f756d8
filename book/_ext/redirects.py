"""Pages that were called `molrg/...` are called `learned/...`: their old addresses lead to the new ones."""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Moved</title>
<meta http-equiv="refresh" content="0; url={url}"><link rel="canonical" href="{url}"></head>
<body><p>This page has moved to <a href="{url}">{url}</a>.</p></body></html>
"""


def redirect(app: Sphinx, exception: Exception | None) -> None:
    """Write a page that leads on, for each page of `learned`."""
    if exception is not None or app.builder.format != "html":
        return
    for document in sorted(app.env.found_docs):
        folder, _, name = document.partition("/")
        if folder == "learned":
            old = Path(app.outdir, "molrg", f"{name}.html")
            old.parent.mkdir(exist_ok=True)
            old.write_text(_PAGE.format(url=f"../learned/{name}.html"), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("build-finished", redirect)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
