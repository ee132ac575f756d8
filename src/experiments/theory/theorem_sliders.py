"""Theorem 1 as a figure that computes in the reader's browser: sliders, no kernel, no network."""

from typing import Any

__all__ = ["FORMULA", "theorem_figure"]

FORMULA = {
    "s2": "pow(10, 2 * datum.exponent)",
    "d2": "delta * delta",
    "gap": "rank * pow(1 - datum.d2, 2) / (2 * (1 + datum.s2) * (datum.d2 + datum.s2))",
    "own": "1 / (1 + (num_classes - 1) * exp(-datum.gap))",
    "other": "1 / (num_classes - 1 + exp(datum.gap))",
    "rise": "1 + datum.s2 / datum.d2 * ((1 - datum.d2) * datum.own + datum.d2)",
    "fall": "1 + datum.s2 / datum.d2 * ((1 - datum.d2) * datum.other + datum.d2)",
    "ratio": "pow(datum.rise / datum.fall, 2) / (num_classes - 1)",
    "noisy": "(1 + datum.s2) / (datum.d2 + datum.s2) * datum.ratio",
    "clean": "datum.ratio / datum.d2",
    "sigma": "pow(10, datum.exponent)",
}
"""`molrg.snr.theorem` as Vega expressions, in the order of computation."""


def theorem_figure(
    num_classes: int, rank: int, delta: float, colors: tuple[str, str], mark: str = "line"
) -> dict[str, Any]:
    """Return a Vega-Lite specification of Theorem 1's SNR over sigma, with sliders for K, d and delta.

    The arguments are the sliders' starting values and the two curves' colours (clean, noisy).
    """

    def slider(name: str, label: str, value: float, low: float, high: float, step: float) -> dict[str, Any]:
        bind = {"input": "range", "name": label, "min": low, "max": high, "step": step}
        return {"name": name, "value": value, "bind": bind}

    def channel(**values: Any) -> dict[str, Any]:
        return {"field": "input", "type": "nominal", "title": None} | values

    level = {"type": "log", "domain": [1e-3, 100]}
    return {
        "params": [
            slider("num_classes", "classes K ", num_classes, 2, 100, 1),
            slider("rank", "rank d ", rank, 1, 100, 1),
            slider("delta", "background δ ", delta, 0.02, 0.98, 0.01),
        ],
        "data": {"sequence": {"start": -3, "stop": 2.01, "step": 0.02, "as": "exponent"}},
        "transform": [
            *({"calculate": expression, "as": name} for name, expression in FORMULA.items()),
            {"fold": ["clean", "noisy"], "as": ["input", "SNR"]},
        ],
        "mark": mark,
        "encoding": {
            "x": {
                "field": "sigma",
                "type": "quantitative",
                "scale": level,
                "title": "noise level σ (log scale)",
            },
            "y": {
                "field": "SNR",
                "type": "quantitative",
                "scale": {"type": "log"},
                "title": "SNR (log scale)",
            },
            "color": channel(scale={"domain": ["clean", "noisy"], "range": list(colors)}),
            "strokeDash": channel(scale={"domain": ["clean", "noisy"], "range": [[1, 0], [6, 3]]}),
        },
    }
