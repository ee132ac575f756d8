r"""Nested classes: superclasses whose classes share a part of their subspace; coarse and fine SNR, exactly.

Class k of superclass s has the basis U_k = [A_s, B_k]: the c columns of A_s are shared by the M classes of
superclass s, the d columns of B_k are its own; all A_s and B_k are mutually orthogonal, s = 1 ... S. The data
are a `MoLRG` of S M equally likely classes (`span` background), and so is their optimal denoiser. It
multiplies block A_s by xi + (zeta - xi) W_s and block B_k by xi + (zeta - xi) w_k, with the posterior
weights w_k and W_s = sum of w_k over superclass s.

With coarse labels the signal is what lies in the superclass's subspace, A_s and all its B_k; with fine labels
what lies in U_k. The rest is noise (denominator `residual`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.stats import norm
from torch import Tensor

from molrg.model.coefficients import block_variances, coefficients
from molrg.model.mixture import MoLRG, gaussian
from molrg.snr import Estimate, quadrature
from molrg.support.checks import Levels, boolean, fraction, integer, noise_levels

__all__ = ["Accuracies", "Nested", "Pair"]


class Pair(NamedTuple):
    """A value for coarse and one for fine labels, float64, () or (S,)."""

    coarse: Tensor
    fine: Tensor


class Accuracies(NamedTuple):
    """Accuracy of the Bayes classifier and of the linear probe, with coarse and with fine labels."""

    bayes_coarse: Estimate
    bayes_fine: Estimate
    linear_coarse: Estimate
    linear_fine: Estimate


@dataclass(frozen=True)
class Nested:
    """A model of nested classes: S, M, c, d and delta.

    S >= 1 superclasses (with one, the coarse SNR is infinite) of M >= 1 classes, S M >= 2; c >= 0 shared and
    d >= 1 private directions. Raises ValueError for others, its methods for arguments outside their ranges.
    """

    num_superclasses: int
    num_subclasses: int
    shared_rank: int
    private_rank: int
    delta: float

    def __post_init__(self) -> None:
        least = {"num_superclasses": 1, "num_subclasses": 1, "shared_rank": 0, "private_rank": 1}
        for name, low in least.items():
            integer(name, getattr(self, name), low)
        if self.num_superclasses * self.num_subclasses < 2:
            raise ValueError("num_superclasses * num_subclasses must be at least 2 classes, got 1")
        fraction("delta", self.delta)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """S, M, c and d."""
        return self.num_superclasses, self.num_subclasses, self.shared_rank, self.private_rank

    def mixture(
        self, dim: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> MoLRG:
        """Return a random nested mixture; class k belongs to superclass k // num_subclasses.

        Raises ValueError where the blocks do not fit into `dim`.

        Statement: `def-nested`.
        """
        s, m, c, d = self.counts
        width = s * (c + m * d)
        if width > integer("dim", dim, 1):
            raise ValueError(f"the blocks need dim >= S (c + M d) = {width}, got dim={dim}")
        like = torch.empty(0, dtype=torch.float64, device="cpu" if generator is None else generator.device)
        q = torch.linalg.qr(gaussian((dim, width), like, generator).cpu()).Q.to(dtype).to(like.device)
        bases = []
        for group in q.split(c + m * d, dim=1):
            shared, private = group[:, :c], group[:, c:]
            bases += [torch.cat([shared, own], 1) for own in private.split(d, dim=1)]
        return MoLRG(bases, self.delta)

    def snr(self, sigma: Levels, noisy_input: bool = True) -> Pair:
        r"""Return the exact SNR of the optimal denoiser with coarse and with fine labels.

        Relative error below 1e-9 for c, d up to 50, delta .02 to .95 and sigma 1e-3 to 50.

        Method. As in `molrg.snr.exact`, 1/S^m = 1/Gamma(m) int u^{m-1} e^{-uS} du with u = e^v factorises
        the expectations, here over superclasses. Given the shared energy a, the classes of a superclass are
        independent as well: its factor is E_a[prod_k phi(v + kappa a)], a function of t = v + kappa a
        averaged over a. So the integrals are one-dimensional ones, nested three deep.

        Statement: `thm-nested`.
        """
        s, m, c, d = self.counts
        energy, scalar = self._over_levels(sigma, noisy_input)
        own = c * energy.shared + d * energy.private
        siblings = (m - 1) * d * energy.sibling
        others = (s - 1) * (c * energy.other_shared + m * d * energy.other_private)
        return _pair((own + siblings) / others, own / (siblings + others), scalar)

    def approximate(self, sigma: Levels, noisy_input: bool = True) -> Pair:
        r"""Return the same in the manner of Theorem 1: the softmax of the mean energies for its mean.

        With g = (1 - delta^2)^2 / (2 (1 + sigma^2)(delta^2 + sigma^2)), weights proportional to e^{(c + d) g}
        for the class, e^{c g} for its siblings and 1 for others. For c = 0 or M = 1 it is Theorem 1.
        """
        s, m, c, d = self.counts
        noisy_input = boolean("noisy_input", noisy_input)
        levels, scalar = noise_levels(sigma)
        s2, d2 = levels**2, self.delta**2
        gap = (1 - d2) ** 2 / (2 * (1 + s2) * (d2 + s2))
        # Weights relative to that of the class, which cannot overflow.
        sibling, other = torch.exp(-d * gap), torch.exp(-(c + d) * gap)
        total = 1 + (m - 1) * sibling + (s - 1) * m * other
        own_group = (1 + (m - 1) * sibling) / total

        def energy(weight: Tensor) -> Tensor:
            return (1 + s2 / d2 * ((1 - d2) * weight + d2)) ** 2

        front = (1 + s2) / (d2 + s2) if noisy_input else torch.full_like(s2, 1 / d2)
        own = front * (c * energy(own_group) + d * energy(1 / total))
        siblings = (m - 1) * d * energy(sibling / total)
        others = (s - 1) * (c * energy(m * other / total) + m * d * energy(other / total))
        return _pair((own + siblings) / others, own / (siblings + others), scalar)

    def information(self, sigma: Levels) -> Pair:
        r"""Return the mutual information of x_sigma with the coarse and with the fine label, in nats.

        log S - int Phi_A (1 - Phi_B^{S-1}) dv, where Phi_A(v) = E exp(-e^v Z_s), Z_s the sum of e^{kappa E}
        over the classes of the own superclass and Phi_B the same for another; the fine label has log M -
        int (E exp(-e^{v + kappa (A + B_k)}) - Phi_A) dv besides. Error below 1e-8.

        Statement: `prop-nested-information`.
        """
        energy, scalar = self._over_levels(sigma, True)
        coarse = math.log(self.num_superclasses) - energy.coarse_loss
        return _pair(coarse, coarse + math.log(self.num_subclasses) - energy.fine_loss, scalar)

    def accuracies(
        self,
        sigma: Levels,
        noisy_input: bool = True,
        num_samples: int = 20_000,
        generator: torch.Generator | None = None,
    ) -> Accuracies:
        r"""Return the accuracies of Bayes and of the linear probe on E[x_0 | x], by Monte Carlo.

        The linear probe is a logistic regression on the coordinates of E[x_0 | x] along all A_s and B_k, in
        the limit of a large balanced training set; as in `class_information` its logits are independent
        Gaussians given the point, of variance sum_b C_k[b] T_b / Sigma_b^2 over blocks b with energy T_b,
        second moments C_k[b] within the (super)class and Sigma_b in all. All levels share the draws.
        """
        s, m, c, d = self.counts
        integer("num_samples", num_samples, 2)
        energy, scalar = self._over_levels(sigma, noisy_input)
        levels, _ = noise_levels(sigma)

        def draw(*shape: int) -> np.ndarray:
            normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return normal.square().sum(-1).numpy()

        shared_chi, private_chi = draw(num_samples, s, c), draw(num_samples, s, m, d)
        order = torch.randperm(num_samples, generator=generator).numpy()
        normal = norm.ppf((order + 0.5) / num_samples)[:, None]
        values = np.empty((4, len(levels), num_samples))
        for i, level in enumerate(levels.tolist()):
            kappa, xi, gain, own, other = _setting(level, self.delta, noisy_input)
            shared, private = other * shared_chi, other * private_chi
            shared[:, 0] *= own / other
            private[:, 0, 0] *= own / other
            logits = kappa * (shared[:, :, None] + private)
            weights = np.exp(logits - logits.max((1, 2), keepdims=True))
            weights /= weights.sum((1, 2), keepdims=True)
            group = weights.sum(2)
            values[0, i] = group.argmax(1) == 0
            values[1, i] = weights.reshape(num_samples, -1).argmax(1) == 0
            shared *= (xi + gain * group) ** 2
            private *= (xi + gain * weights) ** 2
            own_shared, own_private, sibling, other_shared, other_private, *_ = (float(e[i]) for e in energy)
            mean_shared = (own_shared + (s - 1) * other_shared) / s
            in_group = (own_private + (m - 1) * sibling) / m
            mean_private = (in_group + (s - 1) * other_private) / s
            shared /= mean_shared**2 if c else 1.0
            private /= mean_private**2
            base = other_shared * shared.sum(1) + other_private * private.sum((1, 2))
            extra = base[:, None] + (own_shared - other_shared) * shared
            groups = extra + (in_group - other_private) * private.sum(2)
            fine = (extra + (sibling - other_private) * private.sum(2))[..., None]
            fine = (fine + (own_private - sibling) * private).reshape(num_samples, -1)
            for j, variance in ((2, groups), (3, fine)):
                slope = normal * np.sqrt(variance[:, :1] / variance[:, 1:])
                values[j, i] = (norm.cdf(slope).prod(1) + norm.cdf(-slope).prod(1)) / 2
        mean, error = (
            torch.tensor(values.mean(2)),
            torch.tensor(values.std(2, ddof=1) / math.sqrt(num_samples)),
        )
        if scalar:
            mean, error = mean[:, 0], error[:, 0]
        return Accuracies(*(Estimate(a, b) for a, b in zip(mean, error, strict=True)))

    def _over_levels(self, sigma: Levels, noisy_input: bool) -> tuple["_Energies", bool]:
        noisy_input = boolean("noisy_input", noisy_input)
        levels, scalar = noise_levels(sigma)
        rows = [_energies(self.counts, *_setting(s, self.delta, noisy_input)) for s in levels.tolist()]
        return _Energies(*torch.tensor(rows, dtype=torch.float64).T), scalar


def _pair(coarse: Tensor, fine: Tensor, scalar: bool) -> Pair:
    return Pair(coarse[0], fine[0]) if scalar else Pair(coarse, fine)


# --- exact integrals --------------------------------------------------------------------------------


class _Energies(NamedTuple):
    """Mean denoised energy per direction of each kind of block, and the mean log-losses."""

    shared: Tensor
    private: Tensor
    sibling: Tensor
    other_shared: Tensor
    other_private: Tensor
    coarse_loss: Tensor
    fine_loss: Tensor


def _setting(level: float, delta: float, noisy_input: bool) -> tuple[float, float, float, float, float]:
    """kappa, xi, zeta - xi, v_A, v_B."""
    return (*coefficients(level, delta), *block_variances(level, delta, noisy_input))


@lru_cache(maxsize=1024)  # SNR, information and accuracies at the same levels share them
def _energies(
    counts: tuple[int, int, int, int], kappa: float, xi: float, gain: float, own: float, other: float
) -> tuple[float, ...]:
    s, m, c, d = counts
    a, b = kappa * own, kappa * other
    first, second = 2 * xi * gain, gain**2
    v, weights = quadrature.panel_rule(_breaks(c, d, a, b))
    lowest = v[0]

    # Functions of t = v + kappa (shared energy), within one superclass.
    grid = 6.0 - np.exp(np.linspace(0.0, math.log(6.0 - lowest), 3000))
    # psi are E[Y g], phi are E[g] with g = e^{m tau - e^tau} at tau = t + scale Y; m = 0, 1, 2.
    mine, psi1_mine, psi2_mine = quadrature.transforms(grid, d, a)
    phi, psi1, psi2 = quadrature.transforms(grid, d, b)
    _, phi1_mine, phi2_mine = quadrature.transforms(grid, d, a, weighted=False)
    _, phi1, phi2 = quadrature.transforms(grid, d, b, weighted=False)
    psi = first * psi1 + second * psi2
    rest = phi ** (m - 1)
    fewer = (m - 1) * phi ** max(m - 2, 0)
    fewest = (m - 1) * (m - 2) * phi ** max(m - 3, 0)
    group1 = phi1_mine * rest + mine * phi1 * fewer
    group2 = phi2_mine * rest + mine * phi2 * fewer
    group2 += 2 * phi1_mine * phi1 * fewer + mine * phi1**2 * fewest
    own_functions = np.stack(
        [
            mine * rest,
            first * group1 + second * group2,
            (first * psi1_mine + second * psi2_mine) * rest,
            mine * psi * phi ** max(m - 2, 0),
            mine,
        ]
    )
    its1 = m * phi1 * rest
    its2 = m * phi2 * rest + m * phi1**2 * fewer
    other_functions = np.stack([phi**m, first * its1 + second * its2, psi * rest])

    whole, shared, private, sibling, alone = _averages(v, grid, own_functions, c, a)
    phi_other, other_shared, other_private = _averages(v, grid, other_functions, c, b)
    alone_measure = weights * phi_other ** (s - 1)
    measure = weights * whole * phi_other ** max(s - 2, 0)

    def energy(variance: float, extra: float, rank: int) -> float:
        return variance * (xi**2 + extra / rank) if rank else 0.0

    return (
        energy(own, float(alone_measure @ shared), c),
        energy(own, float(alone_measure @ private), d),
        energy(other, float(alone_measure @ sibling), d),
        energy(other, float(measure @ other_shared), c),
        energy(other, float(measure @ other_private), d),
        float((weights * whole) @ (1 - phi_other ** (s - 1))),
        float(weights @ (alone - whole)),
    )


def _breaks(c: int, d: int, a: float, b: float) -> np.ndarray:
    """Breaks in v: where the energies' densities live, and from 4 downwards in growing steps."""
    radii = [quadrature.radii(rank, 16) for rank in {c, d, c + d} - {0}]
    lowest = -max(a, b) * max(r[-1] for r in radii) ** 2 - 40
    steps = np.concatenate([[4.0, 3, 2, 1, 0], -(2.0 ** np.arange(0, 40, 0.5))])
    breaks = np.concatenate([steps, [lowest], *[-scale * r**2 for r in radii for scale in (a, b)]])
    return np.unique(breaks[(breaks >= lowest) & (breaks <= 4)])


