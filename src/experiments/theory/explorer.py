r"""The exact SNR in the reader's browser: exact values on a grid, and figures that interpolate them.

`run` computes the grid, for each K, d and input. Between its nodes the ratio of the exact SNR to the refined
formula, which is near 1, is interpolated (`fine`): a table at DELTAS x LEVELS. Between the nodes of that, the
browser interpolates log SNR with Keys' cubic kernel over log(delta / (1 - delta)) and log sigma.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RectBivariateSpline

from molrg import snr
from molrg.model.coefficients import block_variances, coefficients
from molrg.snr.quadrature import weight_moments

__all__ = [
    "CLASSES",
    "DELTAS",
    "DIGITS",
    "LEVELS",
    "RANKS",
    "cloud",
    "encode",
    "energies",
    "figure",
    "fine",
    "interpolated",
    "refined",
    "run",
]

CLASSES = (2, 3, 5, 10, 30, 100)
RANKS = (1, 2, 3, 5, 10, 20)
DELTAS = 1 / (1 + np.exp(-np.linspace(np.log(0.045 / 0.955), np.log(0.9 / 0.1), 16)))
LEVELS = np.geomspace(0.015, 8, 57)
_EVERY = (3, 4)
_DELTA_RANGE, _SIGMA_RANGE = (0.07, 0.86), (0.02, 6.0)  # one node away from the ends of the table
_INPUTS = ("noisy", "clean")
DIGITS = "".join(chr(code) for code in range(35, 127) if chr(code) not in "&'<>\\`")


def run(num_classes: Sequence[int], ranks: Sequence[int], workdir: Path) -> dict[str, Any]:
    """Compute the exact SNR of the optimal denoiser at every third of DELTAS and every fourth of LEVELS.

    `workdir` is not used. Returns `log_snr` (I, K, R, 6, 15), for noisy and clean input, each number of
    classes and each rank.
    """
    deltas, levels = DELTAS[:: _EVERY[0]], LEVELS[:: _EVERY[1]]
    values = np.empty((2, len(num_classes), len(ranks), len(deltas), len(levels)))
    for i, r, j, s in np.ndindex(2, *values.shape[2:]):
        signal, noise = energies(
            num_classes, ranks[r], float(deltas[j]), float(levels[s]), _INPUTS[i] == "noisy"
        )
        values[i, :, r, j, s] = np.log(signal / noise)
    return {"log_snr": np.round(values, 6)}


def fine(log_snr: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """The grid of `run` (..., 6, 15), at all DELTAS and LEVELS (..., 16, 57), by `refined`'s table."""
    coarse = refined[..., :: _EVERY[0], :: _EVERY[1]]
    nodes = _U[:: _EVERY[0]], np.log(LEVELS[:: _EVERY[1]])
    table = refined.copy()
    for at in np.ndindex(table.shape[:-2]):
        table[at] += RectBivariateSpline(*nodes, log_snr[at] - coarse[at])(_U, np.log(LEVELS))
    return table


