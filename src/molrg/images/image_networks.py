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

from molrg.images.network_layers import blocks
from molrg.learning.networks import column, initialised_by
from molrg.support.checks import integer

__all__ = ["ImageNetwork", "check_flat", "dit", "run", "small_unet", "unet"]


class ImageNetwork(nn.Module):
    """A UNet2DModel or DiTTransformer2DModel of diffusers on flattened images of `shape` (C, H, W).

    The model runs on images of `padded` (height, width), and a DiT with class 0, the only one it has.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], padded: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.shape = shape
        self.feature_layers = tuple(f"model.{name}" for name in blocks(model))
        self._padding = tuple(large - side for large, side in zip(padded, shape[1:], strict=True))

    def forward(self, x: Tensor, noise: float | Tensor) -> Tensor:
        """Return the network's output, (N, C * H * W)."""
        check_flat(x, self.shape)
        _, height, width = self.shape
        images = x.unflatten(1, self.shape)
        below, right = self._padding
        if below or right:
            images = functional.pad(images, (0, right, 0, below), mode="replicate")
        # The model's sinusoids are made for time steps of this size, not for log(sigma)/4.
        steps = (100 * column(noise, x)).flatten().expand(len(x))
        return run(self.model, images, steps, 0)[:, :, :height, :width].flatten(1)


def check_flat(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless x is (N, C * H * W) for images of `shape` (C, H, W)."""
    if x.ndim != 2 or x.shape[1] != math.prod(shape):
        raise ValueError(
            f"x must have shape (N, {math.prod(shape)}) for images of shape {shape}, got {tuple(x.shape)}"
        )


def run(model: nn.Module, images: Tensor, steps: Tensor, label: int) -> Tensor:
    """Return the output (N, ...) of a model of diffusers at time steps (N,); a DiT is given class `label`."""
    options = {}
    if hasattr(model, "transformer_blocks"):
        options["class_labels"] = torch.full((len(images),), label, device=images.device)
    output: Tensor = model(images, steps, return_dict=False, **options)[0]
    return output


def unet(
    shape: tuple[int, int, int],
    width: int = 64,
    multipliers: Sequence[int] = (1, 2, 2),
    layers_per_block: int = 2,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> ImageNetwork:
    """Return a UNet of diffusers for images of `shape` (C, H, W), any H and W.

    Level i has width * multipliers[i] channels at 1/2^i of the resolution; the lowest level and the middle
    have attention. Its feature layers are `model.down_blocks.<i>`, `model.mid_block`, `model.up_blocks.<i>`.
    Wrap it in `Preconditioned`. Width 128 with multipliers (1, 2, 2, 2) has the 36 M weights of the UNet of
    DDPM on CIFAR-10.

    Raises ValueError for a shape or sizes below 1, or a width that is not a multiple of 8 (norm groups).
    """
    if integer("width", width, 8) % 8:
        raise ValueError(f"width must be a multiple of 8, got {width}")
    if not multipliers:
        raise ValueError("multipliers must hold at least one number, for example (1, 2, 2)")
    levels = len(multipliers)
    return _unet(
        shape,
        [width * integer("multipliers", m, 1) for m in multipliers],
        generator,
        layers_per_block=integer("layers_per_block", layers_per_block, 1),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        dropout=dropout,
    )


def small_unet(
    shape: tuple[int, int, int],
    channels: Sequence[int] = (32, 64, 96),
    generator: torch.Generator | None = None,
) -> ImageNetwork:
    """Return a UNet of diffusers that a processor core trains, for images of `shape` (C, H, W), any H and W.

    Level i has channels[i] channels at 1/2^i of the resolution, one residual block in the encoder and two in
    the decoder; the middle alone has attention, in heads of 16; the noise level scales and shifts the
    normalised activations. Its feature layers are `model.down_blocks.<i>`, `model.mid_block`,
    `model.up_blocks.<i>`. Wrap it in `Preconditioned`. The default has 1.8 M weights.

    Raises ValueError for a shape below 1 or for channels that are no multiples of 16.
    """
    if not channels or any(integer("channels", each, 16) % 16 for each in channels):
        raise ValueError(f"channels must be multiples of 16, at least one, got {tuple(channels)}")
    return _unet(
        shape,
        channels,
        generator,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
    )


def _unet(
    shape: tuple[int, int, int], channels: Sequence[int], generator: torch.Generator | None, **options: Any
) -> ImageNetwork:
    """A UNet2DModel whose level i has channels[i] channels at 1/2^i of the resolution."""
    _check_shape(shape)
    from diffusers import UNet2DModel

    with initialised_by(generator):
        model: Any = UNet2DModel(
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(channels),
            norm_num_groups=8,
            **options,
        )
    divisor = 2 ** (len(channels) - 1)
    return ImageNetwork(model, shape, (_up_to(shape[1], divisor), _up_to(shape[2], divisor)))


def dit(
    shape: tuple[int, int, int],
    width: int = 384,
    depth: int = 12,
    patch: int = 2,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> ImageNetwork:
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
    return ImageNetwork(model, shape, (side, side))


def _check_shape(shape: tuple[int, int, int]) -> None:
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}")
    for name, size in zip(("channels", "height", "width of the image"), shape, strict=True):
        integer(name, size, 1)


def _up_to(side: int, divisor: int) -> int:
    """The least multiple of `divisor` that is not below `side`."""
    return side + -side % divisor
