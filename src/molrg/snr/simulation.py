"""The SNR of any denoiser from samples, with standard errors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from molrg.model.frame import Frame
from molrg.model.mixture import LowRankMixture, MoLRG, class_weights, energies, gaussian
from molrg.model.rows import row_chunks
from molrg.snr.integrals import AVERAGES, DENOMINATORS
from molrg.support.checks import Levels, boolean, choice, integer, noise_levels
from molrg.support.devices import widest

__all__ = ["Estimate", "estimate"]


class Estimate(NamedTuple):
    """A Monte Carlo value and its standard error, float64 tensors of one shape."""

    value: Tensor
    standard_error: Tensor


def estimate(
    denoiser: Callable[[Tensor, float], Tensor] | LowRankMixture,
    mixture: LowRankMixture,
    sigma: Levels,
    num_samples: int,
    noisy_input: bool = True,
    denominator: str = "residual",
    average: str = "classes",
    generator: torch.Generator | None = None,
) -> Estimate:
    """Estimate the SNR of `denoiser` on `mixture` from `num_samples` points of each class.

    Statement: `def-snr`.

    Parameters
    ----------
    denoiser
        A callable (x, sigma) -> (N, n) with a float sigma, which returns the dtype of x; or a mixture,
        `mixture` or another one of its dimension, which stands for its posterior mean. That of a `MoLRG` is
        taken through block energies, without forming denoised vectors: all levels share the matrix products.
    sigma
        A level or (S,). Points and noise are shared by all levels (x_sigma = x_0 + sigma eps).
    average
        "classes": mean over classes of the ratio of means; "pooled": ratio of the prior-weighted means
        ("overall" in the paper); "none": one value a class, which appends K to the shape.

    Returns
    -------
    Estimate
        `value` and `standard_error` (delta method for the ratio), float64, () or (S,), with K appended for
        "none". Where denoised vectors have no energy in the denominator but that of their rounding,
        (16 eps)^2, the value is infinite and its error nan.

    Raises
    ------
    ValueError
        For arguments outside their ranges, or a denoiser that returns anything but a tensor of the shape and
        dtype of x.
    """
    integer("num_samples", num_samples, 2)
    noisy_input = boolean("noisy_input", noisy_input)
    choice("denominator", denominator, DENOMINATORS)
    choice("average", average, AVERAGES)
    levels, scalar = noise_levels(sigma)
    if isinstance(denoiser, LowRankMixture) and denoiser.dim != mixture.dim:
        raise ValueError(
            f"the denoiser must be a mixture of the dimension of the data, {mixture.dim}, got {denoiser.dim}"
        )
    like = mixture.bases[0]
    frame = mixture.frame(like.dtype, like.device)
    optimal = denoiser is mixture and isinstance(mixture, MoLRG) and mixture.is_orthogonal
    width = max(mixture.dim, frame.blocks.shape[1], len(levels) * mixture.num_classes)
    sums = torch.zeros(5, len(levels), mixture.num_classes, dtype=torch.float64)
    with torch.no_grad():
        for k in range(mixture.num_classes):
            forms: list[_Form] = []
            if isinstance(denoiser, MoLRG) and not optimal:
                forms = _forms(denoiser, mixture, k, denominator)
            for rows in row_chunks(num_samples, width):
                labels = torch.full((rows.stop - rows.start,), k)
                x0, _ = mixture.sample(len(labels), generator=generator, labels=labels)
                noise = gaussian(x0.shape, like, generator) if noisy_input else None
                if optimal and isinstance(mixture, MoLRG):
                    pair = _optimal_energies(mixture, frame, x0, noise, levels, k, denominator)
                elif isinstance(denoiser, MoLRG):
                    pair = _mixture_energies(denoiser, forms, x0, noise, levels)
                else:
                    call = denoiser.posterior_mean if isinstance(denoiser, LowRankMixture) else denoiser
                    pair = _denoised_energies(call, frame, x0, noise, levels, k, denominator)
                sums[:, :, k] += _power_sums(*pair).cpu()
    if not optimal:  # what subtraction leaves of zero is rounding
        sums[1, sums[1] <= (16 * torch.finfo(like.dtype).eps) ** 2 * sums[0]] = 0
    return _ratios(sums / num_samples, num_samples, mixture.priors, average, scalar)


def _denoised_energies(
    denoiser: Callable[[Tensor, float], Tensor],
    frame: Frame,
    x0: Tensor,
    noise: Tensor | None,
    levels: Tensor,
    k: int,
    denominator: str,
) -> tuple[Tensor, Tensor]:
    """Energies of a denoiser's output in class k and in the denominator, each (S, N)."""
    basis = frame.blocks.unflatten(1, (frame.num_classes, -1))[:, k]
    signal, rest = [], []
    for level in levels.tolist():
        x = x0 if noise is None else torch.add(x0, noise, alpha=level)
        f = denoiser(x, level)
        if not isinstance(f, Tensor) or f.dtype != x.dtype:
            kind = f.dtype if isinstance(f, Tensor) else type(f).__name__
            raise ValueError(f"the denoiser must return a tensor of {x.dtype}, the dtype of x, got {kind}")
        if f.shape != x.shape:
            raise ValueError(f"the denoiser must return shape {tuple(x.shape)}, got {tuple(f.shape)}")
        if denominator == "classes":
            energy = energies((f @ frame.blocks).unflatten(-1, (frame.num_classes, -1)))
            signal.append(energy[:, k])
            rest.append(_others(energy, k))
        else:
            z = f @ basis
            signal.append(z.square().sum(-1))
            rest.append((f - z @ basis.T).square().sum(-1))
    return torch.stack(signal), torch.stack(rest)