def _nodes(at: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes y (N, P) and weights for E over Y ~ chi^2_rank of functions of `at` (N, 1) + scale Y.

    Breaks at the density's scale, and where the functions of `_energies` turn: densely where they go from 1
    to 0, and in doubling steps below, where they change on the scale of the distance from there.
    """
    doublings = np.arange(1, max(2, math.ceil(math.log2(max(-at.min(), 1) / 39)) + 1))
    turns = np.concatenate([-39.0 * 2.0**doublings, quadrature.TRANSITION])
    r, weights = quadrature.moving_rule(quadrature.radii(rank, 12), at, turns, scale)
    return r * r, weights * quadrature.chi_density(rank, r)


def _averages(v: np.ndarray, grid: np.ndarray, functions: np.ndarray, rank: int, scale: float) -> np.ndarray:
    """E over Y ~ chi^2_rank of each function (given on `grid`) at v + scale Y; the second one times Y.

    In x = log(6 - t) the functions are smooth on the scale of the grid: splines of degree 5 lose nothing.
    """
    x = np.log(6.0 - grid)
    spline = make_interp_spline(x, functions.T, k=5)
    if rank == 0:
        result = spline(np.log(6.0 - v)).T
        result[1] = 0
        return result
    result = np.empty((len(functions), len(v)))
    for start in range(0, len(v), quadrature.ROWS):
        rows = slice(start, start + quadrature.ROWS)
        at = v[rows, None]
        y, measure = _nodes(at, rank, scale)
        counts = measure > 1e-25  # most nodes are in empty panels or in the tails
        t = np.minimum((at + scale * y)[counts], 5.0)
        values = measure[counts] * spline(np.log(6.0 - t)).T
        values[1] *= y[counts]
        first = np.concatenate([[0], counts.sum(1).cumsum()[:-1]])
        result[:, rows] = np.add.reduceat(values, first, axis=1)
    return result
