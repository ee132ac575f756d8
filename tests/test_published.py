"""Published checkpoints, on tiny ones of the same format: against diffusers, closed forms, and misuse."""

import importlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch as safetensors
import torch
from torch import Tensor, nn

from experiments.images import denoisers
from molrg import images
from molrg.images import checkpoint_files, latents, network_layers, published
from molrg.measuring import features
from molrg.model import noise
from molrg.support import data_read

diffusers: Any = importlib.import_module("diffusers")  # its types are incomplete
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOLRG_NETWORKS", str(tmp_path / "networks"))
    monkeypatch.delenv("MOLRG_ALLOW_BIN", raising=False)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(model: nn.Module) -> Any:
    """The model with weights that are all its own; no zeros that would hide a part of it."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def tiny_unet(**changes: Any) -> Any:
    """A UNet in the manner of google/ddpm-cifar10-32."""
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(diffusers.UNet2DModel(**{**config, **changes}))


def tiny_dit() -> Any:
    """A DiT in the manner of facebook/DiT-XL-2-256: learned variance, 10 classes and a null class."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=4,
            patch_size=2,
            num_embeds_ada_norm=10,
        )
        return randomised(model)


def tiny_vae(seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        ).eval()


def bare(folder: Path, model: Any, scheduler: Any = None, *, safe: bool = True) -> Path:
    """Save as google/ddpm-cifar10-32 is: everything side by side, with an index of the pipeline."""
    model.save_pretrained(folder, safe_serialization=safe)
    (scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def few(name: str = "digits", count: int = 10) -> images.Images:
    data = images.load(name)
    return replace(
        data,
        train_images=data.train_images[:count],
        train_labels=data.train_labels[:count],
        test_images=data.test_images[:3],
        test_labels=data.test_labels[:3],
        digest=f"{count} of {data.digest}",
    )


# ---- the denoiser


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_equals_the_scheduler_of_diffusers(tmp_path: Path, prediction: str) -> None:
    model, scheduler = tiny_unet(), diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    denoiser = published.load(bare(tmp_path, model, scheduler), SHAPE)
    clean, eps = drawn(1, 64), drawn(1, 64, seed=2)
    for step in (0, 1, 17, 400, 999):
        sigma = denoiser.levels()[step].item()
        assert denoiser.timesteps(sigma).item() == step
        z = scheduler.add_noise(clean, eps, torch.tensor([step])).unflatten(1, SHAPE)
        with torch.no_grad():
            expected = scheduler.step(model(z, step).sample, step, z).pred_original_sample
            found = denoiser(clean + sigma * eps, sigma)
        scale = expected.abs().max()  # at step 999 the scheduler divides by sqrt(abar) = 0.006
        assert (found - expected.flatten(1)).abs().max() < 2e-5 * scale + 2e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_is_optimal_for_gaussian_data_if_the_model_is(prediction: str) -> None:
    levels, spread = noise.ddpm_levels(1000), 0.6

    class Ideal(nn.Module):
        """The best prediction of eps, v or x_0 for data from N(0, spread^2 I)."""

        config, dtype = SimpleNamespace(), torch.float64

        def forward(self, z: Tensor, steps: Tensor, return_dict: bool) -> tuple[Tensor]:
            sigma = levels[steps.long()][:, None, None, None]
            a = 1 / (1 + sigma**2).sqrt()
            clean = a * spread**2 / (a**2 * spread**2 + a**2 * sigma**2) * z
            eps = (z - a * clean) / (a * sigma)
            return (
                {"epsilon": eps, "v_prediction": a * eps - a * sigma * clean, "sample": clean}[prediction],
            )

    denoiser = published.Published(Ideal(), levels, prediction, SHAPE, "ideal")
    sigma = levels[[3, 100, 500, 900]]
    x = drawn(4, 64).double()
    expected = (spread**2 / (spread**2 + sigma**2))[:, None] * x
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-9, atol=1e-9)


def test_levels_are_those_of_ddpm_and_timesteps_lie_between(tmp_path: Path) -> None:
    denoiser = published.load(bare(tmp_path, tiny_unet()))
    levels = denoiser.levels()
    torch.testing.assert_close(levels, noise.ddpm_levels(1000), rtol=1e-6, atol=0)
    abar = diffusers.DDPMScheduler().alphas_cumprod
    torch.testing.assert_close(levels.float(), ((1 - abar) / abar).sqrt(), rtol=1e-3, atol=0)
    assert torch.equal(denoiser.timesteps(levels), torch.arange(1000.0, dtype=torch.float64))
    middle = (levels[4] * levels[5]).sqrt()
    assert denoiser.timesteps(middle).item() == pytest.approx(4.5)
    assert denoiser.timesteps(0.3).shape == ()
    assert denoiser.sigma_range == (levels[0].item(), levels[-1].item())
    for level in denoiser.sigma_range:  # also as float32 rounds them
        denoiser.timesteps(torch.tensor(level, dtype=torch.float32))


