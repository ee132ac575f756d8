"""The gradients of M plain networks at once, written out.

For small networks autograd costs a fifth of a training step and more: it makes every array anew, far from the
processor's cache. Here each is made once and used in all steps.
"""

from collections.abc import Mapping
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from molrg.networks import FeedForward, Preconditioned


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
        members = len(self._weights[0])
        self._outputs, self._backward = (
            [weight.new_empty(members, batch_size, weight.shape[1]) for weight in self._weights]
            for _ in range(2)
        )

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, aim: Tensor, weights: Tensor) -> Tensor:
        """Set the gradients and return the losses (M,), for x, aim (M, B, n) and sigma, weights (M, B)."""
        skip, out, inputs = self._denoiser.parts(x, sigma)
        h = [self._network.inputs(*inputs), *self._outputs]
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if i > 0:
                h[i].relu_()
            torch.baddbmm(bias.unsqueeze(1), h[i], weight.mT, out=h[i + 1])

        error = torch.addcmul(skip, out, h[-1]).sub_(aim)
        loss = (weights * error.square().mean(-1)).mean(-1)
        torch.mul(error, out * weights[..., None] * (2 / error[0].numel()), out=self._backward[-1])
        for i in reversed(range(len(self._weights))):
            g = self._backward[i]
            torch.bmm(h[i].mT, g, out=self._into_weights[i].mT)
            torch.sum(g, 1, out=self._into_biases[i])
            if i > 0:
                torch.bmm(g, self._weights[i], out=self._backward[i - 1]).mul_(h[i].sign_())
        return loss
