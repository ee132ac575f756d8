"""The mixture's posterior mean and its SNR against straight-line code and against other libraries."""

import contextlib
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Row, compare, one_thread, peak_memory
from molrg import LowRankMixture, MoLRG, snr

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((64, 3, 5), (256, 10, 10), (784, 10, 20), (784, 100, 20))
ROWS, DELTA, SIGMA = 10_000, 0.2, 0.4
SLOW = 2e12
"""Multiplications above which a dense mixture is timed on a part of the rows."""


def model(shape: Shape, background: str = "span") -> MoLRG:
    """Return a mixture of orthogonal classes, or of classes at random angles if those do not fit."""
    dim, num_classes, rank = shape
    generator = torch.Generator().manual_seed(0)
    if num_classes * rank <= dim:
        return MoLRG.orthogonal(num_classes, rank, dim, DELTA, background, generator)
    draws = torch.randn(num_classes, dim, rank, generator=generator)
    return MoLRG(list(torch.linalg.qr(draws).Q), DELTA, background=background)


def general(shape: Shape, background: str = "span") -> LowRankMixture:
    """Return a mixture on the same subspaces with a variance for each direction, and class means."""
    dim, num_classes, rank = shape
    generator = torch.Generator().manual_seed(2)
    variances = 0.3 + torch.rand(num_classes, rank, generator=generator)
    means = 0.5 * torch.randn(num_classes, dim, generator=generator) / dim**0.5
    return LowRankMixture(model(shape, background).bases, DELTA, variances, means, background=background)


