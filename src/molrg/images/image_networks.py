"""Networks of diffusers for images: a UNet and a diffusion transformer (DiT).

They take images flattened to (N, C * H * W) and the `noise` that `networks.Preconditioned` passes; sides that
the network cannot divide are padded by repeating the border, and cropped.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from molrg.learning.networks import column, initialised_by
from molrg.support.checks import integer

__all__ = ["DiT", "UNet", "dit", "small_unet", "unet"]


class _ImageNetwork(nn.Module):
    """A model of diffusers for images of `shape` (C, H, W), run on images of `padded` (height, width)."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], padded: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.shape = shape
        self._padding = tuple(large - side for large, side in zip(padded, shape[1:], strict=True))

    def forward(self, x: Tensor, noise: float | Tensor) -> Tensor:
        """Return the network's output, (N, C * H * W)."""
        if x.ndim != 2 or x.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"x must have shape (N, {math.prod(self.shape)}) for images of shape {self.shape}, "
                f"got {tuple(x.shape)}"
            )
        _, height, width = self.shape
        images = x.unflatten(1, self.shape)
        below, right = self._padding
        if below or right:
            images = functional.pad(images, (0, right, 0, below), mode="replicate")
        # The model's sinusoids are made for time steps of this size, not for log(sigma)/4.
        steps = (100 * column(noise, x)).flatten().expand(len(x))
        return self._run(images, steps)[:, :, :height, :width].flatten(1)

    def _run(self, images: Tensor, steps: Tensor) -> Tensor:
        raise NotImplementedError


class UNet(_ImageNetwork):
    """A diffusers UNet2DModel on flattened images; made by `unet`."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], padded: tuple[int, int]) -> None:
        super().__init__(model, shape, padded)
        blocks = [
            name
            for name, _ in model.named_modules()
            if name == "mid_block" or (name.count(".") == 1 and name.startswith(("down_blocks", "up_blocks")))
        ]
        order = ("down_blocks", "mid_block", "up_blocks")
        self.feature_layers = tuple(
            f"model.{name}" for name in sorted(blocks, key=lambda name: order.index(name.split(".")[0]))
        )

    def _run(self, images: Tensor, steps: Tensor) -> Tensor:
        output: Tensor = self.model(images, steps, return_dict=False)[0]
        return output


class DiT(_ImageNetwork):
    """A diffusers DiTTransformer2DModel on flattened images, told no class; made by `dit`."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], padded: tuple[int, int]) -> None:
        super().__init__(model, shape, padded)
        blocks: Any = model.transformer_blocks
        self.feature_layers = tuple(f"model.transformer_blocks.{i}" for i in range(len(blocks)))

    def _run(self, images: Tensor, steps: Tensor) -> Tensor:
        label = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        output: Tensor = self.model(images, steps, class_labels=label, return_dict=False)[0]
        return output


def unet(
    shape: tuple[int, int, int],
    width: int = 64,
    multipliers: Sequence[int] = (1, 2, 2),
    layers_per_block: int = 2,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> UNet:
    """Return a UNet of diffusers for images of `shape` (C, H, W), any H and W.

    Level i has width * multipliers[i] channels at 1/2^i of the resolution; the lowest level and the middle
    have attention. Its feature layers are `model.down_blocks.<i>`, `model.mid_block`, `model.up_blocks.<i>`.
    Wrap it in `Preconditioned`. Width 128 with multipliers (1, 2, 2, 2) has the 36 M weights of the UNet of
    DDPM on CIFAR-10.

    Raises ValueError for a shape or sizes below 1, or a width that is not a multiple of 8 (norm groups).
    """
    _check_shape(shape)
    if integer("width", width, 8) % 8:
        raise ValueError(f"width must be a multiple of 8, got {width}")
    if not multipliers:
        raise ValueError("multipliers must hold at least one number, for example (1, 2, 2)")
    from diffusers import UNet2DModel

    levels = len(multipliers)
    with initialised_by(generator):
        model: Any = UNet2DModel(
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(width * integer("multipliers", m, 1) for m in multipliers),
            layers_per_block=integer("layers_per_block", layers_per_block, 1),
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            norm_num_groups=8,
            dropout=dropout,
        )
    divisor = 2 ** (levels - 1)
    return UNet(model, shape, (_up_to(shape[1], divisor), _up_to(shape[2], divisor)))


def small_unet(
    shape: tuple[int, int, int],
    channels: Sequence[int] = (32, 64, 96),
    generator: torch.Generator | None = None,
) -> UNet:
    """Return a UNet of diffusers that a processor core trains, for images of `shape` (C, H, W), any H and W.

    Level i has channels[i] channels at 1/2^i of the resolution, one residual block in the encoder and two in
    the decoder; the middle alone has attention, in heads of 16; the noise level scales and shifts the
    normalised activations. Its feature layers are `model.down_blocks.<i>`, `model.mid_block`,
    `model.up_blocks.<i>`. Wrap it in `Preconditioned`. The default has 1.8 M weights.

    Raises ValueError for a shape below 1 or for channels that are no multiples of 16.
    """
    _check_shape(shape)
    if not channels or any(integer("channels", each, 16) % 16 for each in channels):
        raise ValueError(f"channels must be multiples of 16, at least one, got {tuple(channels)}")
    from diffusers import UNet2DModel

    levels = len(channels)
    with initialised_by(generator):
        model: Any = UNet2DModel(
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=8,
            attention_head_dim=16,
            resnet_time_scale_shift="scale_shift",
        )
    divisor = 2 ** (levels - 1)
    return UNet(model, shape, (_up_to(shape[1], divisor), _up_to(shape[2], divisor)))


def dit(
    shape: tuple[int, int, int],
    width: int = 384,
    depth: int = 12,
    patch: int = 2,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> DiT:
    """Return a diffusion transformer of diffusers for images of `shape` (C, H, W), any H and W.

    `depth` blocks of `width` channels, in heads of 32 (64 from width 384 on), on patches of patch x patch
    pixels. Its feature layers are `model.transformer_blocks.<i>`. Every block starts as the identity and the
    output at 0. Wrap it in `Preconditioned`. DiT-S has width 384 and depth 12, DiT-B 768 and 12.

    Raises ValueError for a shape or sizes below 1, or a width that the heads do not divide.

    Source: Peebles & Xie, Scalable Diffusion Models with Transformers (2023).
    """
    _check_shape(shape)
    head = 64 if integer("width", width, 32) >= 384 else 32
    if width % head:
        raise ValueError(f"width must be a multiple of {head}, the size of a head, got {width}")
    from diffusers import DiTTransformer2DModel

    side = _up_to(max(shape[1:]), integer("patch", patch, 1))  # the model takes square images
    with initialised_by(generator):
        model: Any = DiTTransformer2DModel(
            num_attention_heads=width // head,
            attention_head_dim=head,
            in_channels=shape[0],
            out_channels=shape[0],
            num_layers=integer("depth", depth, 1),
            dropout=dropout,
            sample_size=side,
            patch_size=patch,
            num_embeds_ada_norm=1,
        )
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # there is one label, and it is never left out
    nn.init.zeros_(model.proj_out_2.weight)
    nn.init.zeros_(model.proj_out_2.bias)
    return DiT(model, shape, (side, side))


def _check_shape(shape: tuple[int, int, int]) -> None:
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}")
    for name, size in zip(("channels", "height", "width of the image"), shape, strict=True):
        integer(name, size, 1)


def _up_to(side: int, divisor: int) -> int:
    """The least multiple of `divisor` that is not below `side`."""
    return side + -side % divisor