def energies(
    num_classes: Sequence[int], rank: int, delta: float, sigma: float, noisy_input: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean energies of the denoised point, in its class's subspace and in the others': (K,) each.

    Their ratio is `molrg.snr.exact`, which does not share what all numbers of classes have in common.
    """
    many = np.array(num_classes)[:, None]
    kappa, xi, gain = coefficients(sigma, delta)
    own, other = block_variances(sigma, delta, noisy_input)
    own_1, own_2, other_1, other_2 = weight_moments(many, rank, kappa * own, kappa * other)
    signal = own * (xi**2 * rank + 2 * xi * gain * own_1 + gain**2 * own_2)
    noise = other * (xi**2 * rank + 2 * xi * gain * other_1 + gain**2 * other_2)
    return signal, (many[:, 0] - 1) * noise


def refined(num_classes: Sequence[int], ranks: Sequence[int]) -> np.ndarray:
    """Log SNR by the refined formula (`molrg.snr.refined`) at DELTAS x LEVELS: (I, K, R, 16, 57)."""
    values = [
        snr.refined(k, d, float(delta), LEVELS, noisy_input=given == "noisy").numpy()
        for given in _INPUTS
        for k in num_classes
        for d in ranks
        for delta in DELTAS
    ]
    shape = (2, len(num_classes), len(ranks), len(DELTAS), len(LEVELS))
    return np.log(values).reshape(shape)


def interpolated(table: np.ndarray, delta: float, sigma: float) -> np.ndarray:
    """The SNR between the nodes of a table (..., 16, 57), as the browser interpolates it: (...)."""
    value = table
    for nodes, at in ((np.log(LEVELS), np.log(sigma)), (_U, np.log(delta / (1 - delta)))):
        position = (at - nodes[0]) / (nodes[1] - nodes[0])
        t = np.abs(position - np.arange(len(nodes)))
        near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
        value = value @ np.where(t < 1, near, np.where(t < 2, far, 0))
    return np.exp(value)


def encode(table: np.ndarray) -> tuple[str, float, float]:
    """A table as text, two letters a number, with its lowest value and its step: the browser reads it so."""
    base = len(DIGITS)
    low, high = float(table.min()), float(table.max())
    step = (high - low) / (base**2 - 1)
    codes = np.round((table.ravel() - low) / step).astype(int)
    return "".join(DIGITS[code // base] + DIGITS[code % base] for code in codes), low, step


def figure(
    tables: dict[str, np.ndarray], num_classes: int, rank: int, colors: Sequence[str]
) -> dict[str, Any]:
    """A Vega-Lite specification of the SNR over sigma, with choices of K, d and input and sliders.

    `tables` holds log SNR by name, for CLASSES and RANKS; Theorem 1 is drawn beside them. The reader
    starts at `num_classes` and `rank`, delta = 0.2, sigma = 0.3 and noisy input.
    """
    names = [*tables, "Theorem 1"]
    expressions, params = dict(_POSITION), []
    for name, table in tables.items():
        text, low, step = encode(table)
        params.append({"name": f"{name}_table", "value": text})
        taps = [f"datum.w{tap} * {_number(f'{name}_table', tap)}" for tap in range(4)]
        expressions[f"log_{name}"] = f"{low:.6g} + {step:.6g} * ({' + '.join(taps)})"
    expressions |= _THEOREM | {name: f"exp(datum.log_{name})" for name in tables}
    weight = _keys("(log(sigma) - datum.log_level) / datum.level_step")
    logs = [{"op": "sum", "field": f"at_{i}", "as": f"sum_{i}"} for i in range(len(names))]
    told = " + ' · ' + ".join(f"'{n} ' + format(exp(datum.sum_{i}), '.3~g')" for i, n in enumerate(names))
    series = {"field": "name", "type": "nominal", "title": None}
    channel = {"domain": names, "range": list(colors)}
    low_sigma, high_sigma = (round(float(np.log10(level)), 2) for level in _SIGMA_RANGE)
    x: dict[str, Any] = {"field": "level", "type": "quantitative", "title": "noise level σ (log scale)"}
    x["scale"] = {"type": "log", "domain": list(_SIGMA_RANGE), "nice": False}
    return {
        "params": [
            {"name": "d_digits", "value": DIGITS},
            *params,
            _choice("K", "classes K ", list(CLASSES), num_classes),
            _choice("d", "rank d ", list(RANKS), rank),
            _choice("given", "input ", list(_INPUTS), "noisy"),
            _slider("delta", "background δ ", 0.2, *_DELTA_RANGE, 0.01),
            _slider("log_sigma", "noise log₁₀ σ ", -0.5, low_sigma, high_sigma, 0.01),
            {"name": "sigma", "expr": "pow(10, log_sigma)"},
        ],
        "data": {"sequence": {"start": 0, "stop": len(LEVELS), "as": "j"}},
        "transform": [{"calculate": how, "as": name} for name, how in expressions.items()],
        "layer": [
            {
                "transform": [{"fold": names, "as": ["name", "SNR"]}],
                "mark": {"type": "line", "clip": True, "interpolate": "monotone"},
                "encoding": {
                    "x": x,
                    "y": {"field": "SNR", "type": "quantitative", "scale": {"type": "log"}},
                    "color": series | {"scale": channel},
                    "strokeDash": series | {"scale": {"domain": names, "range": [[1, 0], [6, 3], [2, 2]]}},
                },
            },
            {
                "transform": [
                    *(
                        {"calculate": f"{weight} * log(datum['{name}'])", "as": f"at_{i}"}
                        for i, name in enumerate(names)
                    ),
                    {"aggregate": logs},
                    {"calculate": "sigma", "as": "level"},
                    {"calculate": f"'at σ = ' + format(sigma, '.2~g') + ': ' + {told}", "as": "told"},
                ],
                "layer": [
                    {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"x": x}},
                    {
                        "mark": {"type": "text", "align": "left", "baseline": "bottom", "dy": -4},
                        "encoding": {"x": {"value": 0}, "y": {"value": 0}, "text": {"field": "told"}},
                    },
                ],
            },
        ],
    }


def cloud(num_points: int, seed: int, colors: Sequence[str]) -> dict[str, Any]:
    """A Vega-Lite specification of a plane with two classes of rank 1, and of their denoised points.

    Delta, sigma and the input are those that the reader sets in the other figure of the page.
    """
    draws = np.random.default_rng(seed).standard_normal((num_points, 4))
    rows = [
        {"c": i % 2, "a": a, "e": e, "n1": n1, "n2": n2} for i, (a, e, n1, n2) in enumerate(draws.tolist())
    ]
    seen = "(given === 'noisy' ? sigma : 0)"
    expressions = {
        "x": f"(datum.c ? delta * datum.e : datum.a) + {seen} * datum.n1",
        "y": f"(datum.c ? datum.a : delta * datum.e) + {seen} * datum.n2",
        "xi": "delta * delta / (delta * delta + sigma * sigma)",
        "gain": "1 / (1 + sigma * sigma) - datum.xi",
        "w": "1 / (1 + exp(datum.gain / (2 * sigma * sigma) * (datum.y * datum.y - datum.x * datum.x)))",
        "input x": "datum.x",
        "input y": "datum.y",
        "denoised x": "(datum.xi + datum.gain * datum.w) * datum.x",
        "denoised y": "(datum.xi + datum.gain * (1 - datum.w)) * datum.y",
        "class": "datum.c ? 'class 2' : 'class 1'",
    }
    axis = {"type": "quantitative", "scale": {"domain": [-3.5, 3.5]}}
    colour: dict[str, Any] = {"field": "class", "type": "nominal", "title": None}
    colour["scale"] = {"domain": ["class 1", "class 2"], "range": list(colors)}

    def points(what: str, **mark: Any) -> dict[str, Any]:
        place = {
            way: axis | {"field": f"{what} {way}", "title": f"coordinate in class {n}'s subspace"}
            for n, way in enumerate("xy", start=1)
        }
        return {
            "mark": {"type": "point", "clip": True, **mark},
            "encoding": place
            | {"color": colour, "shape": colour | {"legend": None, "scale": {"range": ["circle", "square"]}}},
        }

    return {
        "params": [
            {"name": "given", "value": "noisy"},
            {"name": "delta", "value": 0.2},
            {"name": "sigma", "value": round(10**-0.5, 4)},
        ],
        "height": 380,
        "data": {"values": rows},
        "transform": [{"calculate": how, "as": name} for name, how in expressions.items()],
        "layer": [
            points("input", opacity=0.25, filled=False, size=25),
            points("denoised", opacity=0.9, filled=True, size=30),
        ],
    }


def _choice(name: str, label: str, options: list[Any], value: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "bind": {"input": "select", "name": label, "options": options}}


def _slider(name: str, label: str, value: float, low: float, high: float, step: float) -> dict[str, Any]:
    bind = {"input": "range", "name": label, "min": float(low), "max": float(high), "step": step}
    return {"name": name, "value": value, "bind": bind}


def _keys(distance: str) -> str:
    """Keys' cubic kernel at a distance in nodes, as a Vega expression."""
    t = f"abs({distance})"
    near = f"(1.5 * {t} - 2.5) * {t} * {t} + 1"
    far = f"((-0.5 * {t} + 2.5) * {t} - 4) * {t} + 2"
    return f"({t} < 1 ? {near} : {t} < 2 ? {far} : 0)"


def _number(table: str, tap: int) -> str:
    """The number of a table at the row's level and the `tap`-th node of delta beside the slider's."""
    at = f"(datum.first + {tap * len(LEVELS)})"
    high, low = (f"indexof(d_digits, substring({table}, 2 * {at} + {i}, 2 * {at} + {i + 1}))" for i in (0, 1))
    return f"({len(DIGITS)} * {high} + {low})"


_U = np.log(DELTAS / (1 - DELTAS))
_POSITION = {
    "log_level": f"{np.log(LEVELS[0]):.10g} + datum.j * {np.log(LEVELS[1] / LEVELS[0]):.10g}",
    "level": "exp(datum.log_level)",
    "level_step": f"{np.log(LEVELS[1] / LEVELS[0]):.10g}",
    "position": f"(log(delta / (1 - delta)) - {_U[0]:.10g}) / {_U[1] - _U[0]:.10g}",
    "node": f"clamp(floor(datum.position) - 1, 0, {len(DELTAS) - 4})",
    "first": f"((((given === 'noisy' ? 0 : 1) * {len(CLASSES)} + indexof({list(CLASSES)}, K))"
    f" * {len(RANKS)} + indexof({list(RANKS)}, d)) * {len(DELTAS)} + datum.node) * {len(LEVELS)} + datum.j",
    **{f"w{tap}": _keys(f"datum.position - datum.node - {tap}") for tap in range(4)},
}
"""Where the reader's delta lies in the table: the first number there, and the weights of its four nodes."""

_THEOREM = {
    "s2": "datum.level * datum.level",
    "d2": "delta * delta",
    "gap": "d * pow(1 - datum.d2, 2) / (2 * (1 + datum.s2) * (datum.d2 + datum.s2))",
    "own": "1 / (1 + (K - 1) * exp(-datum.gap))",
    "other": "1 / (K - 1 + exp(datum.gap))",
    "rise": "1 + datum.s2 / datum.d2 * ((1 - datum.d2) * datum.own + datum.d2)",
    "fall": "1 + datum.s2 / datum.d2 * ((1 - datum.d2) * datum.other + datum.d2)",
    "front": "given === 'noisy' ? (1 + datum.s2) / (datum.d2 + datum.s2) : 1 / datum.d2",
    "Theorem 1": "datum.front / (K - 1) * pow(datum.rise / datum.fall, 2)",
}
"""`molrg.snr.theorem` as Vega expressions, in the order of computation."""