def noisy_points(mixture: LowRankMixture, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x0, _ = mixture.sample(rows, generator=generator)
    return x0 + SIGMA * torch.randn(x0.shape, generator=generator)


# --- the contenders: each takes a mixture and returns the map x -> E[x_0 | x_sigma = x] ----------------


def ours(mixture: LowRankMixture) -> Callable[[Tensor], Tensor]:
    return lambda x: mixture.posterior_mean(x, SIGMA)


def coefficients() -> tuple[float, float, float]:
    """kappa, xi and zeta - xi of the posterior mean."""
    s2, d2 = SIGMA**2, DELTA**2
    kappa = (1 / (d2 + s2) - 1 / (1 + s2)) / 2
    return kappa, d2 / (d2 + s2), 1 / (1 + s2) - d2 / (d2 + s2)


def straight_line(mixture: MoLRG) -> Callable[[Tensor], Tensor]:
    """Two matrix products, block energies, softmax; for equal ranks and priors."""
    u = torch.cat(mixture.bases, dim=1)
    kappa, xi, gap = coefficients()
    inside = mixture.support_dim == u.shape[1]

    def denoise(x: Tensor) -> Tensor:
        z = (x @ u).unflatten(1, (mixture.num_classes, -1))
        w = torch.softmax(kappa * z.square().sum(-1), -1)
        if inside:
            return ((xi + gap * w)[..., None] * z).flatten(1) @ u.T
        return xi * x + gap * ((w[..., None] * z).flatten(1) @ u.T)

    return denoise


def two_products(mixture: MoLRG) -> Callable[[Tensor], Tensor]:
    u = torch.cat(mixture.bases, dim=1)
    return lambda x: (x @ u) @ u.T


def azula(mixture: LowRankMixture) -> Callable[[Tensor], Tensor]:
    """One Gaussian denoiser per class, mixed with a running softmax of the class densities.

    With background `complement` each covariance is delta^2 I plus rank d, the smallest form azula has.
    """
    from azula.denoise import GaussianDenoiser
    from azula.linalg.covariance import DPLRCovariance
    from azula.noise import VESchedule

    dim = mixture.dim
    schedule, time = VESchedule(SIGMA, SIGMA), torch.tensor(0.5)
    diagonal = torch.full((dim,), DELTA**2)
    means = mixture.means.float()
    classes = [
        GaussianDenoiser(mean, DPLRCovariance(diagonal, u * (v - DELTA**2).sqrt().float()), schedule=schedule)
        for mean, u, v in zip(means, mixture.bases, mixture.variances, strict=True)
    ]
    log_dets = [DPLRCovariance(c.cov.D + SIGMA**2, c.cov.V).logdet() for c in classes]

    def denoise(x: Tensor) -> Tensor:
        mean, total = torch.zeros_like(x), torch.zeros(len(x), 1)
        top = torch.full((len(x), 1), -math.inf)
        for one, log_det, centre in zip(classes, log_dets, means, strict=True):
            of_class = one(x, time).mean
            distance = ((x - centre) * (x - of_class)).sum(1, keepdim=True) / SIGMA**2
            logit = -0.5 * (distance + log_det)
            highest = torch.maximum(top, logit)
            old, new = (top - highest).exp(), (logit - highest).exp()
            mean, total, top = old * mean + new * of_class, old * total + new, highest
        return mean / total

    return denoise


def dense_torch(mixture: MoLRG) -> Callable[[Tensor], Tensor]:
    """torch.distributions' mixture of dense Gaussians, and Tweedie's formula by automatic differentiation."""
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    eye = torch.eye(mixture.dim)
    covariances = torch.stack(
        [mixture.covariance(k).float() + SIGMA**2 * eye for k in range(mixture.num_classes)]
    )
    normals = MultivariateNormal(torch.zeros(len(covariances), mixture.dim), covariances)
    density = MixtureSameFamily(Categorical(mixture.priors.float()), normals)

    def denoise(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
        return x.detach() + SIGMA**2 * score

    return denoise


def dense_scipy(mixture: MoLRG) -> Callable[[Tensor], Tensor]:
    """scipy's dense Gaussian log-densities, and the classes' posterior means as dense products."""
    from scipy.special import softmax
    from scipy.stats import multivariate_normal

    noise = SIGMA**2 * np.eye(mixture.dim)
    covariances = [mixture.covariance(k).numpy() for k in range(mixture.num_classes)]
    normals = [multivariate_normal(cov=c + noise) for c in covariances]
    gains = [np.linalg.solve(c + noise, c) for c in covariances]

    def denoise(x: Tensor) -> Tensor:
        points = x.double().numpy()
        logits = np.stack([normal.logpdf(points) for normal in normals], axis=1)
        weights = softmax(logits, axis=1)
        mean = np.zeros_like(points)
        for k, gain in enumerate(gains):
            mean += weights[:, [k]] * (points @ gain)
        return torch.from_numpy(mean).to(x.dtype)

    return denoise


DENSE = {"torch.distributions": dense_torch, "scipy": dense_scipy}


def has_azula() -> bool:
    return find_spec("azula") is not None and find_spec("einops") is not None


def missing(name: str, target: str) -> Row:
    note = "not measured: pip install --no-deps -r benchmarks/requirements.txt"
    nothing = math.nan
    return Row(name=name, ours=nothing, peer=nothing, ratio=nothing, target=target, note=note)


# --- the rows -------------------------------------------------------------------------------------------


def against_straight_line(shape: Shape, rows: int, repeats: int) -> Row:
    mixture = model(shape)
    x = noisy_points(mixture, rows)
    mine, peer = ours(mixture), straight_line(mixture)
    a, b, ratio = compare(lambda: mine(x), lambda: peer(x), repeats)
    name = f"posterior mean {shape} / straight-line code"
    return Row(name=name, ours=a, peer=b, ratio=ratio, target="<= 1.25", note="span background")


def general_against_simple(shape: Shape, rows: int, repeats: int) -> Row:
    simple, mixture = model(shape), general(shape)
    x = noisy_points(mixture, rows)
    mine, peer = ours(mixture), ours(simple)
    a, b, ratio = compare(lambda: mine(x), lambda: peer(x), repeats)
    name = f"general posterior mean {shape} / that of the simple mixture"
    note = "a variance for each direction, class means"
    return Row(name=name, ours=a, peer=b, ratio=ratio, target="<= 1.25", note=note)


def against_two_products(shape: Shape, rows: int, repeats: int) -> Row:
    mixture = model(shape)
    x = noisy_points(mixture, rows)
    mine, peer = ours(mixture), two_products(mixture)
    a, b, ratio = compare(lambda: mine(x), lambda: peer(x), repeats)
    name = f"posterior mean {shape} / two matrix products"
    return Row(name=name, ours=a, peer=b, ratio=ratio, target="<= 1.5", note="")


def against_azula(
    shape: Shape, rows: int, repeats: int, build: Callable[[Shape, str], LowRankMixture] = model
) -> Row:
    """The row for the simple mixture, or with `build=general` for the general one."""
    kind = "posterior mean" if build is model else "general posterior mean"
    name, target = f"azula, Gaussians mixed {shape} / {kind}", ">= 7"
    if not has_azula():
        return missing(name, target)
    mixture = build(shape, "complement")
    x = noisy_points(mixture, rows)
    mine, peer = ours(mixture), azula(mixture)
    a, b, ratio = compare(lambda: mine(x), lambda: peer(x), repeats)
    note = "complement background: low-rank covariances"
    return Row(name=name, ours=a, peer=b, ratio=1 / ratio, target=target, note=note)


def against_dense(shape: Shape, rows: int, repeats: int, library: str) -> Row:
    dim, num_classes, _ = shape
    mixture = model(shape, "complement")
    x = noisy_points(mixture, rows)
    part = max(1, min(rows, int(rows * SLOW / (rows * num_classes * dim**2 * 20))))
    mine, peer = ours(mixture), DENSE[library](mixture)
    alone = library == "scipy"  # its BLAS is another than PyTorch's, with threads of its own
    with one_thread() if alone else contextlib.nullcontext():
        a, b, ratio = compare(lambda: mine(x), lambda: peer(x[:part]), repeats)
    scale = rows / part
    name = f"{library}, dense mixture {shape} / posterior mean"
    note = "set-up not timed" + ("; both sides on one thread" if alone else "")
    note += f"; timed on {part:,} rows, times {scale:.3g}" if part < rows else ""
    return Row(name=name, ours=a, peer=b * scale, ratio=scale / ratio, target=">= 10", note=note)


def memory_call(contender: Callable[[MoLRG], Callable[[Tensor], Tensor]], shape: Shape, rows: int) -> Any:
    """Return the call whose peak memory is measured; what it keeps between calls is there already."""
    denoise = contender(model(shape, "complement"))
    x = torch.randn(rows, shape[0])
    denoise(x[:10])
    return lambda: denoise(x)


def memory(shape: Shape, rows: int) -> list[Row]:
    mine = peak_memory(memory_call, ours, shape, rows)
    contenders: dict[str, Callable[[MoLRG], Callable[[Tensor], Tensor]]] = {
        "straight-line code": straight_line,
        "azula": azula,
        "torch.distributions": dense_torch,
        "scipy": dense_scipy,
    }
    lines = []
    for label, contender in contenders.items():
        name = f"memory of the posterior mean {shape} / {label}"
        if contender is azula and not has_azula():
            lines.append(missing(name, "<= 1"))
            continue
        peer = peak_memory(memory_call, contender, shape, rows)
        note = f"MB, of which the result {rows * shape[0] * 4 / 1e6:.0f}"
        lines.append(Row(name=name, ours=mine, peer=peer, ratio=mine / peer, target="<= 1", note=note))
    return lines


def sweep(shape: Shape, num_samples: int, levels: int, repeats: int) -> Row:
    mixture = model(shape)
    grid = torch.logspace(-2, 1, levels)

    def estimate(sigma: Tensor) -> snr.Estimate:
        generator = torch.Generator().manual_seed(2)
        return snr.estimate(mixture, mixture, sigma, num_samples, noisy_input=False, generator=generator)

    middle = grid[levels // 2]
    a, b, ratio = compare(lambda: estimate(grid), lambda: estimate(middle), repeats)
    name = f"clean-input SNR {shape}, {levels} noise levels / one"
    note = f"{num_samples:,} samples a class; a loop costs {levels}"
    return Row(name=name, ours=a, peer=b, ratio=ratio, target="<= 5", note=note)


def run(rows: int = ROWS) -> list[Row]:
    """Return all rows about the mixture."""
    lines = [against_straight_line(shape, rows, 31) for shape in SHAPES]
    lines += [general_against_simple(shape, rows, 31) for shape in SHAPES]
    lines.append(against_two_products(SHAPES[-1], rows, 15))
    lines.append(sweep(SHAPES[2], 1000, 100, 7))
    many = [shape for shape in SHAPES if shape[1] >= 10]
    lines += [against_azula(shape, rows, 3, build) for build in (model, general) for shape in many]
    lines += [against_dense(shape, rows, 2, library) for library in DENSE for shape in many]
    return lines + memory(SHAPES[2], rows)
