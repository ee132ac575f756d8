"""Training of denoisers: one noise level or many, with weight averaging, checkpoints and exact resumption."""

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from molrg import checkpoints
from molrg.arguments import integer
from molrg.noise import Distribution, as_distribution

Weighting = Callable[[Tensor], Tensor]
"""Loss weights (N,) of noise levels (N,)."""

_LOOK_EVERY_STEPS = 50
_LOOK_EVERY_SECONDS = 0.5


class Trained(NamedTuple):
    """The denoiser with averaged weights, in evaluation mode, and the loss of every step, (steps,)."""

    denoiser: nn.Module
    losses: Tensor


def edm_weighting(sigma_data: float) -> Weighting:
    r"""Return EDM's weighting (sigma^2 + s_d^2)/(sigma s_d)^2, s_d = `sigma_data`.

    With EDM's preconditioning, every level then has a loss near 1 at the start.
    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), Table 1.
    """
    return lambda sigma: (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def uniform_weighting(sigma: Tensor) -> Tensor:
    """Weight 1 at every level: the plain squared error."""
    return torch.ones_like(sigma)


def train(
    denoiser: nn.Module,
    data: Tensor,
    sigmas: float | Sequence[float] | Tensor | Distribution,
    *,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    ema: float = 0.999,
    weighting: Weighting | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    progress: bool = True,
) -> Trained:
    r"""Train `denoiser` to predict x_0 from x_sigma = x_0 + sigma eps.

    Minimises E[weighting(sigma) ||D(x_sigma, sigma) - x_0||^2 / n] by Adam over `steps` batches, drawn with
    replacement. A run that was stopped, called again with the same arguments and starting weights, goes on
    from its checkpoint; on a CPU it ends in the same weights, bit for bit, as if it had never stopped.

    Parameters
    ----------
    denoiser
        Any module with forward(x, sigma) -> (N, n), sigma (N,). Its weights are trained in place.
    data
        x_0, (M, n) floating point; held on the training device in the dtype of the weights.
    sigmas
        One level (a DAE), several (each equally likely), or `noise.LogNormal(...)`, `noise.LogUniform(...)`.
    steps, batch_size, lr
        Number of updates, samples in each, step size of Adam.
    ema
        Decay of the running mean of the weights that is returned, in [0, 1); 0 returns the last weights.
        Early on it is at most (1 + t)/(10 + t) at step t.
    weighting
        `edm_weighting(...)`, `uniform_weighting` or any function of sigma. None: EDM's, with the denoiser's
        `sigma_data`, or if it has none, with the root mean square of the data.
    generator
        Source of batches, levels and noise (and, through a seed drawn from it, of dropout); on the CPU or on
        the training device. None: a new one on the training device with seed 0.
    device
        Where to train; None: where the denoiser is.
    checkpoint
        Path of the checkpoint, written every `checkpoint_every` steps and at the end; None: none.
    progress
        Whether to show a bar with loss, time left and device on stderr.

    Returns
    -------
    Trained
        A copy of the denoiser with averaged weights, in evaluation mode, and the loss of every step (float64,
        on the CPU).

    Raises
    ------
    ValueError
        For arguments outside their ranges; for a checkpoint that is damaged or of another run.
    FloatingPointError
        At the first loss that is not finite: names the step, the noise levels of its batch and the last good
        checkpoint.
    OSError
        If a checkpoint cannot be written; the last good one is intact.
    """
    run = _Run(denoiser, data, as_distribution(sigmas), batch_size, lr, ema, weighting, generator, device)
    steps = integer("steps", steps, 1)
    file = None
    if checkpoint is not None:
        file = _File(Path(checkpoint), run, integer("checkpoint_every", checkpoint_every, 1))
    denoiser.train()
    with _own_randomness(run.device):
        run.seed_dropout()
        if file is not None:
            file.resume(steps)
        _loop(run, steps, file, progress)
    run.network.zero_grad(set_to_none=True)
    return Trained(run.averaged_denoiser(), torch.tensor(run.losses[:steps], dtype=torch.float64))


class _Run:
    """All that changes from step to step, and one step."""

    def __init__(
        self,
        network: nn.Module,
        data: Tensor,
        distribution: Distribution,
        batch_size: int,
        lr: float,
        ema: float,
        weighting: Weighting | None,
        generator: torch.Generator | None,
        device: torch.device | str | None,
    ) -> None:
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("denoiser has no parameters to train")
        if data.ndim != 2 or not data.is_floating_point() or not data.numel():
            raise ValueError(
                f"data must be a non-empty floating point tensor (M, n), got {data.dtype} of shape "
                f"{tuple(data.shape)}; flatten images to (M, C * H * W)"
            )
        if not data.isfinite().all():
            raise ValueError("data must be finite, got NaN or infinite entries")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {lr}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {ema}")
        self.batch_size = integer("batch_size", batch_size, 1)
        self.device = parameters[0].device if device is None else torch.device(device)
        self.network = network.to(self.device)
        self.parameters: list[Tensor] = [
            parameter for parameter in network.parameters() if parameter.requires_grad
        ]
        self.data = data.detach().to(self.device, self.parameters[0].dtype)
        self.distribution = distribution
        self.lr, self.ema = lr, ema
        if weighting is None:
            own = getattr(network, "sigma_data", None)
            weighting = edm_weighting(data.square().mean().sqrt().item() if own is None else float(own))
        self.weighting = weighting
        self.generator = torch.Generator(self.device).manual_seed(0) if generator is None else generator
        # One kernel for all parameters where there is one.
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=fused)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.losses: list[float] = []

    def seed_dropout(self) -> None:
        """Seed PyTorch's own generators, from which dropout draws, from ours."""
        draw = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
        for stream in _streams(self.device):
            stream.manual_seed(int(draw))

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Make update `number` (from 0); returns the loss and the levels of the batch, not looked at yet."""
        draw: dict[str, Any] = {"generator": self.generator, "device": self.generator.device}
        rows = torch.randint(len(self.data), (self.batch_size,), **draw)
        sigma = self.distribution.sample(self.batch_size, self.generator).to(self.device, self.data.dtype)
        noise = torch.randn(self.batch_size, self.data.shape[1], dtype=self.data.dtype, **draw)
        x0 = self.data.index_select(0, rows.to(self.device))
        x = torch.addcmul(x0, sigma[:, None], noise.to(self.device))
        error = (self.network(x, sigma) - x0).square().mean(1)
        loss = (self.weighting(sigma) * error).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        decay = min(self.ema, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss.detach(), sigma

    def weights_are_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters)

    def averaged_denoiser(self) -> nn.Module:
        averaged = copy.deepcopy(self.network).eval()
        trained = [parameter for parameter in averaged.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter, mean in zip(trained, self.average, strict=True):
                parameter.copy_(mean)
        return averaged

    def state(self) -> dict[str, Tensor]:
        """Everything a later run needs to go on, as named tensors."""
        state = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for i, mean in enumerate(self.average):
            state[f"average.{i}"] = mean
        for i, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": tensor for name, tensor in values.items()}
        state["generator"] = self.generator.get_state()
        for i, stream in enumerate(_streams(self.device)):
            state[f"stream.{i}"] = stream.get_state()
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        head = "network."
        self.network.load_state_dict(
            {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
        )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                moments.setdefault(int(i), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for place, mean in enumerate(self.average):
            mean.copy_(state[f"average.{place}"])
        self.generator.set_state(state["generator"])
        for place, stream in enumerate(_streams(self.device)):
            stream.set_state(state[f"stream.{place}"])
        self.losses = state["losses"].tolist()

    def fingerprint(self) -> dict[str, str]:
        """What must be equal for a checkpoint to belong to this run."""
        levels = torch.logspace(-4, 3, 64)
        weights = self.network.state_dict()
        return {
            "batch_size": str(self.batch_size),
            "lr": repr(self.lr),
            "ema": repr(self.ema),
            "sigmas": repr(self.distribution),
            "device": self.device.type,
            "weighting": _digest([self.weighting(levels)]),
            "data": _digest([self.data]),
            "generator": _digest([self.generator.get_state()]),
            "network": hashlib.sha256(repr((self.network, list(weights))).encode()).hexdigest()[:16],
            "starting weights": _digest(list(weights.values())),
        }


class _File:
    """The run's checkpoint: where, how often, and up to which step it is good."""

    def __init__(self, path: Path, run: _Run, every: int) -> None:
        self.path, self.run, self.every = path, run, every
        self.good_step = 0
        self._fingerprint = run.fingerprint()

    def resume(self, steps: int) -> None:
        """Take up the checkpoint, if there is one."""
        try:
            state, metadata = checkpoints.load(self.path)
        except FileNotFoundError:
            return
        theirs = json.loads(metadata["run"])
        differences = [
            f"{name} ({theirs.get(name)} there, {value} here)"
            for name, value in self._fingerprint.items()
            if theirs.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"the checkpoint {self.path} is of another run; different are: {', '.join(differences)}. "
                "Give the arguments and the generator seeds of that run, or another checkpoint path, "
                "or delete the file"
            )
        done = len(state["losses"])
        if done > steps:
            raise ValueError(
                f"steps must be at least {done}, the steps in the checkpoint {self.path}, got {steps}; "
                "or give another checkpoint path"
            )
        self.run.restore(state)
        self.good_step = done

    def save(self) -> None:
        checkpoints.save(self.path, self.run.state(), {"run": json.dumps(self._fingerprint)})
        self.good_step = len(self.run.losses)

    def __str__(self) -> str:
        return f"{self.path} at step {self.good_step}" if self.good_step else "none was written"


