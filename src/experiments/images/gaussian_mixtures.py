"""Mixtures of Gaussians with full covariances, fitted and used as denoisers of a sweep over noise levels.

`molrg.model.mixture` holds mixtures of low rank. Here one decomposition a component serves all levels, as a
sweep over points in hundreds of dimensions needs it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["GaussianMixture", "fitted"]


class GaussianMixture:
    """Gaussians N(mu_k, S_k) with probabilities pi_k in R^n, k < K; all in float64.

    Parameters
    ----------
    means, covariances, priors
        (K, n), (K, n, n) and (K,). Negative eigenvalues, which are rounding, count as 0.
    """

    def __init__(self, means: Tensor, covariances: Tensor, priors: Tensor) -> None:
        self.means, self.priors = means.double(), priors.double()
        values, self.vectors = torch.linalg.eigh(covariances.double())
        self.values = values.clamp(min=0)

    def denoised(
        self, x0: Tensor, eps: Tensor | None, levels: Sequence[float]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        r"""Yield p(k | x), (N, K), and E[x_0 | x], (N, n), at each level sigma > 0.

        x is x_0 + sigma eps, or, with eps None, x_0 itself, taken for an image with noise sigma. With
        z = Q_k^T (x - mu_k) in the eigenbasis Q_k of S_k, of values v,

            p(k | x) ~ pi_k prod_i (v_i + sigma^2)^{-1/2} exp(-z_i^2 / (2 (v_i + sigma^2))),
            E[x_0 | x] = sum_k p(k | x) (mu_k + Q_k diag(v_i / (v_i + sigma^2)) z).
        """
        still = (x0.double() - self.means[:, None]) @ self.vectors
        moving = None if eps is None else eps.double() @ self.vectors
        for sigma in levels:
            z = still if moving is None else still + sigma * moving
            total = (self.values + sigma**2)[:, None]
            weights = self._posterior(z, total)
            kept = z * (self.values[:, None] / total) * weights[..., None]
            value = weights.T @ self.means
            for part, vectors in zip(kept, self.vectors, strict=True):
                value.addmm_(part, vectors.T)
            yield weights.T, value

    def posterior(self, x: Tensor) -> Tensor:
        """Return p(k | x), (N, K), of points x (N, n) without noise; needs variances > 0."""
        return self._posterior((x.double() - self.means[:, None]) @ self.vectors, self.values[:, None]).T

    def _posterior(self, z: Tensor, total: Tensor) -> Tensor:
        logits = self.priors.log()[:, None] - 0.5 * (total.log() + z.square() / total).sum(-1)
        return logits.softmax(0)


def fitted(
    x: Tensor, components: int, steps: int, floor: float, generator: torch.Generator
) -> GaussianMixture:
    """Return the mixture that `steps` steps of expectation maximisation fit to x (N, n).

    They start from means at random points and the covariance of all. `floor` is added to all variances, so
    that no component shrinks to a point.
    """
    x = x.double()
    means = x[torch.randperm(len(x), generator=generator)[:components]]
    covariances = torch.cov(x.T).expand(components, -1, -1)
    priors = torch.full((components,), 1 / components, dtype=torch.float64)
    least = floor * torch.eye(x.shape[1], dtype=torch.float64)
    for _ in range(steps):
        weights = GaussianMixture(means, covariances, priors).posterior(x)
        counts = weights.sum(0)
        means, priors = weights.T @ x / counts[:, None], counts / len(x)
        covariances = torch.stack(
            [
                (z * w[:, None]).T @ z / w.sum() + least
                for z, w in zip(x - means[:, None], weights.T, strict=True)
            ]
        )
    return GaussianMixture(means, covariances, priors)
