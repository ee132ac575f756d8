"""Tables, and Vega-Lite charts that look the same on screen, on paper, in the dark and without a network.

`show` turns an Altair chart, or a Vega-Lite specification, into an output with two faces: the specification,
which the book draws in the reader's browser, and a PNG for places that cannot. Both are deterministic:
numbers keep four significant digits and data sets are named by their content.
"""

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "CONFIG",
    "DASHES",
    "HEIGHT",
    "LEVEL",
    "MIME",
    "PALETTE",
    "SHAPES",
    "VEGA_LITE",
    "Figure",
    "MystRenderer",
    "curves",
    "figure",
    "html_figure",
    "layers",
    "over_levels",
    "picture",
    "show",
    "table",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart; the darkest and strongest first.
Black is last, since it is the page's own text colour and turns light in the dark."""

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 2, 1, 2, 1, 2], [1, 3], [10, 2, 2, 2])
"""Dash patterns: the second channel beside colour."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "stroke")
"""Point shapes: the second channel beside colour."""

VEGA_LITE = "6.4"
MIME = "application/vnd.vegalite.v6+json"
HEIGHT = 300
LEVEL = "noise level σ (log scale)"
"""Title of the axis of noise levels."""
_PNG_WIDTH = 640

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "view": {"stroke": None},
    "range": {"category": list(PALETTE), "symbol": list(SHAPES), "ramp": {"scheme": "viridis"}},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "gridOpacity": 0.25,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    },
    "legend": {
        "labelFontSize": 12,
        "titleFontSize": 13,
        "orient": "bottom",
        "columns": 3,
        "labelLimit": 400,
        "symbolOpacity": 1,
    },
    "header": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"},
    "title": {"fontSize": 14, "fontWeight": "normal"},
    "line": {"strokeWidth": 2},
    "point": {"filled": True, "size": 45},
}
"""The theme, as a Vega-Lite `config`; a chart's own `config` wins over it."""


class Figure:
    """A chart ready to be shown: `spec` is the Vega-Lite specification, `description` its text in words."""

    def __init__(self, spec: dict[str, Any], description: str):
        self.spec = spec
        self.description = description

    def png(self, scale: float = 1.5) -> bytes:
        """The chart as a PNG on white, 640 pixels wide before scaling; 128 colours keep it small."""
        import vl_convert
        from PIL import Image

        fixed = self.spec | {"config": self.spec["config"] | {"background": "white"}}
        if fixed.get("width") == "container":
            fixed["width"] = _PNG_WIDTH
        drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(fixed, scale=scale, vl_version=VEGA_LITE)))
        small = io.BytesIO()
        drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        return small.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return {
            MIME: self.spec,
            "image/png": base64.b64encode(self.png()).decode("ascii"),
            "text/plain": f"Figure: {self.description}",
        }


def show(chart: Any, description: str) -> Figure:
    """A figure from an Altair chart or a Vega-Lite specification; make it the last line of a cell.

    `description` says in words what the figure shows, for readers who do not see it. The theme is added, the
    width follows the page (unless the chart composes several views, whose widths it must give itself), and
    the numbers of its data are rounded to four significant digits.

    Raises `ValueError` for a description of less than 20 characters.
    """
    description = " ".join(description.split())
    if len(description) < 20:
        raise ValueError(f"description must say in words what the figure shows; it is {description!r}")
    spec = json.loads(json.dumps(chart)) if isinstance(chart, Mapping) else _altair_dict(chart)
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v6.4.1.json", "description": description} | {
        key: value for key, value in spec.items() if key not in ("$schema", "description", "config")
    }
    spec["config"] = _merge(CONFIG, _own_config(chart))
    if "mark" in spec or "layer" in spec:
        spec = {"width": "container", "height": HEIGHT} | spec
        spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    return Figure(_name_data(_round(spec)), description)


