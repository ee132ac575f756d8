"""The gradients of M plain networks at once, written out.

For small networks autograd costs a fifth of a training step and more: it makes every array anew, far from the
processor's cache. Here each is made once and used in all steps, and what depends on the noise levels alone is
computed when they change.
"""

from collections.abc import Mapping
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from molrg.learning.networks import FeedForward, Preconditioned, waves

__all__ = ["Backpropagation", "applies"]

# relu's own backward step, g [h > 0], in place.
_masked = torch.ops.aten.threshold_backward.grad_input


def applies(denoiser: nn.Module) -> TypeGuard[Preconditioned]:
    """Whether `denoiser` is a plain network, preconditioned, all of which learns and none is dropped."""
    return (
        type(denoiser) is Preconditioned
        and type(denoiser.network) is FeedForward
        and all(parameter.requires_grad for parameter in denoiser.parameters())
        and not any(isinstance(module, nn.Dropout) and module.p > 0 for module in denoiser.modules())
    )


class Backpropagation:
    r"""Loss and gradients of M networks that `applies` allows, with F their `FeedForward` part.

        L_m = 1/B sum_b w_mb mean_n (D_m(x_mb, sigma_mb) - y_mb)^2,      D = c_skip x + c_out F
        g_last = dL/dF = 2/(B n) w c_out (D - y),
        dL/dW_i = g_i^T h_{i-1},   dL/db_i = sum_b g_i,   g_{i-1} = (g_i W_i) [h_{i-1} > 0]

    Parameters
    ----------
    denoiser
        One of the networks; its weights are not used.
    parameters, gradients
        The stacked weights, (M, ...) each by name, and where their gradients go.
    batch_size
        B, the samples of each network in a step.

    The products write row by row where the matrices of both are transposed in memory.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        batch_size: int,
    ) -> None:
        self._denoiser, self._network = denoiser, cast(FeedForward, denoiser.network)
        layers = [name.removesuffix(".weight") for name in parameters if name.endswith(".weight")]
        self._weights, self._biases, self._into_weights, self._into_biases = (
            [values[f"{layer}.{kind}"].detach() for layer in layers]
            for values, kind in (
                (parameters, "weight"), (parameters, "bias"), (gradients, "weight"), (gradients, "bias"),
            )
        )  # fmt: skip
        members, _, inputs = self._weights[0].shape
        new = self._weights[0].new_empty
        # h_0 to the output, and the gradients with respect to all but h_0.
        self._h = [new(members, batch_size, inputs)]
        self._h += [new(members, batch_size, weight.shape[1]) for weight in self._weights]
        self._g = [torch.empty_like(h) for h in self._h[1:]]

    @torch.no_grad()
    def at(self, sigma: Tensor, weights: Tensor) -> None:
        """Set the noise levels and the weights of the samples, (M, B) each, of the steps that follow."""
        self._skip, self._out, self._root, noise = self._denoiser.coefficients(sigma.unsqueeze(-1))
        embedded = waves(noise, self._network.frequencies)
        self._h[0][..., self._h[0].shape[-1] - embedded.shape[-1] :] = embedded
        self._sample_weights = weights
        self._into_g = self._out * weights.unsqueeze(-1) * (2 / self._h[-1][0].numel())

    @torch.no_grad()
    def __call__(self, x: Tensor, aim: Tensor) -> Tensor:
        """Set the gradients and return the losses (M,), for x and aim (M, B, n)."""
        h, g = self._h, self._g
        torch.div(x, self._root, out=h[0][..., : x.shape[-1]])
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if i > 0:
                h[i].relu_()
            torch.baddbmm(bias.unsqueeze(1), h[i], weight.mT, out=h[i + 1])

        error = torch.addcmul(self._skip * x, self._out, h[-1]).sub_(aim)
        loss = (self._sample_weights * error.square().mean(-1)).mean(-1)
        torch.mul(error, self._into_g, out=g[-1])
        for i in reversed(range(len(self._weights))):
            torch.bmm(h[i].mT, g[i], out=self._into_weights[i].mT)
            torch.sum(g[i], 1, out=self._into_biases[i])
            if i > 0:
                torch.bmm(g[i], self._weights[i], out=g[i - 1])
                _masked(g[i - 1], h[i], 0, grad_input=g[i - 1])
        return loss