def _optimal_energies(
    mixture: MoLRG, frame: Frame, x0: Tensor, noise: Tensor | None, levels: Tensor, k: int, denominator: str
) -> tuple[Tensor, Tensor]:
    """The same for the optimal denoiser of orthogonal classes: energies beta_l^2 ||P_l x||^2."""
    points, powers = _points(x0, noise, levels)
    xi, gap = (c[:, None] for c in _shares(mixture, levels, x0))
    z = (points @ frame.blocks).unflatten(-1, (frame.num_classes, -1))
    energy = torch.tensordot(powers, _products(z, z), 1)
    weights = class_weights(mixture.class_logits(energy, levels))
    denoised = (xi[..., None] + gap[..., None] * weights).square() * energy
    rest = _others(denoised, k)
    if denominator == "residual" and frame.basis is None:
        outside = points - z.flatten(-2) @ frame.blocks.T
        rest = rest + xi**2 * torch.tensordot(powers, _products(outside, outside), 1)
    return denoised[..., k], rest


class _Form(NamedTuple):
    """An energy ||L f||^2 of a mixture's posterior mean f: L on rows, L U (K r, p), and U^T L^T L U."""

    operator: Callable[[Tensor], Tensor]
    blocks: Tensor
    gram: Tensor


def _forms(denoiser: MoLRG, mixture: LowRankMixture, k: int, denominator: str) -> list[_Form]:
    """The energies in class k of `mixture`, L = U_k^T, and in the denominator, for the mixture `denoiser`."""
    like = mixture.bases[0]
    bases = mixture.frame(like.dtype, like.device).blocks.unflatten(1, (mixture.num_classes, -1))
    own, others = bases[:, k], torch.cat([bases[:, :k], bases[:, k + 1 :]], dim=1).flatten(1)

    def residual(x: Tensor) -> Tensor:
        return x - x @ own @ own.T

    def projected(x: Tensor) -> Tensor:
        return x @ own

    def in_others(x: Tensor) -> Tensor:
        return x @ others

    blocks = denoiser.frame(like.dtype, like.device).blocks.T
    forms = []
    for operator in (projected, residual if denominator == "residual" else in_others):
        inside = operator(blocks)
        if operator is residual and denoiser is mixture:
            inside.unflatten(0, (mixture.num_classes, -1))[k] = 0  # P_k has no residual but its rounding
        forms.append(_Form(operator, inside, inside @ inside.T))
    return forms


