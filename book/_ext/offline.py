"""Build the book strictly, and so that it needs no network.

Strictly: every page is read anew, so that a second build repeats what the first one said; a warning fails the
build; a notebook that failed, was cleared, or is older than its text, code or results is refused. Without a
network: MathJax and Vega are copied from installed packages, with their licences.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core import render
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

from compendium import charts, pages

# Unwrapped, the bundle's top-level names would clash with those of other scripts (`_`, for one).
_VEGA = "window.vegaEmbed = vegaEmbed; window.vega = vega;"


def draw_charts() -> None:
    """Let myst-nb draw our charts: it looks for renderers among what is installed, and ours are not."""
    render.load_mime_renders = lambda: [charts.MystRenderer]


def exclude_texts(app: Sphinx, config: Any) -> None:
    """Show the executed notebooks: their texts, beside them, are not pages of their own."""
    config.exclude_patterns += [f"{page}.md" for page in pages.page_ids()]


def drop_live_kernels(app: Sphinx, config: Any) -> None:
    """Keep sphinx-thebe, which jupyter-book always loads, from adding its scripts: they need a server."""
    unwanted = ("init_thebe_core", "update_thebe_context")
    for listeners in app.events.listeners.values():
        listeners[:] = [each for each in listeners if getattr(each.handler, "__name__", "") not in unwanted]


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


def copy_libraries(app: Sphinx) -> None:
    """Put MathJax and Vega into `_static/vendor` of the built book."""
    if app.builder.format != "html":
        return
    vendor = Path(app.outdir, "_static", "vendor")
    vendor.mkdir(parents=True, exist_ok=True)
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ExtensionError("MathJax is missing: pip install -r requirements.txt")
    mathjax = Path(package.origin).parent / "static" / "mathjax" / "tex-svg-full.js"
    (vendor / "tex-svg-full.js").write_bytes(mathjax.read_bytes())

    import vl_convert

    bundle = vl_convert.javascript_bundle(_VEGA, vl_version=charts.VEGA_LITE)
    (vendor / "vega.js").write_text(f"(function () {{\n{bundle}\n}})();\n", encoding="utf-8")


class PicturesBesideCharts(SphinxPostTransform):
    """Keep a chart's PNG beside it for readers without scripts; runs before myst-nb selects one."""

    default_priority = 3
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Append each bundle's picture, inside `noscript`, to its chart."""
        for bundle in list(self.document.findall(nodes.container)):
            if bundle.get("nb_element") != "mime_bundle":
                continue
            by_type = {child["mime_type"]: child for child in bundle.children}
            chart, picture = by_type.get(charts.MIME), by_type.get("image/png")
            if chart is None or picture is None:
                continue
            for image in picture.findall(nodes.image):
                image["alt"] = next(chart.findall(nodes.raw))["description"]
                chart += [
                    nodes.raw("", "<noscript>", format="html"),
                    image.deepcopy(),
                    nodes.raw("", "</noscript>", format="html"),
                ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    draw_charts()
    app.connect("config-inited", exclude_texts)
    app.connect("config-inited", drop_live_kernels)
    app.connect("builder-inited", refuse_unfit_notebooks)
    app.connect("builder-inited", copy_libraries)
    app.connect("env-get-outdated", read_everything)
    app.connect("build-finished", fail_on_warnings, priority=900)
    app.add_post_transform(PicturesBesideCharts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
