"""Figures are deterministic, described in words, and drawn from inert text."""

import json
import math
import re
import struct
from typing import Any

import altair
import numpy as np
import pytest
import vl_convert

from compendium import charts

WORDS = "A curve over the noise level that rises to a peak and falls."
ROWS = [
    {"sigma": sigma, "snr": k * math.exp(-sigma), "curve": f"K = {k}", "se": 0.1}
    for k in (2, 3)
    for sigma in (0.01, 0.1, 1.0)
]


def figure(**changes: Any) -> charts.Figure:
    return charts.show(charts.curves(ROWS, "snr", "curve", error="se", **changes), WORDS)


def test_a_figure_has_a_specification_a_picture_and_a_text() -> None:
    bundle = figure()._repr_mimebundle_()
    assert set(bundle) == {charts.MIME, "image/png", "text/plain"}
    assert bundle["text/plain"] == f"Figure: {WORDS}"
    spec = bundle[charts.MIME]
    assert spec["description"] == WORDS
    assert spec["width"] == "container"
    assert spec["config"]["background"] == "transparent"
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_the_picture_is_640_wide_before_scaling_and_has_no_transparent_background() -> None:
    png = figure().png(scale=1.0)
    width = struct.unpack(">I", png[16:20])[0]
    assert 640 <= width <= 720  # the plot with its axes
    assert png == figure().png(scale=1.0)


def test_the_same_figure_is_the_same_text() -> None:
    assert figure().spec == figure().spec
    html = charts.html_figure(figure().spec)
    assert html == charts.html_figure(figure().spec)
    assert re.search(r'id="chart-[0-9a-f]{12}"', html)


def test_numbers_of_the_data_keep_four_digits_and_others_are_left_alone() -> None:
    spec: dict[str, Any] = {
        "data": {"values": [{"x": 0.123456, "y": 123456.7, "n": 7, "z": float("nan"), "m": -0.0}]},
        "mark": {"type": "point", "opacity": 0.123456},
    }
    shown = charts.show(spec, WORDS).spec
    ((name, rows),) = shown["datasets"].items()
    assert rows == [{"x": 0.1235, "y": 123500.0, "n": 7, "z": None, "m": 0.0}]
    assert str(rows[0]["m"]) == "0.0"  # and not "-0.0", which differs between processors
    assert shown["data"] == {"name": name}
    assert shown["mark"]["opacity"] == 0.123456
    assert spec["data"]["values"][0]["x"] == 0.123456  # the caller's own is untouched


def test_data_sets_are_named_by_their_content() -> None:
    def name(value: float) -> str:
        chart = altair.Chart(altair.Data(values=[{"x": value}])).mark_point().encode(x="x:Q")
        return next(iter(charts.show(chart, WORDS).spec["datasets"]))

    assert name(1.0) == name(1.0 + 1e-9) != name(2.0)
    assert re.fullmatch("data-[0-9a-f]{12}", name(1.0))


def test_a_chart_of_its_own_configuration_keeps_it() -> None:
    chart = altair.Chart(altair.Data(values=ROWS)).mark_point().encode(x="sigma:Q").configure_axis(grid=False)
    axis = charts.show(chart, WORDS).spec["config"]["axis"]
    assert axis["grid"] is False
    assert axis["labelFontSize"] == charts.CONFIG["axis"]["labelFontSize"]


def test_series_are_told_apart_by_colour_and_by_dash_and_shape() -> None:
    encodings = [layer["encoding"] for layer in figure().spec["layer"]]
    domains = [e[c]["scale"] for e in encodings for c in ("color", "strokeDash", "shape") if c in e]
    assert all(scale["domain"] == ["K = 2", "K = 3"] for scale in domains)
    assert [sorted(set(e) & {"color", "strokeDash", "shape"}) for e in encodings] == [
        ["color"],
        ["color", "strokeDash"],
        ["color", "shape"],
    ]
    assert len(set(charts.PALETTE)) == len(charts.PALETTE) == len(charts.DASHES) == len(charts.SHAPES)


def test_curves_without_series_errors_or_points() -> None:
    spec = charts.show(charts.curves(ROWS[:3], "snr", points=False, y_scale="log"), WORDS).spec
    (layer,) = spec["layer"]
    assert layer["mark"]["type"] == "line"
    assert layer["encoding"]["y"]["scale"] == {"type": "log"}
    assert layer["encoding"]["x"]["scale"]["type"] == "log"


def test_more_series_than_can_be_told_apart_are_refused() -> None:
    rows = [{"sigma": 1.0, "y": 1.0, "s": str(k)} for k in range(9)]
    with pytest.raises(ValueError, match="can tell 8 series apart, not 9"):
        charts.curves(rows, "y", "s")


@pytest.mark.parametrize("words", ["", "   ", "A plot."])
def test_a_figure_without_a_description_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="must say in words what the figure shows"):
        charts.show({"mark": "point"}, words)


