"""Noisy mixtures of low-rank Gaussians (MoLRG), whose denoiser is known in closed form."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molrg.arguments import Levels, choice, fraction, integer, noise_levels

BACKGROUNDS = ("span", "complement")
CHUNK = 1 << 20
"""Numbers of workspace per array and chunk of rows: 4 MiB in float32, about a core's cache."""
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest entry of U^T U - I that is taken for rounding: QR of thousands of rows leaves a tenth or less."""


@dataclass(frozen=True)
class Frame:
    """The mixture's matrices in one dtype, on one device.

    `blocks` is U = [U_1 ... U_K], (n, K r), each basis filled up with zero columns to the largest rank r.
    `basis` is B, (n, m): orthonormal columns whose span holds the data; None if that is all of R^n.
    `mixing` is R = B^T U, (m, K r); None if B = U, that is, if the classes are orthogonal.
    """

    blocks: Tensor
    basis: Tensor | None
    mixing: Tensor | None
    num_classes: int

    def coordinates(self, x: Tensor) -> Tensor:
        """s = B^T x, (N, m): all that the denoiser uses of x."""
        return x if self.basis is None else x @ self.basis

    def project(self, s: Tensor) -> Tensor:
        """z = U^T x from s = B^T x, (N, K, r)."""
        if self.basis is None:
            z = s @ self.blocks
        else:
            z = s if self.mixing is None else s @ self.mixing
        return z.unflatten(-1, (self.num_classes, -1))

    def outside(self, x: Tensor, s: Tensor) -> Tensor | None:
        """What x holds outside the span, x - B s; subtracted as vectors, since norms would cancel."""
        return None if self.basis is None else x - s @ self.basis.T

    def combine(self, s: Tensor, z: Tensor, weights: Tensor, keep: float, gain: float) -> Tensor:
        """Coordinates of keep * P_S x + gain * sum_l weights_l P_l x, (N, m)."""
        if self.mixing is None and self.basis is not None:
            return ((keep + gain * weights).unsqueeze(-1) * z).flatten(-2)
        own = (weights.unsqueeze(-1) * z).flatten(-2)
        back = self.blocks if self.basis is None else self.mixing
        assert back is not None
        return torch.addmm(s, own, back.T, beta=keep, alpha=gain)

    def lift(self, s: Tensor) -> Tensor:
        """B s: from coordinates back to R^n."""
        return s if self.basis is None else s @ self.basis.T


class MoLRG:
    r"""Noisy mixture of low-rank Gaussians in R^n.

    Class k is drawn with probability pi_k, then

        x_0 = U_k a + delta V_k e,    a ~ N(0, I_{d_k}),    e ~ N(0, I),

    with orthonormal U_k (n, d_k). V_k is an orthonormal basis of the background, the complement of
    U_k inside span(U_1 ... U_K) (`background="span"`, NeurIPS version of the paper) or inside R^n
    (`background="complement"`, ICLR version). Noisy data are x_sigma = x_0 + sigma eps.

    Parameters
    ----------
    bases
        K >= 2 tensors U_k of shape (n, d_k) with orthonormal columns. Angles between the classes and
        unequal ranks are allowed. They also set the dtype and the device of samples. They are copied;
        |U_k^T U_k - I| may reach 1e-5 in float32 and 1e-10 in float64.
    delta
        Scale of the background, 0 < delta < 1.
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
    Every method is two matrix products and work on (N, K) block energies ||U_l^T x||^2, in chunks of
    rows, and differentiable in x. Source: Proposition 1 of the paper, with priors, ranks and angles kept.
    """

    def __init__(
        self,
        bases: Sequence[Tensor],
        delta: float,
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
        self.delta = fraction("delta", delta)
        self.background = choice("background", background, BACKGROUNDS)
        self.priors = _priors(priors, len(self.bases))
        self._exact = self._build_frame()
        self._frames: dict[tuple[torch.dtype, torch.device], Frame] = {}

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
        """m, the dimension of the space that x_0 fills: rank of [U_1 ... U_K], or n for `complement`."""
        return self.dim if self.background == "complement" else self._support_dim

    @property
    def is_orthogonal(self) -> bool:
        """Whether the class subspaces are mutually orthogonal (to the rounding of the bases)."""
        return self._is_orthogonal

    def covariance(self, label: int) -> Tensor:
        """Return Sigma_k = U_k U_k^T + delta^2 V_k V_k^T of class `label`, (n, n) in float64 on the CPU."""
        integer("label", label, 0, self.num_classes - 1)
        own = self.bases[label].to("cpu", torch.float64)
        own = own @ own.T
        basis = self._exact.basis
        support = torch.eye(self.dim, dtype=torch.float64) if basis is None else basis @ basis.T
        return own + self.delta**2 * (support - own)

    # --- what the mixture does ----------------------------------------------------------------------

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw n points: x_0 of shape (n, dim) and their labels (n,), int64.

        With `labels` given, n integers from 0 to K - 1, draws from those classes instead of from the
        priors; raises ValueError for others. Numbers are drawn on the generator's device and moved to
        that of the bases.
        """
        integer("n", n, 1)
        like = self.bases[0]
        frame = self.frame(like.dtype, like.device)
        device = like.device if generator is None else generator.device
        if labels is None:
            pi = self.priors.to(torch.float32).to(device)
            drawn = torch.multinomial(pi, n, replacement=True, generator=generator)
        else:
            drawn = _labels(labels, n, self.num_classes)
        drawn = drawn.to(like.device)
        width = self.dim if frame.basis is None else frame.basis.shape[1]
        x0 = torch.empty(n, self.dim, dtype=like.dtype, device=like.device)
        for rows in row_chunks(n, max(width, self.dim)):
            g = gaussian((rows.stop - rows.start, width), like, generator)
            own = torch.nn.functional.one_hot(drawn[rows], self.num_classes).to(like.dtype)
            # The square root of Sigma_k is P_k + delta (P_S - P_k), and P_S x_0 = x_0.
            s = frame.combine(g, frame.project(g), own, keep=self.delta, gain=1 - self.delta)
            x0[rows] = frame.lift(s)
        return x0, drawn

    def log_prob(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return log p_sigma(x), the log-density of x_sigma: (N,) or (S, N).

        p_sigma = sum_k pi_k N(0, Sigma_k + sigma^2 I), whose eigenvalues are 1 + sigma^2 (d_k times),
        delta^2 + sigma^2 (m - d_k) and sigma^2 (n - m), with m = `support_dim`.
        """
        levels, scalar = self._check(x, sigma)
        frame = self.frame(x.dtype, x.device)
        common = -0.5 * (
            self.dim * math.log(2 * math.pi)
            + self.support_dim * torch.log(self.delta**2 + levels**2)
            + (self.dim - self.support_dim) * torch.log(levels**2)
        )

        def log_density(rows: slice) -> Tensor:
            s = frame.coordinates(x[rows])
            outside = frame.outside(x[rows], s)
            logits = self.class_logits(energies(frame.project(s)), levels)
            inside = _like(-0.5 / (self.delta**2 + levels**2), s) * s.square().sum(-1)
            value = torch.logsumexp(logits, -1) + _like(common, s) + inside
            if outside is None:
                return value
            return value - _like(0.5 / levels**2, s) * outside.square().sum(-1)

        return _by_rows(x, log_density, len(levels) * self.dim, dim=1, squeeze=scalar)

    def posterior_weights(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return w_l = p(y = l | x_sigma = x): (N, K) or (S, N, K).

        w = softmax_l( log pi_l + kappa ||U_l^T x||^2 - d_l/2 log((1 + sigma^2)/(delta^2 + sigma^2)) ),
        kappa = (1/(delta^2 + sigma^2) - 1/(1 + sigma^2)) / 2.
        """
        levels, scalar = self._check(x, sigma)
        frame = self.frame(x.dtype, x.device)

        def weights(rows: slice) -> Tensor:
            blocks = frame.project(frame.coordinates(x[rows]))
            return torch.softmax(self.class_logits(energies(blocks), levels), -1)

        return _by_rows(x, weights, max(self.dim, len(levels) * self.num_classes), dim=1, squeeze=scalar)

    def posterior_mean(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return the optimal denoiser E[x_0 | x_sigma = x]: (N, n) or (S, N, n).

        sum_l w_l (zeta U_l U_l^T + xi V_l V_l^T) x = xi P_S x + (zeta - xi) U (w * U^T x), with
        zeta = 1/(1 + sigma^2), xi = delta^2/(delta^2 + sigma^2), P_S the projection on the data's span.
        A sweep over sigma shares U^T x. Relative error in float32 about 3e-7 for sigma in [1e-3, 20]:
        x is never subtracted. Source: Proposition 1.
        """
        levels, scalar = self._check(x, sigma)
        keep, gain = self.coefficients(levels)
        return self._apply(x, levels, keep, gain, torch.zeros_like(levels), scalar)

    def score(self, x: Tensor, sigma: Levels) -> Tensor:
        r"""Return grad log p_sigma(x) = (E[x_0 | x] - x) / sigma^2: (N, n) or (S, N, n).

        Computed as -x_S/(delta^2 + sigma^2) + 2 kappa U (w * U^T x) - (x - x_S)/sigma^2, x_S = P_S x,
        which does not cancel at low noise. Source: Tweedie's formula with Proposition 1.
        """
        levels, scalar = self._check(x, sigma)
        keep = -1 / (self.delta**2 + levels**2)
        return self._apply(x, levels, keep, 2 * self._kappa(levels), -1 / levels**2, scalar)

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
            self._frames[key] = Frame(blocks, basis, cast(exact.mixing), self.num_classes)
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
        u = u[:, values > max(stacked.shape) * rounding * values[0]]
        self._support_dim = u.shape[1]
        if self._is_orthogonal and self.background == "span":
            return Frame(filled, filled, None, self.num_classes)
        if self.support_dim == self.dim:
            return Frame(filled, None, None, self.num_classes)
        return Frame(filled, u, u.T @ filled, self.num_classes)

    def _check(self, x: Tensor, sigma: Levels) -> tuple[Tensor, bool]:
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"x must be a float32 or float64 tensor, got {kind}; convert it with torch.as_tensor"
            )
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (N, {self.dim}), got {tuple(x.shape)}")
        return noise_levels(sigma)

    def _kappa(self, levels: Tensor) -> Tensor:
        variance = self.delta**2 + levels**2
        return 0.5 * (1 - self.delta**2) / ((1 + levels**2) * variance)

    def coefficients(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return xi = delta^2/(delta^2 + sigma^2) and zeta - xi (without cancellation) for levels (S,)."""
        return self.delta**2 / (self.delta**2 + levels**2), 2 * levels**2 * self._kappa(levels)

    def class_logits(self, energy: Tensor, levels: Tensor) -> Tensor:
        """Return log pi_l + log N(x; 0, Sigma_l + sigma^2 I) up to what the classes share: (S, N, K).

        `energy` holds ||U_l^T x||^2, (N, K) or (S, N, K); `levels` is (S,).
        """
        ratio = torch.log1p(levels**2) - torch.log(self.delta**2 + levels**2)
        ranks = torch.tensor(self.ranks, dtype=torch.float64)
        offset = torch.log(self.priors) - 0.5 * ranks * ratio[:, None]
        return _like(self._kappa(levels), energy)[..., None] * energy + _like(offset, energy)

    def _apply(
        self, x: Tensor, levels: Tensor, keep: Tensor, gain: Tensor, outer: Tensor, scalar: bool
    ) -> Tensor:
        """keep P_S x + gain sum_l w_l P_l x + outer (x - P_S x), for each level."""
        frame = self.frame(x.dtype, x.device)
        needs_outside = bool(outer.any())

        def rows_at(rows: slice) -> Tensor:
            s = frame.coordinates(x[rows])
            z = frame.project(s)
            outside = frame.outside(x[rows], s) if needs_outside else None
            weights = torch.softmax(self.class_logits(energies(z), levels), -1)

            def level(i: int) -> Tensor:
                value = frame.lift(frame.combine(s, z, weights[i], keep[i].item(), gain[i].item()))
                return value if outside is None else torch.add(value, outside, alpha=outer[i].item())

            if len(levels) == 1:
                return level(0).unsqueeze(0)
            return torch.stack([level(i) for i in range(len(levels))])

        size = max(len(levels) * self.dim, frame.blocks.shape[1])
        return _by_rows(x, rows_at, size, dim=1, squeeze=scalar)


def gaussian(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw N(0, 1) numbers on the generator's device, in the dtype and then on the device of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def energies(z: Tensor) -> Tensor:
    """Block energies ||z_l||^2 of z (N, K, r): (N, K)."""
    return torch.linalg.vector_norm(z, dim=-1).square()


def row_chunks(rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices of consecutive rows, each with at most CHUNK numbers of workspace (but 256 rows at least)."""
    step = max(256, CHUNK // max(1, numbers_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _by_rows(x: Tensor, function: Callable[[slice], Tensor], size: int, dim: int, squeeze: bool) -> Tensor:
    """Evaluate `function` on chunks of the rows of x and join the results along `dim`."""
    chunks = list(row_chunks(len(x), size)) or [slice(0, 0)]
    first = function(chunks[0])
    if len(chunks) == 1:
        return first.squeeze(0) if squeeze else first
    shape = list(first.shape)
    shape[dim] = len(x)
    result = first.new_empty(shape)
    result[:, chunks[0]] = first
    del first
    for rows in chunks[1:]:
        result[:, rows] = function(rows)
    return result.squeeze(0) if squeeze else result


def _like(values: Tensor, x: Tensor) -> Tensor:
    """Coefficients per level, (S,) or (S, K), as (S, 1) or (S, 1, K) in the dtype and on the device of x."""
    return values.unsqueeze(1).to(x.dtype).to(x.device)


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


def _labels(labels: Sequence[int] | np.ndarray | Tensor, n: int, num_classes: int) -> Tensor:
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


def _priors(priors: Sequence[float] | np.ndarray | Tensor | None, num_classes: int) -> Tensor:
    if priors is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    try:
        pi = torch.as_tensor(priors, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"priors must be {num_classes} positive numbers with sum 1, got {priors!r}"
        ) from None
    if pi.shape != (num_classes,) or not (pi > 0).all() or not abs(pi.sum().item() - 1) <= 1e-6:
        raise ValueError(
            f"priors must be {num_classes} positive numbers with sum 1, got {pi.tolist()}; "
            "divide them by their sum"
        )
    return pi / pi.sum()
