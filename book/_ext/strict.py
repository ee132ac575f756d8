"""Build the book strictly: only notebooks that are up to date, and without a warning.

Every page is read anew, so that a second build repeats what the first one said; a warning fails the build; a
notebook that failed, was cleared, or is older than its text, code or results is refused.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

from compendium import pages


def exclude_texts(app: Sphinx, config: Any) -> None:
    """Show the executed notebooks: their texts, beside them, are not pages of their own."""
    config.exclude_patterns += [f"{page}.md" for page in pages.page_ids()]


def refuse_unfit_notebooks(app: Sphinx) -> None:
    """Stop the build where a notebook must not be shown, with all reasons at once."""
    problems = [problem for page in pages.page_ids() for problem in pages.problems(page)]
    if problems:
        raise ExtensionError("the book is not built:\n" + "\n".join(problems))


def read_everything(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> set[str]:
    """Read every page in every build: a warning belongs to reading, and an unread page would hide it."""
    return set(env.found_docs)


def fail_on_warnings(app: Sphinx, exception: Exception | None) -> None:
    """Make a warning an error, also where the build was not asked to."""
    count = app._warncount
    if exception is None and count:
        raise ExtensionError(f"the book has {count} warning(s), and none is allowed: see above")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", exclude_texts)
    app.connect("builder-inited", refuse_unfit_notebooks)
    app.connect("env-get-outdated", read_everything)
    app.connect("build-finished", fail_on_warnings, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
