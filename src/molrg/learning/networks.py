"""Networks to train as denoisers: the paper's parametric one, MLPs, and EDM preconditioning.

All take x of shape (N, n) and a noise level, a number or a tensor (N,).
The layers whose activations are worth a probe are listed in `feature_layers`, by their module names.
Networks with `takes_stacked_weights` run as M networks at once when their weights are replaced by stacked
ones, (M, ...) each, and x is (M, N, n).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from molrg.learning.predictions import skip_and_out
from molrg.model.coefficients import coefficients
from molrg.support.checks import choice, fraction, integer, is_boolean, positive, within

__all__ = [
    "MLP",
    "PREDICTIONS",
    "FeedForward",
    "Preconditioned",
    "SubspaceDenoiser",
    "column",
    "initialised_by",
    "subspace_denoise",
    "subspace_scale",
    "waves",
]


class SubspaceDenoiser(nn.Module):
    r"""The paper's parametric denoiser: the optimal one for orthogonal classes, with a learned U.

    Statement: `def-parametric`.

        D(x, sigma) = U diag(beta) U^T x,    beta_l = xi + (zeta - xi) w_l on the d columns of U_l,
        w = softmax_l(kappa ||U_l^T x||^2),  zeta = 1/(1 + sigma^2),  xi = delta^2/(delta^2 + sigma^2),
        kappa = (1/(delta^2 + sigma^2) - 1/(1 + sigma^2)) / 2.

    With U = [U_1 ... U_K] that of a MoLRG model with orthogonal classes, equal priors and `span` background
    it is the posterior mean. U starts as random orthonormal columns and is not constrained in training.

    Parameters
    ----------
    dim, num_classes, rank
        n, K and d, with K d <= n.
    delta
        Scale of the background, 0 < delta < 1; it is given, not learned.
    generator
        Source of the starting U.

    Source: Proposition 1 of the paper with U replaced by parameters.
    """

    feature_layers: tuple[str, ...] = ()

    def __init__(
        self, dim: int, num_classes: int, rank: int, delta: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.num_classes, self.rank = integer("num_classes", num_classes, 2), integer("rank", rank, 1)
        if num_classes * rank > integer("dim", dim, 1):
            raise ValueError(f"num_classes * rank <= dim is needed, got {num_classes} * {rank} > {dim}")
        self.delta = fraction("delta", delta)
        with initialised_by(generator):
            self.basis = nn.Parameter(torch.linalg.qr(torch.randn(dim, num_classes * rank)).Q)

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return D(x, sigma), (N, n)."""
        return subspace_denoise(self.basis, x, column(sigma, x), self.num_classes, self.delta)

    @torch.no_grad()
    def orthonormal_bases(self) -> tuple[Tensor, ...]:
        """Return an orthonormal basis (n, d) of the span of each learned U_l."""
        return tuple(torch.linalg.qr(block).Q for block in self.basis.split(self.rank, dim=1))


