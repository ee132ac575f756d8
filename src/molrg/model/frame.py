"""A mixture's matrices, and the products with them that all its methods share."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Frame", "Means"]


@dataclass(frozen=True)
class Means:
    """The class means mu_k about their centre c = sum_k pi_k mu_k, in one dtype, on one device.

    `inside` is B^T (mu_k - c), (K, m); `blocks` is U_k^T (mu_k - c), (K, r); `outside` is what mu_k - c has
    outside the span, (K, n), or None if nothing. `reading` is [B, outside^T, 0], with as many zero columns as
    make their number a multiple of 8, since BLAS is slow for others; None without `outside`.
    """

    centre: Tensor
    inside: Tensor
    blocks: Tensor
    outside: Tensor | None
    reading: Tensor | None


@dataclass(frozen=True)
class Frame:
    """The mixture's matrices in one dtype, on one device.

    `blocks` is U = [U_1 ... U_K], (n, K r), each basis filled up with zero columns to the largest rank r.
    `basis` is B, (n, m): orthonormal columns whose span holds x_0 - mu_k; None if that is all of R^n.
    `mixing` is R = B^T U, (m, K r); None if B = U, that is, if the classes are orthogonal.
    `fills` tells whether the span is all of R^n. `means` is None if all class means are zero.
    """

    blocks: Tensor
    basis: Tensor | None
    mixing: Tensor | None
    num_classes: int
    fills: bool
    means: Means | None = None

    @property
    def back(self) -> Tensor | None:
        """B^T U, or None if it is the identity."""
        return self.blocks if self.basis is None else self.mixing

    def coordinates(self, x: Tensor) -> Tensor:
        """s = B^T (x - c), (N, m): all that the denoiser uses of x, but for means outside the span."""
        return self.read(x)[0]

    def read(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """s, and the products (N, K) of x - c with the means' parts outside the span, if there are any."""
        if self.means is None:
            return (x if self.basis is None else x @ self.basis), None
        centre, reading = self.means.centre, self.means.reading
        if self.basis is None:
            return x - centre, None
        if reading is None:
            return torch.addmm(-(centre @ self.basis), x, self.basis), None
        m = self.basis.shape[1]
        s, beyond, _ = torch.addmm(-(centre @ reading), x, reading).tensor_split((m, m + self.num_classes), 1)
        return s, beyond

    def project(self, s: Tensor) -> Tensor:
        """z_k = U_k^T (x - c) from s = B^T (x - c), (N, K, r)."""
        z = s if self.back is None else s @ self.back
        return z.unflatten(-1, (self.num_classes, -1))

    def outside(self, x: Tensor, s: Tensor) -> Tensor | None:
        """What x - c has outside the span; subtracted as vectors, since norms would cancel.

        None where the span is all of R^n: what subtraction leaves there is rounding.
        """
        if self.basis is None or self.fills:
            return None
        beyond = x - s @ self.basis.T
        return beyond if self.means is None else beyond - self.means.centre

    def combine(self, s: Tensor, z: Tensor, weights: Tensor, keep: float) -> Tensor:
        """Coordinates of keep * x_S + sum_l U_l (weights_l * z_l), (N, m); weights (N, K, 1) or (N, K, r).

        Statement: `eq-two-products`.
        """
        if self.back is None:  # then s = z
            return ((keep + weights) * z).flatten(-2)
        return torch.addmm(s, (weights * z).flatten(-2), self.back.T, beta=keep)

    def lift(self, s: Tensor) -> Tensor:
        """B s: from coordinates back to R^n."""
        return s if self.basis is None else s @ self.basis.T

    def lift_with(self, s: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """B s + sum_l weights_l vectors_l; `weights` (N, K), `vectors` (K, n)."""
        if self.basis is None:
            return torch.addmm(s, weights, vectors)
        return torch.cat([s, weights], -1) @ torch.cat([self.basis.T, vectors])

    def mean_vectors(self, means: Means, gain: Tensor, inside: float, outside: float) -> Tensor:
        """inside * P_S mu_l + outside * (mu_l - P_S mu_l) - U_l (gain_l * U_l^T mu_l), mu from c, (K, n).

        `gain` is (K, 1) or (K, r).
        """
        own = gain * means.blocks
        if self.back is None:
            coordinates = inside * means.inside - torch.block_diag(*own)
        else:
            back = self.back.unflatten(-1, (self.num_classes, -1))
            coordinates = inside * means.inside - torch.einsum("mkr,kr->km", back, own)
        vectors = self.lift(coordinates)
        return vectors if means.outside is None else vectors + outside * means.outside
