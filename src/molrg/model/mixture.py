"""Mixtures of low-rank Gaussians, noisy (MoLRG) and general ones, whose denoiser is known in closed form."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrg.model.coefficients import coefficients
from molrg.model.frame import Frame, Means
from molrg.model.rows import by_rows, check_points, per_level, row_chunks
from molrg.support.checks import Levels, choice, fraction, integer, is_boolean, noise_levels, nonnegative
from molrg.support.devices import widest

__all__ = [
    "BACKGROUNDS",
    "ROUNDING",
    "LowRankMixture",
    "MoLRG",
    "class_labels",
    "class_priors",
    "class_weights",
    "energies",
    "gaussian",
]

BACKGROUNDS = ("span", "complement")
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest entry of U^T U - I that is taken for rounding: QR of thousands of rows leaves a tenth or less."""


class LowRankMixture:
    r"""Mixture of low-rank Gaussians in R^n with class means and a variance for each direction.

    Statement: `def-low-rank-mixture`.

    Class k is drawn with probability pi_k, then

        x_0 = mu_k + U_k diag(v_k)^{1/2} a + delta V_k e,    a ~ N(0, I_{d_k}),    e ~ N(0, I),

    with orthonormal U_k (n, d_k). V_k is an orthonormal basis of the background, the complement of
    U_k inside span(U_1 ... U_K) (`background="span"`) or inside R^n (`background="complement"`). Noisy data
    are x_sigma = x_0 + sigma eps. `MoLRG` is the case v = 1, mu = 0, 0 < delta < 1.

    Parameters
    ----------
    bases
        K >= 2 tensors U_k of shape (n, d_k) with orthonormal columns. Angles between the classes and
        unequal ranks are allowed. They also set the dtype and the device of samples. They are copied;
        |U_k^T U_k - I| may reach 1e-5 in float32 and 1e-10 in float64.
    delta
        Scale of the background, a finite number >= 0; with 0 there is no background.
    variances
        v, for each class one number or d_k of them, finite and >= 0; None for 1 throughout. A direction may
        have less variance than the background.
    means
        mu, (K, n), finite; None for zero. They may point anywhere: a span does not have to hold them, and
        they do not widen it.
    priors
        pi, K positive numbers with sum 1; None for equal priors.
    background
        "span" or "complement".

    Raises
    ------
    ValueError
        If an argument is outside these ranges; the message names the value and the fix.

    Notes
    -----
    Methods take x of shape (N, n), float32 or float64, and sigma, a positive number or a 1-D array
    of S levels, which puts S in front of the result. Results have the dtype and the device of x.
    Every method is two matrix products and work on block coordinates U_l^T (x - mu_l), (N, K, r), in chunks
    of rows, and differentiable in x. Source: Proposition 1 of the paper, with priors, ranks, angles,
    variances and means. `log_prob` and `score` are computed in float64 where the device has it.
    """

    def __init__(
        self,
        bases: Sequence[Tensor],
        delta: float,
        variances: Sequence[Any] | np.ndarray | Tensor | None = None,
        means: Sequence[Any] | np.ndarray | Tensor | None = None,
        priors: Sequence[float] | np.ndarray | Tensor | None = None,
        background: str = "span",
    ) -> None:
        try:
            given = list(bases)
        except TypeError:
            raise ValueError(
                f"bases must be a sequence of 2 or more tensors (n, d_k), got {type(bases).__name__}"
            ) from None
        self.bases = tuple(_orthonormal(k, basis) for k, basis in enumerate(given))
        if len(self.bases) < 2:
            raise ValueError(f"bases must hold at least 2 classes, got {len(self.bases)}")
        if len({(len(basis), basis.dtype, basis.device) for basis in self.bases}) > 1:
            kinds = [(len(basis), str(basis.dtype), str(basis.device)) for basis in self.bases]
            raise ValueError(f"bases must share (rows, dtype, device), got {kinds}")
        self.delta = nonnegative("delta", delta)
        self.background = choice("background", background, BACKGROUNDS)
        self.variances = _variances(variances, self.ranks)
        self.means = _means(means, self.num_classes, self.dim)
        self.priors = class_priors(priors, len(self.bases))
        self._directions = torch.stack(
            [
                torch.nn.functional.pad(v, (0, max(self.ranks) - len(v)), value=self.delta**2)
                for v in self.variances
            ]
        )
        even = all(bool((v == v[0]).all()) for v in self.variances)
        self._spread = self._directions[:, :1] if even else self._directions
        self._exact = self._build_frame()
        self._frames: dict[tuple[torch.dtype, torch.device], Frame] = {}

    # --- what the mixture is ------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.bases)

    @property
    def dim(self) -> int:
        """n, the dimension of the space."""
        return len(self.bases[0])

    @property
    def ranks(self) -> tuple[int, ...]:
        """d_1 ... d_K, the ranks of the classes."""
        return tuple(basis.shape[1] for basis in self.bases)

    @property
    def support_dim(self) -> int:
        """m, the dimension of the space that x_0 - mu_k fills: rank of [U_1 ... U_K]; n for `complement`."""
        return self.dim if self.background == "complement" else self._support_dim

    @property
    def is_orthogonal(self) -> bool:
        """Whether the class subspaces are mutually orthogonal (to the rounding of the bases)."""
        return self._is_orthogonal

    def covariance(self, label: int) -> Tensor:
        """Return Sigma_k = U_k diag(v_k) U_k^T + delta^2 V_k V_k^T of class `label`, (n, n), float64, CPU.

        Statement: `prop-covariance`.
        """
        integer("label", label, 0, self.num_classes - 1)
        own = self.bases[label].to("cpu", torch.float64)
        basis = self._exact.basis
        support = torch.eye(self.dim, dtype=torch.float64) if basis is None else basis @ basis.T
        return (own * self.variances[label]) @ own.T + self.delta**2 * (support - own @ own.T)

    # --- what the mixture does ----------------------------------------------------------------------

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw n points x_0 (n, dim), on the generator's device, and their labels (n,), int64.

        `labels`, n integers from 0 to K - 1, take the place of the priors; raises ValueError for others.
        """
        integer("n", n, 1)
        like = self.bases[0]
        frame = self.frame(like.dtype, like.device)
        device = like.device if generator is None else generator.device
        if labels is None:
            pi = self.priors.to(torch.float32).to(device)
            drawn = torch.multinomial(pi, n, replacement=True, generator=generator)
        else:
            drawn = class_labels(labels, n, self.num_classes)
        drawn = drawn.to(like.device)
        spread = (self._spread.sqrt() - self.delta).to(like.dtype).to(like.device)
        means = self.means.to(like.dtype).to(like.device)
        width = self.dim if frame.basis is None else frame.basis.shape[1]
        x0 = torch.empty(n, self.dim, dtype=like.dtype, device=like.device)
        for rows in row_chunks(n, max(width, self.dim)):
            g = gaussian((rows.stop - rows.start, width), like, generator)
            own = torch.nn.functional.one_hot(drawn[rows], self.num_classes).to(like.dtype)
            # The square root of Sigma_k is U_k diag(v_k)^{1/2} U_k^T + delta (P_S - P_k).
            s = frame.combine(g, frame.project(g), own.unsqueeze(-1) * spread, keep=self.delta)
            x0[rows] = frame.lift(s) if frame.means is None else frame.lift(s) + means[drawn[rows]]
        return x0, drawn

    def log_prob(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return log p_sigma(x), the log-density of x_sigma: (N,) or (S, N).

        p_sigma = sum_k pi_k N(mu_k, Sigma_k + sigma^2 I), whose eigenvalues are v_ki + sigma^2,
        delta^2 + sigma^2 (m - d_k times) and sigma^2 (n - m), with m = `support_dim`.
        """
        levels, scalar = self._check(x, sigma)
        wide = widest(x.device)
        frame = self.frame(wide, x.device)
        common = -0.5 * (
            self.dim * math.log(2 * math.pi)
            + self.support_dim * torch.log(self.delta**2 + levels**2)
            + (self.dim - self.support_dim) * torch.log(levels**2)
        )

        def log_density(rows: slice) -> Tensor:
            points = x[rows].to(wide)
            s, products = frame.read(points)
            logits = self._logits(frame, s, products, frame.project(s), levels)
            inside = per_level(-0.5 / (self.delta**2 + levels**2), s) * s.square().sum(-1)
            value = torch.logsumexp(logits, -1) + per_level(common, s) + inside
            outside = frame.outside(points, s)
            if outside is not None:
                value = value - per_level(0.5 / levels**2, s) * outside.square().sum(-1)
            return value.to(x.dtype)

        return by_rows(x, log_density, len(levels) * self.dim, dim=1, squeeze=scalar)

    def posterior_weights(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return w_l = p(y = l | x_sigma = x): (N, K) or (S, N, K).

        With z_l = U_l^T (x - mu_l), kappa_li = (1/(delta^2 + sigma^2) - 1/(v_li + sigma^2)) / 2 and
        mu_l = p_l + q_l, where p_l = P_S mu_l lies in the span,

            w = softmax_l( log pi_l
                + sum_i ( kappa_li z_li^2 - 1/2 log((v_li + sigma^2)/(delta^2 + sigma^2)) )
                + (<x, p_l> - ||p_l||^2/2) / (delta^2 + sigma^2) + (<x, q_l> - ||q_l||^2/2) / sigma^2 ).

        x and mu_l are counted from the mean of x_0, so that its length costs no precision.

        Statement: `prop-posterior-mean`.
        """
        levels, scalar = self._check(x, sigma)
        frame = self.frame(x.dtype, x.device)

        def weights(rows: slice) -> Tensor:
            s, products = frame.read(x[rows])
            return class_weights(self._logits(frame, s, products, frame.project(s), levels))

        return by_rows(x, weights, max(self.dim, len(levels) * self.num_classes), dim=1, squeeze=scalar)

    def posterior_mean(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return the optimal denoiser E[x_0 | x_sigma = x]: (N, n) or (S, N, n).

        With weights w, z_l = U_l^T (x - mu_l), x and mu_l counted from the mean of x_0,

            xi P_S x + sum_l w_l ( U_l diag(zeta_l - xi) z_l + mu_l - xi P_S mu_l ),
            zeta_li = v_li/(v_li + sigma^2),  xi = delta^2/(delta^2 + sigma^2).

        A sweep over sigma shares U^T x. Relative error in float32 about 3e-7 for sigma in [1e-3, 20]:
        x is never subtracted. Source: Proposition 1, generalised.

        Statement: `prop-posterior-mean`, `prop-low-rank-mixture`.
        """
        levels, scalar = self._check(x, sigma)
        noise, d2 = levels**2, self.delta**2
        keep, gain = d2 / (d2 + noise), 2 * noise[:, None, None] * self._kappa(levels)
        zero, one = torch.zeros_like(levels), torch.ones_like(levels)
        inside = noise / (d2 + noise)
        value = self._apply(x, levels, keep, gain, zero, inside, one, one)
        return value.squeeze(0) if scalar else value

    def score(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return grad log p_sigma(x) = (E[x_0 | x] - x) / sigma^2: (N, n) or (S, N, n).

        Computed by its own coefficients, for zero means -x_S/(delta^2 + sigma^2) + 2 U (kappa w * U^T x)
        - (x - x_S)/sigma^2 with x_S = P_S x, which does not cancel at low noise; in float64 where the device
        has it. Source: Tweedie's formula with Proposition 1.

        Statement: `thm-tweedie`.
        """
        levels, scalar = self._check(x, sigma)
        inside, outside = 1 / (self.delta**2 + levels**2), 1 / levels**2
        gain, zero = 2 * self._kappa(levels), torch.zeros_like(levels)
        wide = widest(x.device)

        def at(rows: slice) -> Tensor:
            value = self._apply(x[rows].to(wide), levels, -inside, gain, -outside, inside, outside, zero)
            return value.to(x.dtype)

        return by_rows(x, at, len(levels) * self.dim, dim=1, squeeze=scalar)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the posterior mean (N, n) with one noise level for each point, sigma (N,), or for all.

        `posterior_mean` evaluates every point at each of S levels instead.
        """
        levels, _ = self._check(x, sigma)
        if len(levels) == 1:
            return self.posterior_mean(x, levels.item())
        if len(levels) != len(x):
            raise ValueError(
                f"sigma must be a number or one level for each of the {len(x)} points, got {len(levels)}; "
                "for all points at each of S levels call posterior_mean"
            )
        frame, d2 = self.frame(x.dtype, x.device), self.delta**2
        means = frame.means

        def cast(values: Tensor) -> Tensor:
            return values.to(x.dtype).to(x.device)

        def at(rows: slice) -> Tensor:
            s, products = frame.read(x[rows])
            z = frame.project(s)
            level = levels[rows, None]
            kappa, noise = cast(self._kappa(levels[rows])), cast(level**2)
            inside, beyond = cast(1 / (d2 + level**2)), cast(1 / level**2)
            if means is not None:
                z = z - means.blocks
            logits = (kappa * z.square()).sum(-1) + cast(self._offsets(levels[rows]))
            if means is not None:
                logits += inside * (s @ means.inside.T - 0.5 * means.inside.square().sum(1))
                if products is not None and means.outside is not None:
                    logits += beyond * (products - 0.5 * means.outside.square().sum(1))
            w = class_weights(logits)
            shifts = (2 * noise[..., None] * kappa * w[..., None] * z).flatten(-2)
            s = d2 * inside * s + (shifts if frame.back is None else shifts @ frame.back.T)
            if means is None:
                return frame.lift(s).unsqueeze(0)
            value = frame.lift(s + noise * inside * (w @ means.inside)) + means.centre
            return (value if means.outside is None else value + w @ means.outside).unsqueeze(0)

        return by_rows(x, at, max(self.dim, frame.blocks.shape[1]), dim=1, squeeze=True)

    # --- how it does it -----------------------------------------------------------------------------

    def frame(self, dtype: torch.dtype, device: torch.device) -> Frame:
        """Return the mixture's matrices in the given dtype, on the given device (kept for the next call)."""
        key = (dtype, device)
        if key not in self._frames:
            exact = self._exact

            def cast(matrix: Tensor | None) -> Tensor | None:
                return None if matrix is None else matrix.to(dtype).to(device)

            blocks = exact.blocks.to(dtype).to(device)
            basis = blocks if exact.basis is exact.blocks else cast(exact.basis)
            means = None
            if exact.means is not None:
                parts: list[Any] = [cast(getattr(exact.means, field.name)) for field in fields(Means)]
                means = Means(*parts)
            self._frames[key] = Frame(blocks, basis, cast(exact.mixing), self.num_classes, exact.fills, means)
        return self._frames[key]

    def _build_frame(self) -> Frame:
        rank = max(self.ranks)
        blocks = [basis.detach().to("cpu", torch.float64) for basis in self.bases]
        filled = torch.cat([torch.nn.functional.pad(u, (0, rank - u.shape[1])) for u in blocks], dim=1)
        stacked = torch.cat(blocks, dim=1)
        rounding = torch.finfo(self.bases[0].dtype).eps
        gram = stacked.T @ stacked
        deviation = (gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max().item()
        self._is_orthogonal = deviation <= ROUNDING[self.bases[0].dtype]
        u, values, _ = torch.linalg.svd(stacked, full_matrices=False)
        u = _fixed_basis(u[:, values > max(stacked.shape) * rounding * values[0]])
        self._support_dim = u.shape[1]
        fills = self.support_dim == self.dim
        if self._is_orthogonal and self.background == "span":
            frame = Frame(filled, filled, None, self.num_classes, fills)
        elif fills:
            frame = Frame(filled, None, None, self.num_classes, fills)
        else:
            frame = Frame(filled, u, u.T @ filled, self.num_classes, fills)
        return replace(frame, means=self._about_centre(frame)) if bool(self.means.any()) else frame

    def _about_centre(self, frame: Frame) -> Means:
        centre = self.priors @ self.means
        about = self.means - centre
        blocks = (about @ frame.blocks).unflatten(-1, (self.num_classes, -1))
        own = blocks.diagonal(dim1=0, dim2=1).T.contiguous()
        if frame.basis is None:
            return Means(centre, about, own, None, None)
        inside = about @ frame.basis
        outside = about - inside @ frame.basis.T
        if outside.abs().max() <= 16 * torch.finfo(self.bases[0].dtype).eps * about.abs().max():
            return Means(centre, inside, own, None, None)
        reading = torch.cat([frame.basis, outside.T], 1)
        reading = torch.nn.functional.pad(reading, (0, -reading.shape[1] % 8))
        return Means(centre, inside, own, outside, reading)

    def _check(self, x: Tensor, sigma: Levels) -> tuple[Tensor, bool]:
        check_points(x, self.dim)
        return noise_levels(sigma)

    def _kappa(self, levels: Tensor) -> Tensor:
        """(1/(delta^2 + sigma^2) - 1/(v_ki + sigma^2))/2, (S, K, 1) or (S, K, r), without cancellation."""
        return coefficients(levels[:, None, None], self.delta, self._spread).kappa

    def _offsets(self, levels: Tensor) -> Tensor:
        """log pi_l - 1/2 sum_i log((v_li + sigma^2)/(delta^2 + sigma^2)), (S, K)."""
        noise = levels[:, None, None] ** 2
        ratio = torch.log(self._directions + noise) - torch.log(self.delta**2 + noise)
        return torch.log(self.priors) - 0.5 * ratio.sum(-1)

    def class_logits(self, energy: Tensor, levels: Tensor) -> Tensor:
        """Return log pi_l + log N(x; 0, Sigma_l + sigma^2 I) up to what the classes share: (S, N, K).

        `energy` holds ||U_l^T x||^2, (N, K) or (S, N, K), if each class has one variance, else the squares of
        the entries of U_l^T x, (N, K, r); `levels` is (S,).
        """
        kappa = self._kappa(levels).to(energy.dtype).to(energy.device)
        offset = per_level(self._offsets(levels), energy)
        if self._spread.shape[1] == 1:
            return kappa.mT * energy + offset
        return torch.einsum("nkr,skr->snk", energy, kappa) + offset

    def _logits(self, frame: Frame, s: Tensor, products: Tensor | None, z: Tensor, levels: Tensor) -> Tensor:
        """Class logits (S, N, K) from the coordinates of x, as `frame` gives them."""
        means = frame.means
        if means is not None:  # as rows of K r numbers, which subtract faster
            z = (z.flatten(-2) - means.blocks.flatten()).unflatten(-1, z.shape[-2:])
        logits = self.class_logits(energies(z) if self._spread.shape[1] == 1 else z.square(), levels)
        if means is not None:
            evidence = torch.addmm(-0.5 * means.inside.square().sum(1), s, means.inside.T)
            logits = logits + per_level(1 / (self.delta**2 + levels**2), s)[..., None] * evidence
            if products is not None and means.outside is not None:
                evidence = products - 0.5 * means.outside.square().sum(1)
                logits = logits + per_level(1 / levels**2, s)[..., None] * evidence
        return logits

    def _apply(
        self,
        x: Tensor,
        levels: Tensor,
        keep: Tensor,
        gain: Tensor,
        outer: Tensor,
        inside: Tensor,
        beyond: Tensor,
        centre: Tensor,
    ) -> Tensor:
        """Return a sum of vectors with coefficients for each level, (S, N, n).

        With x and mu counted from the centre c of the means, it is keep x_S + outer (x - x_S) + centre c
        + sum_l w_l (U_l gain_l U_l^T (x - mu_l) + inside P_S mu_l + beyond (mu_l - P_S mu_l)).
        """
        frame = self.frame(x.dtype, x.device)
        means = frame.means
        gain = gain.to(x.dtype).to(x.device)
        needs_outside = bool(outer.any())

        def rows_at(rows: slice) -> Tensor:
            s, products = frame.read(x[rows])
            z = frame.project(s)
            outside = frame.outside(x[rows], s) if needs_outside else None
            weights = class_weights(self._logits(frame, s, products, z, levels))

            def level(i: int) -> Tensor:
                w = weights[i]
                s_i = frame.combine(s, z, w.unsqueeze(-1) * gain[i], keep[i].item())
                if means is None:
                    value = frame.lift(s_i)
                else:
                    vectors = frame.mean_vectors(means, gain[i], inside[i].item(), beyond[i].item())
                    value = frame.lift_with(s_i, w, vectors + centre[i].item() * means.centre)
                return value if outside is None else torch.add(value, outside, alpha=outer[i].item())

            if len(levels) == 1:
                return level(0).unsqueeze(0)
            return torch.stack([level(i) for i in range(len(levels))])

        size = max(len(levels) * self.dim, frame.blocks.shape[1])
        return by_rows(x, rows_at, size, dim=1, squeeze=False)


class MoLRG(LowRankMixture):
    r"""Noisy mixture of low-rank Gaussians in R^n, the paper's data model.

    Class k is drawn with probability pi_k, then

        x_0 = U_k a + delta V_k e,    a ~ N(0, I_{d_k}),    e ~ N(0, I),

    with orthonormal U_k (n, d_k). V_k is an orthonormal basis of the background, the complement of
    U_k inside span(U_1 ... U_K) (`background="span"`, NeurIPS version of the paper) or inside R^n
    (`background="complement"`, ICLR version). Noisy data are x_sigma = x_0 + sigma eps.

    It is the `LowRankMixture` with unit variances, zero means and 0 < delta < 1. With
    zeta = 1/(1 + sigma^2), xi = delta^2/(delta^2 + sigma^2) and
    kappa = (1/(delta^2 + sigma^2) - 1/(1 + sigma^2)) / 2,

        w = softmax_l( log pi_l + kappa ||U_l^T x||^2 - d_l/2 log((1 + sigma^2)/(delta^2 + sigma^2)) ),
        E[x_0 | x_sigma = x] = xi P_S x + (zeta - xi) U (w * U^T x),

    P_S the projection on the data's span. Raises `ValueError` for arguments outside their ranges.
    Source: Proposition 1.

    Statement: `def-molrg`.
    """

    def __init__(
        self,
        bases: Sequence[Tensor],
        delta: float,
        priors: Sequence[float] | np.ndarray | Tensor | None = None,
        background: str = "span",
    ) -> None:
        super().__init__(bases, fraction("delta", delta), priors=priors, background=background)

    @classmethod
    def orthogonal(
        cls,
        num_classes: int = 3,
        rank: int = 5,
        dim: int = 50,
        delta: float = 0.2,
        background: str = "span",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "MoLRG":
        """Return a mixture of `num_classes` mutually orthogonal random subspaces of one rank.

        The subspaces are Haar distributed (QR of a Gaussian matrix, signs fixed). Needs
        num_classes * rank <= dim. The bases lie on the generator's device.
        """
        num_classes, rank = integer("num_classes", num_classes, 2), integer("rank", rank, 1)
        if num_classes * rank > integer("dim", dim, 1):
            raise ValueError(
                f"orthogonal classes need num_classes * rank <= dim, got {num_classes} * {rank} > {dim}"
            )
        device = torch.device("cpu") if generator is None else generator.device
        gauss = gaussian((dim, num_classes * rank), torch.empty(0, dtype=dtype, device=device), generator)
        q, r = torch.linalg.qr(gauss.to("cpu", torch.float64))
        frame = (q * r.diagonal().sign()).to(dtype).to(device)
        return cls(frame.split(rank, dim=1), delta, background=background)

    def coefficients(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return xi = delta^2/(delta^2 + sigma^2) and zeta - xi (without cancellation) for levels (S,)."""
        _, xi, gain = coefficients(levels, self.delta)
        return xi, gain


def gaussian(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw N(0, 1) numbers on the generator's device, in the dtype and then on the device of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def energies(z: Tensor) -> Tensor:
    """Block energies ||z_l||^2 of z (N, K, r): (N, K)."""
    return torch.linalg.vector_norm(z, dim=-1).square()


def class_weights(logits: Tensor) -> Tensor:
    """Softmax over the classes, the last axis; on CPUs PyTorch is ten times slower along a short last one."""
    if logits.shape[-1] >= 16:
        return torch.softmax(logits, -1)
    return torch.softmax(logits.mT, -2).mT.contiguous()


def _fixed_basis(u: Tensor) -> Tensor:
    """Another orthonormal basis (n, m) of the span of u, which depends on the span alone.

    Where singular values are equal, rounding decides their vectors: samples would change with the number of
    threads. Here u's rotation cancels: the basis is that of a fixed Gaussian matrix projected on the span.
    """
    fixed = torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=u.dtype)
    q, r = torch.linalg.qr(u.T @ fixed)
    return u @ (q * r.diagonal().sign())


def _orthonormal(k: int, basis: Tensor) -> Tensor:
    if not isinstance(basis, Tensor) or basis.dtype not in (torch.float32, torch.float64) or basis.ndim != 2:
        kind = f"{basis.dtype} {tuple(basis.shape)}" if isinstance(basis, Tensor) else type(basis).__name__
        raise ValueError(f"bases[{k}] must be a float32 or float64 tensor of shape (n, d), got {kind}")
    if not 0 < basis.shape[1] <= basis.shape[0]:
        raise ValueError(f"bases[{k}] must have 1 to n columns, got shape {tuple(basis.shape)}")
    u = basis.detach().to("cpu", torch.float64)
    error = (u.T @ u - torch.eye(u.shape[1], dtype=u.dtype)).abs().max().item()
    if not error <= ROUNDING[basis.dtype]:
        raise ValueError(
            f"bases[{k}] must have orthonormal columns, but |U^T U - I| reaches {error:.2g}, more than "
            f"{ROUNDING[basis.dtype]:g}; orthonormalise it with torch.linalg.qr(basis).Q"
        )
    return basis.detach().clone()


def class_labels(labels: Sequence[int] | np.ndarray | Tensor, n: int, num_classes: int) -> Tensor:
    """Labels of any integer type as an int64 tensor (n,)."""
    allowed = f"labels must have shape ({n},) and values 0 ... {num_classes - 1}"
    try:
        given = labels if isinstance(labels, Tensor) else torch.as_tensor(np.array(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{allowed}, got {type(labels).__name__}: {error}") from None
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise ValueError(f"{allowed}, which are integers; got {given.dtype}")
    if given.shape != (n,):
        raise ValueError(f"{allowed}, got shape {tuple(given.shape)}")
    given = given.to(torch.int64)
    if given.min() < 0 or given.max() >= num_classes:
        raise ValueError(f"{allowed}, got values from {given.min()} to {given.max()}")
    return given


def class_priors(priors: Sequence[float] | np.ndarray | Tensor | None, num_classes: int) -> Tensor:
    """Return the priors as a float64 tensor (K,) with sum 1; raises ValueError unless they are that."""
    if priors is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    allowed = f"priors must be {num_classes} positive numbers with sum 1"
    try:
        pi = torch.as_tensor(priors, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{allowed}, got {priors!r}") from None
    if is_boolean(priors):
        raise ValueError(f"{allowed}, got {priors!r}")
    if pi.shape != (num_classes,) or not (pi > 0).all() or not abs(pi.sum().item() - 1) <= 1e-6:
        raise ValueError(f"{allowed}, got {pi.tolist()}; divide them by their sum")
    return pi / pi.sum()


def _variances(given: Sequence[Any] | np.ndarray | Tensor | None, ranks: Sequence[int]) -> tuple[Tensor, ...]:
    """Variances v_k of the directions of each class, float64 tensors (d_k,)."""
    if given is None:
        return tuple(torch.ones(d, dtype=torch.float64) for d in ranks)
    allowed = f"variances must hold, for each of the {len(ranks)} classes, one number or d_k of them"
    try:
        parts = [torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for v in given]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{allowed}, got {given!r}") from None
    if len(parts) != len(ranks):
        raise ValueError(f"{allowed}, got {len(parts)} entries")
    if any(map(is_boolean, given)):
        raise ValueError(f"{allowed}, got the booleans {given!r}")
    for k, (v, d) in enumerate(zip(parts, ranks, strict=True)):
        if v.shape not in ((), (d,)):
            raise ValueError(f"{allowed}: variances[{k}] has shape {tuple(v.shape)}, d_{k} is {d}")
        if not (torch.isfinite(v) & (v >= 0)).all():
            raise ValueError(f"variances must be finite and >= 0, got {v.tolist()} for class {k}")
    return tuple(v.expand(d).clone() for v, d in zip(parts, ranks, strict=True))


def _means(given: Sequence[Any] | np.ndarray | Tensor | None, num_classes: int, dim: int) -> Tensor:
    if given is None:
        return torch.zeros(num_classes, dim, dtype=torch.float64)
    allowed = f"means must be finite numbers of shape ({num_classes}, {dim})"
    try:
        whole = isinstance(given, Tensor | np.ndarray)
        parts = given if whole else torch.stack([torch.as_tensor(mean) for mean in given])
        means = torch.as_tensor(parts, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{allowed}, got {given!r}") from None
    if is_boolean(parts) or any(map(is_boolean, given)):
        raise ValueError(f"{allowed}, got booleans")
    if means.shape != (num_classes, dim):
        raise ValueError(f"{allowed}, got shape {tuple(means.shape)}")
    if not torch.isfinite(means).all():
        raise ValueError(f"{allowed}, got {means[~torch.isfinite(means)][0].item()}")
    return means