def subspace_denoise(basis: Tensor, x: Tensor, sigma: Tensor, num_classes: int, delta: float) -> Tensor:
    """Return U diag(beta) U^T x of `SubspaceDenoiser`, for U (..., n, K d), x (..., N, n), sigma (..., N, 1).

    Leading axes broadcast, which runs many such networks at once.
    """
    ranks = [basis.shape[-1] // num_classes] * num_classes
    return subspace_scale(x @ basis, sigma, ranks, delta) @ basis.mT


def subspace_scale(
    z: Tensor, sigma: Tensor, ranks: Sequence[int], delta: float, offsets: Tensor | None = None
) -> Tensor:
    """Return diag(beta) z of the parametric denoiser for z = U^T x (..., r), r = sum of the `ranks`.

    beta is that of `SubspaceDenoiser`, sigma (..., 1). `offsets` (K, ...) are added to the logits of the
    classes: with log pi_l - d_l/2 log((1 + sigma^2)/(delta^2 + sigma^2)) the weights are those of
    Proposition 1 for any priors and ranks, without them those of equal ones.
    """
    kappa, xi, gain = coefficients(sigma, delta)
    blocks = z.split(list(ranks), -1)
    logits = kappa[..., 0] * torch.stack([block.square().sum(-1) for block in blocks])
    w = torch.softmax(logits if offsets is None else logits + offsets, 0)  # fast where K is small
    beta = xi + gain * w[..., None]
    return torch.cat([scale * block for scale, block in zip(beta, blocks, strict=True)], -1)


class FeedForward(nn.Module):
    r"""Plain network: linear layers with ReLU between them; `depth` 2 is the paper's 3-layer MLP.

        h_0 = [x, cos(f c), sin(f c)],   h_i = relu(W_i h_{i-1} + b_i),   output = W h_depth + b

    with c = `noise` and frequencies f from 1/2 to 16 in equal ratios. W and b start at 0. Wrap it in
    `Preconditioned`, which passes log(sigma)/4 as `noise`.

    Parameters
    ----------
    dim
        n, the dimension of input and output.
    width, depth
        Width and number of the hidden layers, `hidden.0` to `hidden.<depth - 1>`.
    frequencies
        How many f; 0 leaves the noise level out, for a network without conditioning.
    dropout
        Probability with which hidden units are dropped in training.
    generator
        Source of the starting weights.
    """

    takes_stacked_weights = True
    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        width: int = 256,
        depth: int = 2,
        frequencies: int = 7,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        within("dropout", dropout, 0, 1)
        count = integer("frequencies", frequencies, 0)
        sizes = [integer("dim", dim, 1) + 2 * count] + [integer("width", width, 1)] * integer(
            "depth", depth, 1
        )
        self.register_buffer("frequencies", _frequencies(count), persistent=False)
        with initialised_by(generator):
            self.hidden = nn.ModuleList(
                nn.Sequential(_Linear(*pair), nn.ReLU(), nn.Dropout(dropout)) for pair in pairwise(sizes)
            )
        self.last = _Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.feature_layers = tuple(f"hidden.{i}" for i in range(depth))

    def forward(self, x: Tensor, noise: float | Tensor) -> Tensor:
        """Return the network's output, (N, n)."""
        embedded = waves(column(noise, x), self.frequencies)
        h = torch.cat([x, embedded.expand(*x.shape[:-1], -1)], -1)
        for layer in self.hidden:
            h = layer(h)
        return self.last(h)


class _Linear(nn.Linear):
    """Linear layer that also takes the weights of M networks, stacked, and x (M, N, n)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return super().forward(x)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class MLP(nn.Module):
    r"""Residual MLP whose blocks are modulated by the noise level.

        h = W_in x;   h <- h + W_2 silu(W_1 ((1 + a) * LayerNorm(h)) + b)  in each block;   W_out LayerNorm(h)

    (a, b) is linear in an embedding of `noise` and starts at 0, as does W_out: in `Preconditioned` a denoiser
    that starts at its skip connection. Parameters are those of `FeedForward`, with `depth` residual blocks,
    `blocks.0` to `blocks.<depth - 1>`, and dropout between W_1 and W_2.
    """

    def __init__(
        self,
        dim: int,
        width: int = 512,
        depth: int = 4,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        integer("dim", dim, 1)
        integer("width", width, 1)
        integer("depth", depth, 1)
        within("dropout", dropout, 0, 1)
        embedding = 64
        with initialised_by(generator):
            self.embed = _NoiseEmbedding(embedding)
            self.first = nn.Linear(dim, width)
            self.blocks = nn.ModuleList(_ResidualBlock(width, embedding, dropout) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.feature_layers = tuple(f"blocks.{i}" for i in range(depth))

    def forward(self, x: Tensor, noise: float | Tensor) -> Tensor:
        """Return the network's output, (N, n)."""
        embedded = self.embed(column(noise, x))
        h = self.first(x)
        for block in self.blocks:
            h = block(h, embedded)
        return self.last(self.norm(h))


class _NoiseEmbedding(nn.Module):
    """silu(W [cos(f c), sin(f c)]) of a number c, with frequencies f from 1/2 to 16 in equal ratios."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", _frequencies(width // 2), persistent=False)
        self.linear = nn.Linear(width, width)

    def forward(self, noise: Tensor) -> Tensor:
        return functional.silu(self.linear(waves(noise, self.frequencies)))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.first = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.modulation(embedded).chunk(2, 1)
        inner = self.first(self.norm(h) * (1 + scale)) + shift
        return h + self.second(self.dropout(functional.silu(inner)))


PREDICTIONS = ("edm", "x0", "eps", "v")
"""What the network of `Preconditioned` may predict."""


class Preconditioned(nn.Module):
    r"""A denoiser (x_0-prediction) of any network F(x, noise), by default with EDM's preconditioning.

        D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma)/4),    c_in = 1/sqrt(sigma^2 + s_d^2),

    where s_d = `sigma_data` is the standard deviation of the data's entries. What F predicts decides
    c_skip and c_out:

        edm   s_d^2 c_in^2        sigma s_d c_in              a target of variance 1 at every sigma
        x0    0                   s_d                         x_0 / s_d
        eps   1                   -sigma                      the noise
        v     1/(1 + sigma^2)     -sigma/sqrt(1 + sigma^2)    the velocity of a variance preserving model

    EDM's is the velocity of data divided by s_d, but for its sign.

    Raises ValueError unless sigma_data > 0 and `prediction` is one of PREDICTIONS.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), Table 1;
    Salimans & Ho, Progressive Distillation (2022), for v.
    """

    def __init__(self, network: nn.Module, sigma_data: float, prediction: str = "edm") -> None:
        super().__init__()
        self.network = network
        self.sigma_data = positive("sigma_data", sigma_data, "pass the data's std()")
        self.prediction = choice("prediction", prediction, PREDICTIONS)
        self.takes_stacked_weights = bool(getattr(network, "takes_stacked_weights", False))
        inner = getattr(network, "feature_layers", ())
        self.feature_layers = tuple(f"network.{name}" for name in inner)

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the denoised x, (N, n)."""
        skip, out, root, noise = self.coefficients(column(sigma, x))
        return torch.addcmul(skip * x, out, self.network(x / root, noise.squeeze(-1)))

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c_skip, c_out, 1/c_in and log(sigma)/4, each in the shape of sigma."""
        s_d = self.sigma_data
        root = (sigma**2 + s_d**2).sqrt()
        if self.prediction == "edm":
            skip, out = s_d**2 / (sigma**2 + s_d**2), sigma * s_d / root
        else:
            skip, out = skip_and_out(sigma, self.prediction)
            out = out * s_d if self.prediction == "x0" else out
        return skip, out, root, sigma.log() / 4


def waves(noise: Tensor, frequencies: Tensor) -> Tensor:
    """Return [cos(f c), sin(f c)], (..., 2 frequencies), for c of shape (..., 1)."""
    phase = noise * frequencies
    return torch.cat([phase.cos(), phase.sin()], -1)


def _frequencies(count: int) -> Tensor:
    """From 1/2 to 16 in equal ratios."""
    return torch.linspace(math.log(0.5), math.log(16.0), count).exp()


def column(level: float | Tensor, x: Tensor) -> Tensor:
    """A noise level, a number or (..., N), as a column (1, 1) or (..., N, 1) of the dtype and device of x."""
    if is_boolean(level):
        raise ValueError(f"sigma must be a number or a tensor of them, got the boolean {level!r}")
    if not isinstance(level, Tensor):
        return torch.full((1, 1), level, dtype=x.dtype, device=x.device)
    rows = x.shape[:-1]
    if level.numel() not in (1, rows.numel()):
        raise ValueError(f"sigma must be a number or have shape {tuple(rows)}, got {tuple(level.shape)}")
    return level.to(x.device, x.dtype).reshape(*(rows if level.numel() > 1 else (1,)), 1)


@contextmanager
def initialised_by(generator: torch.Generator | None) -> Iterator[None]:
    """Draw starting weights from `generator`; without one, from PyTorch's own, as PyTorch's modules do."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
