"""Build pages that need no network: MathJax and Vega are copied from installed packages."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core import render
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

from compendium import charts

# Unwrapped, the bundle's top-level names would clash with those of other scripts (`_`, for one).
_VEGA = "window.vegaEmbed = vegaEmbed; window.vega = vega;"


def draw_charts() -> None:
    """Let myst-nb draw our charts: it looks for renderers among what is installed, and ours are not."""
    render.load_mime_renders = lambda: [charts.MystRenderer]


def drop_live_kernels(app: Sphinx, config: Any) -> None:
    """Keep sphinx-thebe, which jupyter-book always loads, from adding its scripts: they need a server."""
    unwanted = ("init_thebe_core", "update_thebe_context")
    for listeners in app.events.listeners.values():
        listeners[:] = [each for each in listeners if getattr(each.handler, "__name__", "") not in unwanted]


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
    app.connect("config-inited", drop_live_kernels)
    app.connect("builder-inited", copy_libraries)
    app.add_post_transform(PicturesBesideCharts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
