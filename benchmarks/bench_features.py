"""Activations of all layers from hooks against the plain forward pass."""

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, compare
from molrg.learning.networks import MLP
from molrg.measuring import features


def plain(network: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """The network's output, in the same batches."""
    with torch.no_grad():
        return torch.cat([network(batch, 0.5) for batch in x.split(batch_size)])


def run(rows: int = 10_000, width: int = 512, repeats: int = 15) -> list[Row]:
    """Return one row: time with the activations of all blocks over time without."""
    generator = torch.Generator().manual_seed(0)
    network = MLP(784, width=width, depth=4, generator=generator).eval()
    x = torch.randn(rows, 784, generator=generator)
    a, b, ratio = compare(
        lambda: features.extract(network, x, 0.5, batch_size=512), lambda: plain(network, x, 512), repeats
    )
    name = f"features of all layers, MLP 4 x {width} / plain forward pass"
    return [Row(name=name, ours=a, peer=b, ratio=ratio, target="<= 1.1", note=f"{rows:,} images")]
