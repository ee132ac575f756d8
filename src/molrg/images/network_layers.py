"""The layers of a network for images whose features can be read."""

from typing import Any

from torch import nn

from molrg.measuring.features import default_layers

__all__ = ["all_layers", "blocks", "skip_layers"]


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks of a model of diffusers, in order: those whose features are read.

    Of a UNet `down_blocks.<i>`, `mid_block`, `up_blocks.<i>`; of a DiT `transformer_blocks.<i>`.
    """
    return tuple(name for name, _ in [*_blocks(model), *_entries(model, "transformer_blocks")])


def all_layers(denoiser: nn.Module) -> tuple[str, ...]:
    """Return the names of all layers worth a probe of a denoiser, in the order in which they are computed.

    Of a UNet of diffusers, own or published: `conv_in`, then each `resnets.<j>`, `attentions.<j>`,
    `downsamplers.<j>` and `upsamplers.<j>` of the encoder (`down_blocks.<i>`), the middle (`mid_block`) and
    the decoder (`up_blocks.<i>`), under the name of the model in the denoiser. `skip_layers` are among them.
    Of a DiT the blocks `transformer_blocks.<i>`; of any other network its `feature_layers`.
    """
    prefix, model = _model_in(denoiser)
    if model is None:
        return default_layers(denoiser)
    if hasattr(model, "transformer_blocks"):
        return tuple(prefix + name for name in blocks(model))
    inside = [f"{name}.{layer}" for name, block in _blocks(model) for layer in _computed(block)]
    return tuple(prefix + name for name in ["conv_in", *inside])


def skip_layers(denoiser: nn.Module) -> tuple[str, ...]:
    """Return the layers of a UNet's encoder that its decoder receives by skip connections, as computed.

    These are `conv_in`, each `resnets.<j>` of the encoder, or the `attentions.<j>` after it, and each
    `downsamplers.<j>`. The decoder's resnets take them in the opposite order, the last one first, each beside
    the output of the layer before it.

    Of other networks: none.
    """
    prefix, model = _model_in(denoiser)
    if not hasattr(model, "down_blocks"):
        return ()
    names = ["conv_in"]
    for block, module in _entries(model, "down_blocks"):
        layers = _computed(module)
        # What an attention follows is not handed on itself.
        followed = {layer.replace("attentions", "resnets") for layer in layers if "attentions" in layer}
        names += [f"{block}.{layer}" for layer in layers if layer not in followed]
    return tuple(prefix + name for name in names)


def _model_in(denoiser: nn.Module) -> tuple[str, Any]:
    """The model of diffusers in a denoiser, and what its layers' names begin with; ("", None) without one."""
    for name, module in denoiser.named_modules():
        if type(module).__name__ in ("UNet2DModel", "DiTTransformer2DModel"):
            return name + "." * bool(name), module
    return "", None


def _blocks(model: Any) -> list[tuple[str, Any]]:
    """The blocks of a UNet with their names; none of another model."""
    middle = getattr(model, "mid_block", None)
    inside = [] if middle is None else [("mid_block", middle)]
    return [*_entries(model, "down_blocks"), *inside, *_entries(model, "up_blocks")]


def _entries(module: nn.Module, name: str) -> list[tuple[str, Any]]:
    """The entries of a module list with their names; none where there is no such list."""
    entries = getattr(module, name, None) or []
    return [(f"{name}.{i}", entry) for i, entry in enumerate(entries) if entry is not None]


def _computed(block: nn.Module) -> list[str]:
    """The layers of a block of a UNet in the order in which it runs them."""
    resnets, attentions = (_entries(block, name) for name in ("resnets", "attentions"))
    # Each attention follows the resnet of its number; the middle has one resnet more.
    by_place = sorted(
        [*resnets, *attentions], key=lambda each: (int(each[0].split(".")[1]), each[0][0] == "a")
    )
    resampled = [*_entries(block, "downsamplers"), *_entries(block, "upsamplers")]
    return [name for name, _ in [*by_place, *resampled]]