def test_text_in_a_chart_cannot_leave_its_element() -> None:
    spec = charts.show({"mark": "point", "data": {"values": [{"a": "</script><b>"}]}}, WORDS + ' "<i>"').spec
    html = charts.html_figure(spec)
    assert html.count("</script>") == 1
    assert "<b>" not in html
    assert "<i>" not in html
    inert = re.search(r'<script type="application/json">(.*)</script>', html)
    assert inert is not None
    assert json.loads(inert[1]) == spec


def test_a_chart_computed_in_the_browser_keeps_its_generated_data() -> None:
    spec = {"data": {"sequence": {"start": 0, "stop": 1, "step": 0.1}}, "mark": "line"}
    shown = charts.show(spec, WORDS).spec
    assert shown["data"] == spec["data"]
    assert "datasets" not in shown


@pytest.mark.parametrize("points", [True, False])
def test_curves_have_a_legend(points: bool) -> None:
    rows = [
        {"sigma": s, "y": s, "c": name, "e": 0.1}
        for s in (0.1, 1.0)
        for name in ("first curve", "second one")
    ]
    chart = charts.curves(rows, "y", "c", error="e", points=points)
    spec = charts.show(chart, "Two curves that lie on each other").spec | {"width": 400}
    svg = vl_convert.vegalite_to_svg(spec, vl_version="6.4")
    assert "first curve</text>" in svg
    assert "second one</text>" in svg


def test_points_lie_on_curves_told_apart_by_two_properties() -> None:
    lines = [
        {"sigma": sigma, "snr": 2.0, "input": kind, "by": by}
        for by in ("exact", "theorem")
        for kind in ("noisy", "clean")
        for sigma in (0.1, 1.0)
    ]
    points = [{"sigma": 0.1, "snr": 2.0, "low": 1.5, "high": 2.5, "input": "noisy"}]
    parts: dict[str, list[dict[str, Any]]] = {"line": lines, "bar": points, "point": points}
    told = {"color": "input", "strokeDash": "by"}
    chart = charts.layers(("sigma", charts.LEVEL), ("snr", "SNR (log scale)"), parts, **told)
    spec = charts.show(chart, WORDS)._repr_mimebundle_()[charts.MIME]
    curve, bars, marks = spec["layer"]
    assert [layer["mark"]["type"] for layer in (curve, bars, marks)] == ["line", "rule", "point"]
    assert curve["encoding"]["color"]["scale"]["domain"] == ["noisy", "clean"]
    assert curve["encoding"]["color"]["scale"] == marks["encoding"]["color"]["scale"]
    assert curve["encoding"]["strokeDash"]["scale"]["domain"] == ["exact", "theorem"]
    assert (bars["encoding"]["y"]["field"], bars["encoding"]["y2"]["field"]) == ("low", "high")
    assert {layer["encoding"]["y"]["scale"]["type"] for layer in spec["layer"]} == {"log"}
    many = [{**lines[0], "by": f"{i}"} for i in range(9)]
    with pytest.raises(ValueError, match="by can tell 8 series apart, not 9"):
        charts.layers(("sigma", charts.LEVEL), ("snr", "SNR"), {"line": many}, **told)


def test_a_picture_is_a_png_in_its_url() -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    pixels = np.array([[0, 255], [7, 9]], np.uint8)
    head, content = charts.picture(pixels, 4).split(",")
    assert head == "data:image/png;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert (back == pixels.repeat(2, 0).repeat(2, 1)).all()


def test_a_table_has_a_head_and_a_body_for_each_group() -> None:
    shown = charts.table(["N", "f<sub>N</sub>"], [[64, "a"], [128, "b"]], [[256, "c"]]).data
    assert shown == (
        "<table class='table table-sm'><thead><tr><th>N</th><th>f<sub>N</sub></th></tr></thead>"
        "<tbody><tr><td>64</td><td>a</td></tr><tr><td>128</td><td>b</td></tr></tbody>"
        "<tbody><tr><td>256</td><td>c</td></tr></tbody></table>"
    )


def test_curves_over_levels_are_made_from_arrays() -> None:
    chart = charts.over_levels(
        {"one": [1.0, float("nan")], "two": (np.array([2.0, 3.0]), np.array([0.1, 0.2]))}, [0.1, 1.0], "SNR"
    )
    spec = charts.show(chart, "Two curves over two noise levels.").spec
    bands, rows = spec["datasets"].values()
    assert rows == [
        {"sigma": 0.1, "value": 1.0, "name": "one"},
        {"sigma": 0.1, "value": 2.0, "name": "two"},
        {"sigma": 1.0, "value": 3.0, "name": "two"},
    ]
    ends = [{"low": 1.9, "high": 2.1}, {"low": 2.8, "high": 3.2}]
    assert bands == [row | end for row, end in zip(rows[1:], ends, strict=True)]


def test_repetitions_are_drawn_as_mean_and_deviation() -> None:
    chart = charts.over_levels({"a": np.array([[1.0, 2.0], [3.0, 12.0]])}, [0.1, 1.0], "SNR (log scale)")
    rows, _ = charts.show(chart, "One curve over two noise levels.").spec["datasets"].values()
    assert [row["value"] for row in rows] == [2.0, 7.0]
    assert [row["low"] for row in rows] == [0.5858, 0.7]  # the second cut, so that the band keeps above 0
