"""The same draws in every run; a small page and a small clone, for the tests of what handles pages."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A page
"""

# `pytest --hypothesis-profile search` looks for new counterexamples.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Start networks made without a generator alike in every run."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)  # an import of its own would cost the other tests seconds


@pytest.fixture(scope="session")
def page_source() -> Callable[..., str]:
    """The text of a page with these code cells, of which the first holds its parameters."""

    def source(parameters: str, *cells: str) -> str:
        blocks = [f":tags: [parameters]\n\n{parameters}", *cells]
        return HEAD + "".join(f"\n```{{code-cell}} ipython3\n{block}\n```\n" for block in blocks)

    return source


@pytest.fixture(scope="session")
def make_clone() -> Callable[..., Path]:
    """Makes a clone with one page at `folder`."""

    def make(folder: Path, page: str, text: str, claims: str = "{}") -> Path:
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("conftest.py", "pyproject.toml", "Snakefile"):
            shutil.copy(ROOT / name, folder)
        (folder / "results").mkdir()
        path = folder / "book" / f"{page}.md"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        (folder / "book" / "claims.yml").write_text(claims)
        return folder

    return make


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A published checkpoint of images of one channel and 8 x 8 pixels, in the format of diffusers."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
    scheduler: Any = DDPMScheduler()
    model.save_pretrained(tmp_path / "tiny" / "unet")
    scheduler.save_pretrained(tmp_path / "tiny" / "scheduler")
    return tmp_path / "tiny"