def _mixture_energies(
    denoiser: MoLRG, forms: Sequence[_Form], x0: Tensor, noise: Tensor | None, levels: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for any mixture's posterior mean, f = xi P_S x + (zeta - xi) sum_l w_l P_l x, by `_forms`.

    ||L f||^2 is a quadratic form in c = (xi, (zeta - xi) w_1, ..., (zeta - xi) w_K). Its matrix, the Gram
    matrix of L P_S x, L P_1 x, ..., L P_K x, is summed row by row, so that K^2 numbers are never held.
    """
    frame = denoiser.frame(x0.dtype, x0.device)
    num_classes = frame.num_classes
    points, powers = _points(x0, noise, levels)
    s = frame.coordinates(points)
    z = frame.project(s)
    energy = torch.tensordot(powers, _products(z, z), 1)
    weights = class_weights(denoiser.class_logits(energy, levels))
    xi, gap = _shares(denoiser, levels, x0)
    c = gap[:, None] * weights.transpose(0, 1)  # (N, S, K)

    def at_levels(products: Tensor, coefficients: Tensor) -> Tensor:
        """sum_l coefficients_l products_l for each level, (N, S), from products (P, N, K)."""
        return ((coefficients @ products.permute(1, 2, 0)) * powers).sum(-1)

    found = []
    for operator, blocks, gram in forms:
        whole = operator(frame.lift(s))
        first = (whole @ blocks.T).unflatten(-1, (num_classes, -1))
        value = xi**2 * torch.tensordot(powers, _products(whole, whole), 1).T
        value = value + 2 * xi * at_levels(_products(first, z), c)
        for each, row in enumerate(gram.unflatten(0, (num_classes, -1))):
            products = _products((z[..., each, :] @ row).unflatten(-1, (num_classes, -1)), z)
            value = value + c[..., each] * at_levels(products, c)
        found.append(value.T)
    return found[0], found[1]


def _shares(mixture: MoLRG, levels: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """xi and zeta - xi over zeta, (S,): no SNR depends on the scale of f, and float32 cannot hold every f."""
    xi, gap = mixture.coefficients(levels)
    return (xi / (xi + gap)).to(like.dtype).to(like.device), (gap / (xi + gap)).to(like.dtype).to(like.device)


def _points(x0: Tensor, noise: Tensor | None, levels: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 (1, N, n), or x_0 and eps (2, N, n); and the powers of sigma in a product of two x_sigma.

    Powers are (S, 3) for noisy input, and (1, 1) for clean input, which is one for all levels.
    """
    if noise is None:
        return x0.unsqueeze(0), x0.new_ones(1, 1)
    level = levels.to(x0.dtype).to(x0.device)
    return torch.stack([x0, noise]), torch.stack([torch.ones_like(level), level, level**2], dim=1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Coefficients, by powers of sigma, of <a, b> over the last axis, linear in x_sigma: (1 or 3, N, ...)."""
    if len(a) == 1:
        return (a * b).sum(-1)
    straight = (a * b).sum(-1)
    crossed = (a * b.flip(0)).sum(-1).sum(0)
    return torch.stack([straight[0], crossed, straight[1]])


def _others(energy: Tensor, k: int) -> Tensor:
    """Sum over all classes but k; not as a difference, which cancels where class k dominates."""
    return energy[..., :k].sum(-1) + energy[..., k + 1 :].sum(-1)


def _power_sums(signal: Tensor, rest: Tensor) -> Tensor:
    """Sums over samples of a, b, a^2, ab, b^2: (5, S), float64 except on devices without it."""
    wide = widest(signal.device)
    a, b = signal.to(wide), rest.to(wide)
    return torch.stack([t.sum(-1) for t in (a, b, a * a, a * b, b * b)])


def _ratios(means: Tensor, num_samples: int, priors: Tensor, average: str, scalar: bool) -> Estimate:
    """Ratios of means and their standard errors by the delta method, from means (5, S, K)."""
    a, b, aa, ab, bb = means

    def spread(ratio: Tensor) -> Tensor:
        """Variance of the mean of a - ratio b, (S, K)."""
        second = aa - 2 * ratio * ab + ratio**2 * bb
        return (second - (a - ratio * b) ** 2).clamp(min=0) / (num_samples - 1)

    if average == "pooled":
        noise = (priors * b).sum(-1)
        ratio = (priors * a).sum(-1) / noise
        error = (priors**2 * spread(ratio[:, None])).sum(-1).sqrt() / noise
    else:
        ratio = a / b
        error = spread(ratio).sqrt() / b
        if average == "classes":
            error = error.square().sum(-1).sqrt() / ratio.shape[-1]
            ratio = ratio.mean(-1)
    return Estimate(ratio[0], error[0]) if scalar else Estimate(ratio, error)