def _loop(run: _Run, steps: int, file: _File | None, progress: bool) -> None:
    """Step until `steps`; losses are looked at now and then, since each look waits for the device."""
    from tqdm import tqdm

    done = len(run.losses)
    pending: list[tuple[Tensor, Tensor]] = []
    looked = time.monotonic()
    with tqdm(total=steps, initial=done, desc=f"training on {run.device}", disable=not progress) as bar:
        while done < steps:
            pending.append(run.step(done))
            done += 1
            due = done == steps or (file is not None and done % file.every == 0)
            late = time.monotonic() - looked > _LOOK_EVERY_SECONDS
            if not (due or late or len(pending) >= _LOOK_EVERY_STEPS):
                continue
            mean = _look(run, pending, steps, file)
            bar.update(len(pending))
            bar.set_postfix(loss=f"{mean:.4g}", refresh=False)
            pending.clear()
            looked = time.monotonic()
            if due:
                if not run.weights_are_finite():
                    raise FloatingPointError(
                        f"the weights are not finite after step {done} of {steps}. {_advice(run, file)}"
                    )
                if file is not None:
                    file.save()


def _look(run: _Run, pending: list[tuple[Tensor, Tensor]], steps: int, file: _File | None) -> float:
    """Move the pending losses to the run's record; stop at the first one that is not finite."""
    losses = torch.stack([loss for loss, _ in pending]).tolist()
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            low, high = (bound.item() for bound in pending[i][1].aminmax())
            raise FloatingPointError(
                f"the loss is {loss} at step {len(run.losses) + i + 1} of {steps}, in a batch of levels "
                f"sigma = {low:.4g} to {high:.4g}. {_advice(run, file)}"
            )
    run.losses += losses
    return sum(losses) / len(losses)


def _advice(run: _Run, file: _File | None) -> str:
    good = "none was asked for" if file is None else str(file)
    return f"Last good checkpoint: {good}. Lower lr (now {run.lr}) or change the noise levels"


def _streams(device: torch.device) -> list[torch.Generator]:
    """PyTorch's own generators that layers such as dropout draw from on `device`."""
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        return [torch.default_generator, torch.cuda.default_generators[index]]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    return [torch.default_generator]


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leave PyTorch's own generators as they were found."""
    streams = _streams(device)
    states = [stream.get_state() for stream in streams]
    try:
        yield
    finally:
        for stream, state in zip(streams, states, strict=True):
            stream.set_state(state)


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        digest.update(repr((content.dtype, content.shape)).encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