def table(head: Sequence[Any], *groups: Sequence[Sequence[Any]]) -> Any:
    """A table with a row of headings and groups of rows, as HTML to display; entries may be HTML too."""
    from IPython.display import HTML

    def line(tag: str, row: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{entry}</{tag}>" for entry in row) + "</tr>"

    bodies = "".join("<tbody>" + "".join(line("td", row) for row in group) + "</tbody>" for group in groups)
    return HTML(f"<table class='table table-sm'><thead>{line('th', head)}</thead>{bodies}</table>")


def layers(
    x: tuple[str, str],
    y: tuple[str, str],
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    **channels: str | None,
) -> Any:
    """Marks over one pair of axes, as an Altair chart.

    `x` and `y` are a column and its title; an axis whose title says "log scale" is logarithmic. `parts`
    holds rows by mark: `line`, `point`, and `band` and `bar`, which reach from column `low` to `high`.
    `channels` name the columns that are told apart by `color`, by the `strokeDash` of lines and by the
    `shape` of points, with their values in the order of the rows; rows without a colour are grey. A `detail`
    keeps series apart that look alike.
    """
    import altair

    kinds: dict[str, tuple[Any, Sequence[Any]]] = {
        "color": (altair.Color, PALETTE),
        "strokeDash": (altair.StrokeDash, DASHES),
    }
    kinds |= {"shape": (altair.Shape, SHAPES)}
    marks = {"line": "line", "point": "point", "bar": "rule", "band": "area"}
    everything = [row for rows in parts.values() for row in rows]
    drawn = []
    for part, rows in parts.items():
        ends = part in ("band", "bar")
        at = altair.X(x[0], type="quantitative", title=x[1], scale=_scale(x[1], nice=False))
        value = altair.Y(
            "low" if ends else y[0], type="quantitative", title=y[1], scale=_scale(y[1], zero=False)
        )
        encoding: dict[str, Any] = {"x": at, "y": value} | ({"y2": altair.Y2("high")} if ends else {})
        for name in {"line": ("color", "strokeDash"), "point": ("color", "shape")}.get(part, ("color",)):
            if (column := channels.get(name)) and rows and column in rows[0]:
                encoding[name] = _told_apart(kinds[name][0], column, everything, kinds[name][1])
        if detail := channels.get("detail"):
            encoding["detail"] = f"{detail}:N"
        chart = altair.Chart(altair.Data(values=[dict(row) for row in rows]))
        mark = {"type": marks[part]} | ({"opacity": 0.2} if part == "band" else {})
        if channels.get("color") and "color" not in encoding:
            mark["color"] = "#777777"
        drawn.append(chart.mark_point().properties(mark=mark).encode(**encoding))
    return altair.layer(*drawn)


def _scale(title: str, **linear: Any) -> Any:
    import altair

    if "log scale)" not in title:
        return altair.Scale(**linear)
    return altair.Scale(type="log", nice=False) if "nice" in linear else altair.Scale(type="log")


def _told_apart(channel: Any, name: str, rows: Sequence[Mapping[str, Any]], marks: Sequence[Any]) -> Any:
    """An encoding of the values of column `name`, in the order of the rows, by as many marks."""
    import altair

    values = list(dict.fromkeys(row[name] for row in rows if name in row))
    if len(values) > len(marks):
        raise ValueError(f"{name} can tell {len(marks)} series apart, not {len(values)}")
    scale = altair.Scale(domain=values, range=list(marks)[: len(values)])
    return channel(name, type="nominal", title=None, scale=scale)


def curves(
    rows: Sequence[Mapping[str, Any]],
    y: str,
    series: str | None = None,
    *,
    x: str = "sigma",
    error: str | None = None,
    x_title: str = LEVEL,
    y_title: str | None = None,
    y_scale: str = "linear",
    points: bool = True,
) -> Any:
    """Curves, over the noise level unless `x` is another column: one per value of `series`, told apart twice.

    `rows` is a sequence of `{x: ..., y: ..., series: ..., error: ...}`; `error` names a column with a
    half-width (a standard error, say) that is drawn as a band. Axes and order are those of `layers`, and a
    `y_scale` "log" is noted in the title.
    """
    y_title = y_title or y
    if y_scale == "log" and "log scale)" not in y_title:
        y_title += " (log scale)"
    parts = {"line": rows} | ({"point": rows} if points else {})
    if error:
        ends = [row | {"low": row[y] - row[error], "high": row[y] + row[error]} for row in map(dict, rows)]
        parts = {"band": ends} | parts
    return layers((x, x_title), (y, y_title), parts, color=series, strokeDash=series, shape=series)


def over_levels(
    curves_of: Mapping[str, Any], levels: Sequence[float] | np.ndarray, y_title: str, x_title: str = LEVEL
) -> Any:
    """Curves over the noise level from arrays: an Altair chart.

    `curves_of` holds by name the values at the `levels`, (L,), or a pair of values and half-widths of a band,
    or repetitions (R, L), whose mean is drawn in a band of one standard deviation; on a log axis a band keeps
    above 0. Values that are NaN are left out. Up to 21 levels are marked by points.
    """
    rows, bands = [], []
    for name, given in curves_of.items():
        values, *widths = given if isinstance(given, tuple) else (given,)
        if np.ndim(values) == 2:
            values, widths = np.mean(values, 0), [np.std(values, 0, ddof=min(1, len(values) - 1))]
        for i, (level, value) in enumerate(zip(levels, values, strict=True)):
            if not math.isnan(value):
                row: dict[str, Any] = {"sigma": float(level), "value": float(value), "name": name}
                rows.append(row)
                if widths:
                    most = 0.9 * abs(value) if "log scale)" in y_title else math.inf
                    width = float(min(widths[0][i], most))
                    bands.append(row | {"low": row["value"] - width, "high": row["value"] + width})
    parts = (
        ({"band": bands} if bands else {}) | {"line": rows} | ({"point": rows} if len(levels) <= 21 else {})
    )
    return layers(
        ("sigma", x_title), ("value", y_title), parts, color="name", strokeDash="name", shape="name"
    )


def figure(
    curves_of: Mapping[str, Any],
    levels: Sequence[float] | np.ndarray,
    y_title: str,
    description: str,
    x_title: str = LEVEL,
) -> Figure:
    """The figure of `over_levels`, with its description as in `show`."""
    return show(over_levels(curves_of, levels, y_title, x_title), description)


def picture(pixels: np.ndarray, size: int) -> str:
    """An image (H, W) or (H, W, 3), uint8, as a URL that holds it, scaled to `size` by `size` pixels."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def html_figure(spec: Mapping[str, Any]) -> str:
    """The HTML that the book shows for a figure: an inert specification, which a script of the book draws.

    The element's id is a digest of its content.
    """
    text = json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    name = "chart-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    alt = html.escape(spec["description"], quote=True)
    inert = text.replace("<", "\\u003c")  # no `</script>` can end the element early
    return (
        f'<div class="chart" id="{name}"><div class="chart-view" role="img" aria-label="{alt}"></div>'
        f'<script type="application/json">{inert}</script></div>'
    )


class MystRenderer:
    """Draws Vega-Lite outputs in the book: a renderer plugin of myst-nb."""

    mime_priority_overrides = (("html", MIME, 1), ("singlehtml", MIME, 1), ("dirhtml", MIME, 1))

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """The nodes for a Vega-Lite output; None for any other."""
        if inline or data.mime_type != MIME:
            return None
        from docutils import nodes

        spec = data.content
        return [nodes.raw("", html_figure(spec), format="html", description=spec["description"])]


def _altair_dict(chart: Any) -> dict[str, Any]:
    import altair

    with altair.data_transformers.enable("default", max_rows=20_000):
        return chart.to_dict()


def _own_config(chart: Any) -> dict[str, Any]:
    """What the chart itself configures, without Altair's default theme."""
    import altair

    if isinstance(chart, Mapping):
        return dict(chart.get("config", {}))
    own = chart.config
    return {} if own is altair.Undefined else own.to_dict()


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _round(value: Any, inside_data: bool = False) -> Any:
    """Round the numbers of data sets to four significant digits; what is not finite becomes null."""
    if isinstance(value, dict):
        return {k: _round(v, inside_data or k in ("datasets", "values")) for k, v in value.items()}
    if isinstance(value, list):
        return [_round(v, inside_data) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.4g}") + 0.0 if inside_data else value  # + 0.0: no minus zero
    return value


def _name_data(spec: dict[str, Any]) -> dict[str, Any]:
    """Move inline data to top-level data sets named by a digest of their content."""
    datasets: dict[str, Any] = {}
    old = spec.pop("datasets", {})

    def visit(node: Any) -> Any:
        if isinstance(node, list):
            return [visit(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: visit(value) for key, value in node.items()}
        data = node.get("data")
        if isinstance(data, dict) and "sequence" not in data and "url" not in data:
            values = old.get(data.get("name")) if "values" not in data else data["values"]
            if values is not None:
                text = json.dumps(values, sort_keys=True)
                name = "data-" + hashlib.sha256(text.encode()).hexdigest()[:12]
                datasets[name] = values
                node["data"] = {k: v for k, v in data.items() if k != "values"} | {"name": name}
        return node

    spec = visit(spec)
    return spec | {"datasets": datasets} if datasets else spec