def test_levels_outside_the_range_are_refused_and_can_be_left_out(tmp_path: Path) -> None:
    denoiser = published.load(bare(tmp_path, tiny_unet()))
    for sigma in (0.002, 0.0, -1.0, 200.0, float("nan"), torch.tensor([0.1, 0.008])):
        with pytest.raises(ValueError, match=r"sigma must lie from 0\.01 to 157\.4, the noise levels that"):
            denoiser(drawn(2, 64), sigma)
    assert denoisers.usable_levels(denoiser, noise.IMAGE_LEVELS) == noise.IMAGE_LEVELS[2:]
    assert denoisers.usable_levels(nn.Identity(), noise.IMAGE_LEVELS) == noise.IMAGE_LEVELS
    with pytest.raises(ValueError, match="none of the levels"):
        denoisers.usable_levels(denoiser, (0.002, 0.008))


def test_scalar_and_per_sample_levels_agree_in_any_precision(tmp_path: Path) -> None:
    denoiser = published.load(bare(tmp_path, tiny_unet())).double()
    assert not denoiser.training
    x, sigma = drawn(3, 64).double(), torch.tensor([0.05, 0.5, 5.0])
    with torch.no_grad():
        found = denoiser(x, sigma)
        for i in range(3):
            torch.testing.assert_close(found[i], denoiser(x[i : i + 1], sigma[i])[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found[i], denoiser(x, sigma[i].item())[i], rtol=1e-9, atol=1e-9)
        denoiser.model.to(torch.bfloat16)
        low = denoiser(x, sigma)
    assert low.dtype == torch.float64
    assert (low - found).abs().max() < 0.1 * found.abs().max()


def test_layers_can_be_probed(tmp_path: Path) -> None:
    denoiser = published.load(bare(tmp_path, tiny_unet()))
    assert denoiser.feature_layers == (
        "model.down_blocks.0",
        "model.down_blocks.1",
        "model.mid_block",
        "model.up_blocks.0",
        "model.up_blocks.1",
    )
    layers = network_layers.all_layers(denoiser)
    assert set(network_layers.skip_layers(denoiser)) < set(layers)
    names = [*layers, *denoiser.feature_layers, features.DENOISED]
    found = features.extract(denoiser, drawn(3, 64), 0.3, names)
    assert all(values.shape[0] == 3 for values in found.values())


def test_learned_variance_is_left_out_and_the_class_is_the_null_class(tmp_path: Path) -> None:
    model = tiny_dit()
    diffusers.DiTPipeline(model, tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    denoiser = published.load(tmp_path)
    assert denoiser.shape == (4, 4, 4)
    assert denoiser.vae == tmp_path / "vae"
    assert denoiser.image_side == 8
    assert denoiser.feature_layers == tuple(f"model.transformer_blocks.{i}" for i in range(2))
    assert network_layers.all_layers(denoiser) == denoiser.feature_layers
    sigma, x = denoiser.levels()[300].item(), drawn(2, 64)
    images = (x / (1 + sigma**2) ** 0.5).unflatten(1, (4, 4, 4))
    with torch.no_grad():
        out = model(images, torch.tensor([300, 300]), class_labels=torch.tensor([10, 10])).sample
        assert out.shape[1] == 8
        torch.testing.assert_close(denoiser(x, sigma), x - sigma * out[:, :4].flatten(1))


def test_schedules_that_end_in_pure_noise_stop_before_it(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    denoiser = published.load(bare(tmp_path, tiny_unet(), scheduler))
    assert len(denoiser.levels()) == 999
    assert denoiser.levels().isfinite().all()


# ---- where the files are


def test_all_layouts_hold_the_same_model(tmp_path: Path) -> None:
    model, x = tiny_unet(), drawn(2, 64)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=500)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path / "pipeline")
    with torch.no_grad():
        outputs = [
            published.load(folder, SHAPE)(x, 0.3)
            for folder in (
                tmp_path / "pipeline",
                str(tmp_path / "pipeline" / "unet"),
                bare(tmp_path / "bare", model, scheduler),
            )
        ]
    assert all(torch.equal(outputs[0], each) for each in outputs)


def test_checkpoints_of_older_versions(tmp_path: Path) -> None:
    unet, dit = tiny_unet(), tiny_dit()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(key: str) -> str:
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        return key

    bare(tmp_path / "unet", unet, safe=False)
    file = tmp_path / "unet" / checkpoint_files.BIN
    state = {older(key): value for key, value in unet.state_dict().items()}
    assert any("query" in key for key in state)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    diffusers.DiTPipeline(dit, tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(tmp_path / "dit")
    change(
        tmp_path / "dit" / "transformer" / "config.json",
        _class_name="Transformer2DModel",
        num_vector_embeds=None,
        caption_channels=None,
    )
    x = drawn(2, 64)
    with torch.no_grad():
        found = published.load(tmp_path / "unet", allow_bin=True)
        torch.testing.assert_close(found.model.state_dict(), unet.state_dict())
        assert torch.equal(
            found.model(x.unflatten(1, SHAPE), 7).sample, unet(x.unflatten(1, SHAPE), 7).sample
        )
        again = published.load(tmp_path / "dit")
        torch.testing.assert_close(again.model.state_dict(), dit.state_dict())
        assert again(x, 0.3).shape == x.shape


def test_other_shapes_than_the_model_s_are_named(tmp_path: Path) -> None:
    folder = bare(tmp_path / "colour", tiny_unet(in_channels=3, out_channels=3, sample_size=32))
    with pytest.raises(ValueError, match=r"colour is one of images of shape \(3, 32, 32\).*\(1, 28, 28\)"):
        published.load(folder, (1, 28, 28))
    denoiser = published.load(folder)
    with pytest.raises(ValueError, match=r"\(N, 3072\) for images of shape \(3, 32, 32\), got \(2, 784\)"):
        denoiser(drawn(2, 784), 0.3)
    diffusers.DiTPipeline(tiny_dit(), tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(tmp_path / "dit")
    with pytest.raises(ValueError, match=r"works on latents: encode the images with molrg\.images\.latents"):
        published.load(tmp_path / "dit", SHAPE)
    with pytest.raises(ValueError, match=r"works on latents"):  # as the pipeline's folder says
        published.load(tmp_path / "dit" / "transformer", SHAPE)
    apart = bare(tmp_path / "apart", tiny_dit())
    with pytest.raises(ValueError, match=r"If its 4 channels are latents"):
        published.load(apart, SHAPE)
    anysize = bare(tmp_path / "any", tiny_unet(sample_size=None))
    assert published.load(anysize, (1, 6, 4))(drawn(2, 24), 0.3).shape == (2, 24)
    with pytest.raises(ValueError, match="pass the shape"):
        published.load(anysize)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        (
            "config.json",
            {"_class_name": "UNet2DConditionModel"},
            "is of a UNet2DConditionModel.*known are DiT",
        ),
        (
            "config.json",
            {"time_embedding_type": "fourier"},
            "time_embedding_type 'fourier': known .* 'positional'",
        ),
        ("config.json", {"num_class_embeds": 10}, "num_class_embeds 10: known .* None"),
        ("config.json", {"out_channels": 3}, "1 channels in and 3 out"),
        ("config.json", {"in_channels": None}, "in_channels must be an integer >= 1, got None"),
        ("config.json", {"block_out_channels": [8, 32]}, "size mismatch"),
        ("scheduler_config.json", {"_class_name": "EulerDiscreteScheduler"}, "known are DDPMScheduler"),
        ("scheduler_config.json", {"prediction_type": "flow"}, "prediction_type 'flow': known .*'epsilon'"),
        ("scheduler_config.json", {"num_train_timesteps": 1}, "must be an integer >= 2, got 1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, file: str, changes: dict[str, Any], named: str) -> None:
    change(bare(tmp_path, tiny_unet()) / file, **changes)
    with pytest.raises(ValueError, match=named):
        published.load(tmp_path)


def test_missing_and_unexpected_weights_are_named(tmp_path: Path) -> None:
    file = bare(tmp_path, tiny_unet()) / checkpoint_files.SAFE
    state = safetensors.load_file(file)
    bias = state.pop("conv_out.bias")
    for wrong, named in (
        (state, r"does not fit the UNet2DModel .*: 1 missing keys \(conv_out\.bias"),
        ({**state, "conv_out.bias": bias, "extra": bias.clone()}, r"1 unexpected keys \(extra"),
    ):
        safetensors.save_file(wrong, file, {"format": "pt"})
        with pytest.raises(ValueError, match=named):
            published.load(tmp_path)


def test_files_that_are_not_json_are_named(tmp_path: Path) -> None:
    bare(tmp_path, tiny_unet())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        published.load(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        published.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        published.load(tmp_path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model: looked for config\.json"):
        published.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give the folder"):
        published.load(tmp_path / "file")


# ---- settings


def in_signatures(*kinds: str) -> set[str]:
    return {key for kind in kinds for key in inspect.signature(getattr(diffusers, kind)).parameters}


@pytest.mark.parametrize(
    ("settings", "kinds", "older"),
    [
        ("UNet2DModel", ("UNet2DModel",), ""),
        (
            "DiTTransformer2DModel",
            ("DiTTransformer2DModel",),
            "double_self_attention only_cross_attention use_linear_projection num_vector_embeds "
            "attention_type caption_channels "
            "cross_attention_dim interpolation_scale use_additional_conditions",
        ),
        ("AutoencoderKL", ("AutoencoderKL",), ""),
        ("scheduler", checkpoint_files.SCHEDULERS, "predict_epsilon tensor_format timestep_values"),
    ],
)
def test_every_setting_of_diffusers_is_classified(settings: str, kinds: tuple[str, ...], older: str) -> None:
    assert set(checkpoint_files.SETTINGS[settings]) == in_signatures(*kinds) | set(older.split())


def test_which_settings_change_the_meaning_of_input_or_time() -> None:
    limited = {
        key: rule
        for rules in checkpoint_files.SETTINGS.values()
        for key, rule in rules.items()
        if isinstance(rule, tuple)
    }
    assert {key for key, rule in limited.items() if len(rule) > 1} == {
        "prediction_type",
        "predict_epsilon",
        "rescale_betas_zero_snr",
    }
    assert {key: rule[0] for key, rule in limited.items() if len(rule) == 1} == {
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "class_embed_type": None,
        "num_class_embeds": None,
        "norm_type": "ada_norm_zero",
        "double_self_attention": False,
        "only_cross_attention": False,
        "use_linear_projection": False,
        "num_vector_embeds": None,
        "caption_channels": None,
        "cross_attention_dim": None,
        "interpolation_scale": None,
        "use_additional_conditions": None,
        "attention_type": "default",
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "timestep_values": None,
    }


DPM, PNDM = "DPMSolverMultistepScheduler", "PNDMScheduler"


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config.json", {"center_input_sample": True}, "center_input_sample True"),
        ("config.json", {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ("config.json", {"quantization_config": {}}, r"not known.*: quantization_config"),
        ("config.json", {"sample_size": -8}, "sample_size must be an integer >= 1, got -8"),
        ("config.json", {"sample_size": [8, 0]}, "sample_size must be an integer >= 1, got 0"),
        ("config.json", {"norm_num_groups": 0}, "does not hold the weights"),
        ("scheduler_config.json", {"_class_name": DPM, "use_flow_sigmas": True}, "use_flow_sigmas True"),
        ("scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas True"),
        ("scheduler_config.json", {"_class_name": DPM, "use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("scheduler_config.json", {"prediction_type": "flow_prediction"}, "flow_prediction"),
        ("scheduler_config.json", {"predict_epsilon": False}, "contradict each other"),
        ("scheduler_config.json", {"predict_epsilon": "no"}, "predict_epsilon 'no'"),
        ("scheduler_config.json", {"sigma_data": 0.5}, r"not known.*: sigma_data \(0\.5\)"),
        ("scheduler_config.json", {"rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr 'false'"),
        ("scheduler_config.json", {"_class_name": PNDM, "rescale_betas_zero_snr": True}, "rescale_betas"),
        ("scheduler_config.json", {"beta_end": 2}, "beta_end 2: it must lie strictly between 0 and 1"),
        ("scheduler_config.json", {"beta_start": float("nan")}, "beta_start nan"),
        ("scheduler_config.json", {"beta_schedule": "cosine"}, "not understood by the DDPMScheduler.*cosine"),
        ("scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("scheduler_config.json", {"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, "0.1 to 1.5"),
    ],
)
def test_settings_that_would_be_misread_are_named(
    tmp_path: Path, file: str, changes: dict[str, Any], named: str
) -> None:
    change(bare(tmp_path, tiny_unet()) / file, **changes)
    with pytest.raises(ValueError, match=named) as raised:
        published.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_how_a_sampler_steps_changes_nothing(tmp_path: Path) -> None:
    folder, x = bare(tmp_path, tiny_unet()), drawn(2, 64)
    file = folder / "scheduler_config.json"
    expected = published.load(folder)(x, 0.3)
    for kind in checkpoint_files.SCHEDULERS:
        file.write_text(
            json.dumps({"_class_name": kind, "clip_sample": True, "thresholding": True, "steps_offset": 1})
        )
        change(file, timestep_spacing="trailing", use_karras_sigmas=True, final_sigmas_type="sigma_min")
        assert torch.equal(published.load(folder)(x, 0.3), expected)
    betas = torch.linspace(0.01, 0.3, 5).tolist()
    change(file, trained_betas=betas, num_train_timesteps=5)
    abar = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(published.load(folder).levels(), (1 / abar - 1).sqrt(), rtol=1e-6, atol=0)


# ---- the scheduler and the first stage


@pytest.mark.parametrize("deep", ["unet", "checkpoint-400/unet_ema", "runs/checkpoint-400/unet"])
def test_the_scheduler_lies_beside_or_up_to_two_folders_above(tmp_path: Path, deep: str) -> None:
    scheduler = diffusers.DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2")
    scheduler.save_pretrained(tmp_path / "run" / "scheduler")
    tiny_unet().save_pretrained(tmp_path / "run" / deep)
    denoiser = published.load(tmp_path / "run" / deep)
    assert denoiser.prediction == "x0"
    assert denoiser.sigma_range[1] > 1e4
    assert published.digest_of(tmp_path / "run" / deep) == denoiser.digest
    assert any("../scheduler/scheduler_config.json" in line for line in denoiser.read_as())


def test_without_a_scheduler_it_says_what_to_pass(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c" / "d" / "unet"
    tiny_unet().save_pretrained(folder)
    diffusers.DDPMScheduler(prediction_type="sample").save_pretrained(tmp_path / "a" / "scheduler")
    for call in (published.load, published.levels_of, published.digest_of):
        with pytest.raises(FileNotFoundError, match=r"has no scheduler.*Pass scheduler=FOLDER"):
            call(folder)
    denoiser = published.load(folder, scheduler=tmp_path / "a" / "scheduler")
    assert denoiser.prediction == "x0"
    assert published.digest_of(folder, scheduler=tmp_path / "a" / "scheduler") == denoiser.digest
    with pytest.raises(FileNotFoundError, match="scheduler: there is no"):
        published.load(folder, scheduler=tmp_path / "nowhere")


def test_predict_epsilon_is_what_prediction_type_was_called(tmp_path: Path) -> None:
    file = bare(tmp_path, tiny_unet()) / "scheduler_config.json"
    for old, expected in ((False, "x0"), (True, "eps")):
        file.write_text(json.dumps({"_class_name": "DDPMScheduler", "predict_epsilon": old}))
        assert published.load(tmp_path).prediction == expected


def test_a_first_stage_that_is_no_vae_is_refused_by_name(tmp_path: Path) -> None:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    stage = diffusers.VQModel(block_out_channels=(8, 16), norm_num_groups=4, num_vq_embeddings=16, **kinds)
    unet, scheduler = tiny_unet(in_channels=3, out_channels=3), diffusers.DDIMScheduler()
    diffusers.LDMPipeline(vqvae=stage, unet=unet, scheduler=scheduler).save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "unet"):
        with pytest.raises(ValueError, match=r"model_index\.json has the part vqvae \(VQModel\)"):
            published.load(folder)
    (tmp_path / "model_index.json").unlink()
    for folder in (tmp_path, tmp_path / "unet"):
        with pytest.raises(ValueError, match=r"vqvae is a first stage VQModel"):
            published.load(folder)
    (tmp_path / "vqvae").rename(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"vae is a first stage VQModel"):
        published.load(tmp_path)
    index = {"vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DModel"]}
    shutil.rmtree(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="has a vae, and there is no"):
        published.load(tmp_path)


def test_it_tells_how_it_was_read(tmp_path: Path) -> None:
    vae = tiny_vae()
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    diffusers.DiTPipeline(tiny_dit(), vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    lines = published.load(tmp_path).read_as()
    assert lines[1:] == [
        "prediction type: epsilon (scheduler/scheduler_config.json)",
        "schedule: beta_schedule linear from 0.0001 to 0.02, sigma from 0.01 to 157.4 "
        "(scheduler/scheduler_config.json)",
        "timesteps: 1000 (scheduler/scheduler_config.json)",
        "scaling of latents: z = s (m - b), s = 0.5, b = 0.25 (vae/config.json)",
    ]
    assert "DiTTransformer2DModel on 4 x 4 x 4 values (transformer/config.json, transformer/" in lines[0]


# ---- weights


def test_weights_beside_an_index_are_refused(tmp_path: Path) -> None:
    folder = bare(tmp_path, tiny_unet())
    state = safetensors.load_file(folder / checkpoint_files.SAFE)
    torch.save({key: value + 1 for key, value in state.items()}, folder / "other.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "other.bin")}
    (folder / f"{checkpoint_files.SAFE}.index.json").write_text(json.dumps(index))
    for call in (published.load, published.digest_of):
        with pytest.raises(ValueError, match=r"safetensors and .*index\.json, which names other files"):
            call(folder)


def test_diffusers_sees_nothing_but_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = bare(tmp_path, tiny_unet()), []
    read = diffusers.UNet2DModel.from_pretrained
    torch.save({}, folder / checkpoint_files.BIN)

    def listing(path: str, **settings: Any) -> Any:
        seen.extend(sorted(file.name for file in Path(path).iterdir()))
        return read(path, **settings)

    monkeypatch.setattr(diffusers.UNet2DModel, "from_pretrained", listing)
    published.load(folder)
    assert seen == ["config.json", checkpoint_files.SAFE]


def test_shards_and_variants_are_named(tmp_path: Path) -> None:
    model = tiny_unet()
    bare(tmp_path / "shards", model)
    (tmp_path / "shards" / checkpoint_files.SAFE).unlink()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    with pytest.raises(ValueError, match=r"in shards \(diffusion_.*max_shard_size"):
        published.load(tmp_path / "shards")
    for safe in (True, False):
        folder = bare(tmp_path / f"fp16-{safe}", model)
        (folder / checkpoint_files.SAFE).unlink()
        model.save_pretrained(folder, variant="fp16", safe_serialization=safe)
        with pytest.raises(ValueError, match=r"as a variant alone \(fp16: .*without variant"):
            published.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    file = bare(tmp_path, tiny_unet()) / checkpoint_files.SAFE
    state = safetensors.load_file(file)
    state["conv_out.bias"][0] = value
    safetensors.save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"NaN or infinite: conv_out\.bias"):
        published.load(tmp_path)


class Code:
    """What a harmful file asks for when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_bin_is_read_on_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny_unet(), drawn(2, 64)
    folder = bare(tmp_path, model, safe=False)
    assert (folder / checkpoint_files.BIN).is_file()
    with pytest.raises(ValueError, match=r"a pickle.*allow_bin=True or set.*MOLRG_ALLOW_BIN=1"):
        published.load(folder)
    requested = published.load(folder, allow_bin=True)
    monkeypatch.setenv("MOLRG_ALLOW_BIN", "1")
    with torch.no_grad():
        assert torch.equal(published.load(folder)(x, 0.3), requested(x, 0.3))
    with pytest.raises(ValueError, match="a pickle"):
        published.load(folder, allow_bin=False)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = bare(tmp_path / "both", tiny_unet())
    torch.save({"conv_in.weight": Code(marker)}, folder / checkpoint_files.BIN)
    published.load(folder, allow_bin=True)
    assert not marker.exists()


def test_code_in_a_bin_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = bare(tmp_path / "bad", tiny_unet(), safe=False)
    file = folder / checkpoint_files.BIN
    for content in ({"conv_in.weight": Code(marker)}, Code(marker)):
        torch.save(content, file)
        with pytest.raises(ValueError, match=r"is refused: .*could run code"):
            published.load(folder, allow_bin=True)
        assert not marker.exists()
    torch.load(file, weights_only=False)  # it is harmful indeed
    assert marker.exists()
    torch.save([torch.zeros(2)], file)
    with pytest.raises(ValueError, match="must hold a dictionary of tensors"):
        published.load(folder, allow_bin=True)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        published.load(folder, allow_bin=True)


def test_other_pickles_and_absent_weights_are_named(tmp_path: Path) -> None:
    folder = bare(tmp_path, tiny_unet())
    (folder / checkpoint_files.SAFE).rename(folder / "model.ckpt")
    with pytest.raises(FileNotFoundError, match=r"found only model\.ckpt.*can run code and are refused"):
        published.load(folder, allow_bin=True)
    (folder / "model.ckpt").unlink()
    with pytest.raises(
        FileNotFoundError, match=f"no weights in .*looked for {checkpoint_files.SAFE}, found none"
    ):
        published.load(folder)


def test_damaged_safetensors(tmp_path: Path) -> None:
    folder = bare(tmp_path, tiny_unet())
    file = folder / checkpoint_files.SAFE
    content, before = file.read_bytes(), published.load(folder).digest
    for wrong in (content[:-5], b"version https://git-lfs.github.com/spec/v1\n", b"\xff" + content[1:]):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
            published.load(folder)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert published.load(folder).digest != before  # a flipped bit loads; it has another digest


# ---- names


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A Hub that holds what lies in tmp_path/hub; lists what is asked of it."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **kwargs: Any) -> str:
        asked.append({"name": name, **kwargs})
        source, target = tmp_path / "hub", tmp_path / "snapshot"
        for path in source.rglob("*.*"):
            relative = path.relative_to(source)
            if any(fnmatch(str(relative), pattern) for pattern in kwargs["allow_patterns"]):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / relative)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_names_are_fetched_and_nothing_but_what_is_needed(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    pipeline = diffusers.DiTPipeline(tiny_dit(), tiny_vae(), diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path / "hub")
    pipeline.save_pretrained(tmp_path / "hub", safe_serialization=False)
    (tmp_path / "hub" / "run.py").write_text("")
    denoiser = published.load("owner/name@refs/pr/1")
    assert denoiser.vae == tmp_path / "snapshot" / "vae"
    assert [(each["name"], each["revision"]) for each in hub] == [("owner/name", "refs/pr/1")]
    fetched = {path.name for path in (tmp_path / "snapshot").rglob("*.*")}
    assert fetched == {"config.json", "scheduler_config.json", "model_index.json", checkpoint_files.SAFE}
    assert published.digest_of("owner/name") == denoiser.digest
    assert hub[-1]["local_files_only"]


def test_a_bin_is_fetched_on_request_alone(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    diffusers.DiTPipeline(tiny_dit(), tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(
        tmp_path / "hub", safe_serialization=False
    )
    with pytest.raises(FileNotFoundError, match=rf"older {checkpoint_files.BIN}, pass allow_bin=True"):
        published.load("owner/name")
    assert not list((tmp_path / "snapshot").rglob(f"*{checkpoint_files.BIN}"))
    published.load("owner/name", allow_bin=True)
    assert len(list((tmp_path / "snapshot").rglob(f"*{checkpoint_files.BIN}"))) == 2


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model"])
def test_shards_on_the_hub_are_named(tmp_path: Path, hub: list[dict[str, Any]], stem: str) -> None:
    folder = bare(tmp_path / "hub", tiny_unet())
    (folder / checkpoint_files.SAFE).rename(folder / f"{stem}-00001-of-00002.safetensors")
    (folder / f"{stem}.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"in shards \({stem}.safetensors.index.json\), and one file, diff"):
        published.load("owner/name")
    assert not list((tmp_path / "snapshot").glob("*-of-*"))


@pytest.mark.parametrize(
    "shards",
    [
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors",),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors",),
        ("diffusion_pytorch_model-00001-of-00002.bin", "diffusion_pytorch_model.bin.index.json"),
    ],
)
def test_shards_of_every_naming_are_named(tmp_path: Path, shards: tuple[str, ...]) -> None:
    folder = bare(tmp_path, tiny_unet())
    whole = (folder / checkpoint_files.SAFE).read_bytes()
    for name in shards:
        (folder / name).write_bytes(whole)
    assert published.load(folder).digest == published.digest_of(folder)  # of the whole file, which is read
    (folder / checkpoint_files.SAFE).unlink()
    for call in (published.load, published.digest_of):
        with pytest.raises(
            ValueError, match=rf"in shards \({re.escape(', '.join(sorted(shards)))}\), and one"
        ):
            call(folder, allow_bin=True)


def test_names_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'owner/name' not found.*no such folder.*not in .*cache.*hf do"
    ):
        published.load("owner/name")
    with pytest.raises(FileNotFoundError, match=r"'owner/name' not found"):
        published.digest_of("owner/name")
    for path in ("./owner/name", "/a/b", "a/b/c", "name"):
        with pytest.raises(FileNotFoundError, match="it is not a name on the Hugging Face Hub"):
            published.load(path)


def test_a_folder_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
    published.load(bare(tmp_path, tiny_unet()))


def test_the_cache_of_the_hub_is_checked(tmp_path: Path) -> None:
    folder = bare(tmp_path / "snapshot", tiny_unet())
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    (folder / checkpoint_files.SAFE).rename(blob)
    (folder / checkpoint_files.SAFE).symlink_to(blob)
    with pytest.raises(ValueError, match=r"is damaged: expected SHA-256 0{64}, actual"):
        published.load(folder)


def test_what_was_read_is_noted(tmp_path: Path) -> None:
    folder = bare(tmp_path, tiny_unet())
    with data_read.listed() as read:
        denoiser = published.load(folder)
    assert read == {f"published/{folder}": denoiser.digest}
    assert published.digest_of(folder) == denoiser.digest
    change(folder / "scheduler_config.json", beta_end=0.01)
    assert published.digest_of(folder) != denoiser.digest


# ---- latents


def test_latents_are_the_scaled_means_of_the_encoder(tmp_path: Path) -> None:
    vae, data = tiny_vae(), few()
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    vae.save_pretrained(tmp_path / "vae")
    latent = latents.latents(tmp_path / "vae", data, tmp_path / "kept", batch_size=4)
    assert latent.shape == (4, 4, 4)
    assert latent.name == "digits-latents"
    assert torch.equal(latent.train_labels, data.train_labels)
    pictures = data.train_images.unflatten(1, data.shape).expand(-1, 3, -1, -1)
    with torch.no_grad():
        mean = vae.encode(pictures).latent_dist.mean
    torch.testing.assert_close(latent.train_images, (0.5 * (mean - 0.1)).flatten(1))
    assert latent.test_images.shape == (3, 64)
    larger = latents.latents(tmp_path, data, tmp_path / "kept", side=12)  # a pipeline's folder
    assert larger.shape == (4, 6, 6)
    assert len({data.digest, latent.digest, larger.digest}) == 3
    resized = torch.nn.functional.interpolate(pictures, (12, 12), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = 0.5 * (vae.encode(resized).latent_dist.mean - 0.1)
    torch.testing.assert_close(larger.train_images, expected.flatten(1))
    colour = replace(
        data,
        shape=(3, 8, 8),
        train_images=drawn(5, 192).clamp(-1, 1),
        test_images=drawn(2, 192).clamp(-1, 1),
        digest="colour",
    )
    found = latents.latents(tmp_path, colour, tmp_path / "kept")
    with torch.no_grad():
        mean = vae.encode(colour.train_images.unflatten(1, (3, 8, 8))).latent_dist.mean
    torch.testing.assert_close(found.train_images, (0.5 * (mean - 0.1)).flatten(1))
    assert found.digest != latent.digest


def test_latents_are_standardised_as_diffusers_does(tmp_path: Path) -> None:
    vae, data = tiny_vae(), few()
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    vae.save_pretrained(tmp_path / "vae")
    found = latents.latents(tmp_path / "vae", data, tmp_path / "kept").train_images.unflatten(1, (4, 4, 4))
    with torch.no_grad():
        m = vae.encode(data.train_images.unflatten(1, data.shape).expand(-1, 3, -1, -1)).latent_dist.mean
    for c in range(4):
        torch.testing.assert_close(found[:, c], (m[:, c] - mean[c]) * 0.5 / std[c])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latents_mean": [0.0] * 4}, "the first two together"),
        (
            {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1},
            "the first two together",
        ),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents_mean must be 4 finite numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}, "latents_std must be 4 finite numbers > 0"),
        ({"scaling_factor": 0}, "scaling_factor must be a finite number > 0, got 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor must be a finite number > 0, got nan"),
        ({"shift_factor": "1"}, "shift_factor must be a finite number or null, got '1'"),
        ({"temporal": 1}, r"not known.*temporal \(1\)"),
    ],
)
def test_scalings_that_would_be_misread_are_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    change(tmp_path / "vae" / "config.json", **changes)
    with pytest.raises(ValueError, match=named):
        latents.latents(tmp_path / "vae", few(), tmp_path)


def counting(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Count the images that are encoded; be killed at a given call."""
    counts: list[int] = []
    encode = diffusers.AutoencoderKL.encode

    def counted(vae: Any, pictures: Tensor) -> Any:
        if len(counts) == fail_at:
            raise KeyboardInterrupt
        counts.append(len(pictures))
        return encode(vae, pictures)

    monkeypatch.setattr(diffusers.AutoencoderKL, "encode", counted)
    return counts


def test_latents_are_made_once_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    data, kept = few(), tmp_path / "kept"
    expected = latents.latents(tmp_path / "vae", data, tmp_path / "apart")
    monkeypatch.setattr(latents, "_CHUNK", 4)

    def run() -> images.Images:
        return latents.latents(tmp_path / "vae", data, kept, batch_size=2)

    with monkeypatch.context() as patch:
        counts = counting(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            run()
        assert sum(counts) == 6
    with monkeypatch.context() as patch:
        counts = counting(patch)
        found = run()
        assert sum(counts) == 13 - 4  # the file that was complete was taken up
    torch.testing.assert_close(found.train_images, expected.train_images)
    torch.testing.assert_close(found.test_images, expected.test_images)
    assert found.digest == expected.digest
    with monkeypatch.context() as patch:
        counts = counting(patch)
        patch.setattr(checkpoint_files.ModelFiles, "read", lambda *_: pytest.fail("the autoencoder was read"))
        assert torch.equal(run().train_images, found.train_images)
        assert not counts
    damaged = sorted(kept.rglob("*.safetensors"))[-1]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with monkeypatch.context() as patch:
        counts = counting(patch)
        assert torch.equal(run().train_images, found.train_images)
        assert 0 < sum(counts) <= 4
    assert damaged.read_bytes() == content
    tiny_vae(seed=1).save_pretrained(tmp_path / "vae")
    assert not torch.equal(run().train_images, found.train_images)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"side": 9}, r"multiples of 2, got 9 x 9"),
        ({"side": 0}, "side must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_wrong_values_for_latents_are_named(tmp_path: Path, wrong: dict[str, Any], named: str) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=named):
        latents.latents(tmp_path / "vae", few(), tmp_path, **wrong)


def test_what_has_no_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no AutoencoderKL"):
        latents.latents(bare(tmp_path / "unet", tiny_unet()), few(), tmp_path)
    tiny_vae().save_pretrained(tmp_path / "vae")
    data = replace(few(), shape=(2, 8, 4))
    with pytest.raises(ValueError, match="takes images of 3 channels, and digits has 2"):
        latents.latents(tmp_path / "vae", data, tmp_path)


# ---- what the pages call


def test_get_gives_trained_and_published_denoisers(tmp_path: Path) -> None:
    data = few(count=40)
    trained = denoisers.get(data, "mlp", seed=0, smoke=True)
    assert trained.data is data
    assert trained.losses is not None
    assert len(trained.losses) == denoisers.SMOKE["mlp"]["steps"]
    again = denoisers.get(data, "mlp", seed=0, smoke=True).denoiser
    assert torch.equal(again(data.test_images, 0.3), trained.denoiser(data.test_images, 0.3))
    folder = bare(tmp_path / "unet", tiny_unet())
    ready = denoisers.get(data, str(folder), seed=5, smoke=False)
    assert ready.data is data
    assert ready.losses is None
    assert ready.denoiser(data.test_images, 0.3).shape == data.test_images.shape
    diffusers.DiTPipeline(tiny_dit(), tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(tmp_path / "dit")
    latent = denoisers.get(data, str(tmp_path / "dit"), seed=0, smoke=True)
    assert latent.data.shape == (4, 4, 4)
    assert latent.denoiser(latent.data.test_images, 0.3).shape == (3, 64)
    assert list((tmp_path / "networks" / "latents").rglob("*.safetensors"))


def test_get_names_what_it_does_not_know(tmp_path: Path) -> None:
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (
            lambda: denoisers.get(few(), "unett", 0, True),
            ValueError,
            "mlp, unet, dit, unet-36m, dit-b, or the folder.*'unett'",
        ),
        (lambda: denoisers.get(few(), "owner/name", 0, True), FileNotFoundError, "'owner/name' not found"),
        (
            lambda: denoisers.get(
                few(), str(bare(tmp_path, tiny_unet(in_channels=3, out_channels=3))), 0, True
            ),
            ValueError,
            r"\(3, 8, 8\).*\(1, 8, 8\)",
        ),
    ]
    for call, kind, named in wrong:
        with pytest.raises(kind, match=named):
            call()
