"""Training of denoisers: one noise level or many, with weight averaging, checkpoints and exact resumption."""

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from molrg.learning.checkpoints import RunFile, optimizer_state, restore_optimizer
from molrg.model.noise import Distribution, as_distribution
from molrg.support.checks import choice, integer, positive, within
from molrg.support.distributed import processes
from molrg.support.fingerprints import digest, structure

__all__ = [
    "PRECISIONS",
    "Augmentation",
    "Job",
    "Plateau",
    "Schedule",
    "Target",
    "Trained",
    "Weighting",
    "aim_of",
    "average_decay",
    "constant",
    "cosine",
    "edm_weighting",
    "of_shape",
    "own_randomness",
    "probe_target",
    "streams",
    "train",
    "uniform_weighting",
]

Weighting = Callable[[Tensor], Tensor]
"""Loss weights (N,) of noise levels (N,)."""
Schedule = Callable[[int, int], float]
"""Factor of the step size at a step (from 0) of so many steps."""
Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""A changed copy of a batch x_0 (N, n), such as images some of which are mirrored."""
Target = Callable[[Tensor, Tensor], Tensor]
"""What the denoiser is to return, (N, n), for x (N, n) at the levels (N,)."""
PRECISIONS = ("full", "bfloat16")
_LOOK_EVERY_STEPS = 50
_LOOK_EVERY_SECONDS = 0.5


class Trained(NamedTuple):
    """The denoiser with averaged weights, in evaluation mode, and the loss of every step, (steps,).

    `seconds` is the time that the steps took, those before a stop included; nan where it was not taken.
    """

    denoiser: nn.Module
    losses: Tensor
    seconds: float = math.nan


def edm_weighting(sigma_data: float) -> Weighting:
    r"""Return EDM's weighting (sigma^2 + s_d^2)/(sigma s_d)^2, s_d = `sigma_data`.

    With EDM's preconditioning, every level then has a loss near 1 at the start.
    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), Table 1.
    """
    positive("sigma_data", sigma_data)
    return lambda sigma: (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def constant(_step: int, _steps: int) -> float:
    """Keep the step size."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """Rise from 0 in the first twentieth of the steps, then fall to 0 along half a cosine."""
    fraction, warm = step / steps, 0.05
    if fraction < warm:
        return fraction / warm
    return 0.5 * (1 + math.cos(math.pi * (fraction - warm) / (1 - warm)))


@dataclass(frozen=True)
class Plateau:
    """Rise in the first `warm` steps, then keep the step size, then fall in the last share `fall` to 0.

    Before its fall a run takes the same steps whatever their number is to be: from one checkpoint, training
    can end now, by a fall of its own, and also go on.
    """

    warm: int = 200
    fall: float = 0.1

    def __post_init__(self) -> None:
        integer("warm", self.warm, 1)
        within("fall", self.fall, 0, 1)

    def __call__(self, step: int, steps: int) -> float:
        end = (steps - step) / (self.fall * steps) if self.fall else 1.0
        return min(1.0, (step + 1) / self.warm, end)


def uniform_weighting(sigma: Tensor) -> Tensor:
    """Weight 1 at every level: the plain squared error."""
    return torch.ones_like(sigma)


@dataclass(frozen=True, eq=False)
class Job:
    r"""A denoiser, and how to train it to predict x_0 from x_sigma = x_0 + sigma eps.

    Minimises E[weighting(sigma) ||D(x_sigma, sigma) - x_0||^2 / n] by Adam over `steps` batches, drawn with
    replacement.

    Parameters
    ----------
    denoiser
        Any module with forward(x, sigma) -> (N, n), sigma (N,).
    data
        x_0, (M, n) floating point; held on the training device in the dtype of the weights.
    sigmas
        One level (a DAE), several (each equally likely), or `noise.LogNormal(...)`, `noise.LogUniform(...)`.
    steps, batch_size, lr
        Number of updates, samples in each, step size of Adam.
    schedule
        Factor of the step size at a step of so many: `constant`, `cosine`, `Plateau(...)` or any function.
    ema
        Decay of the running mean of the weights that is returned, in [0, 1); 0 returns the last weights.
        Early on it is at most (1 + t)/(10 + t) at step t.
    weighting
        `edm_weighting(...)`, `uniform_weighting` or any function of sigma. None: EDM's, with the denoiser's
        `sigma_data`, or if it has none, with the root mean square of the data.
    target
        What takes the place of x_0 in the loss, a function of x_sigma (N, n) and sigma (N,) to (N, n): with a
        mixture's `denoise` this is distillation. None: x_0.
    seed
        Of batches, levels and noise (and, through a seed drawn from it, of dropout).
    augment
        Changes each batch of x_0 before the noise is added, for example `mirrored(shape)`. None: nothing.
    known_as
        What stands for the whole job in checkpoints, where the caller answers for it. None: digests of all
        that decides the run.

    Raises ValueError for arguments outside their ranges.
    """

    denoiser: nn.Module
    data: Tensor
    sigmas: float | Sequence[float] | Tensor | Distribution
    steps: int
    batch_size: int = 256
    lr: float = 1e-3
    schedule: Schedule = constant
    ema: float = 0.999
    weighting: Weighting | None = None
    target: Target | None = None
    seed: int = 0
    augment: Augmentation | None = None
    known_as: str | None = None

    def __post_init__(self) -> None:
        if not any(parameter.requires_grad for parameter in self.denoiser.parameters()):
            raise ValueError("denoiser has no parameters to train")
        if self.data.ndim != 2 or not self.data.is_floating_point() or not self.data.numel():
            raise ValueError(
                f"data must be a non-empty floating point tensor (M, n), got {self.data.dtype} of shape "
                f"{tuple(self.data.shape)}; flatten images to (M, C * H * W)"
            )
        if not self.data.isfinite().all():
            raise ValueError("data must be finite, got NaN or infinite entries")
        positive("lr", self.lr)
        within("ema", self.ema, 0, 1)
        integer("steps", self.steps, 1)
        integer("batch_size", self.batch_size, 1)
        integer("seed", self.seed, 0)
        as_distribution(self.sigmas)

    @property
    def loss_weighting(self) -> Weighting:
        """The weighting, or where it is None, EDM's."""
        if self.weighting is not None:
            return self.weighting
        own = getattr(self.denoiser, "sigma_data", None)
        return edm_weighting(self.data.square().mean().sqrt().item() if own is None else float(own))

    def fingerprint(self) -> dict[str, str]:
        """What must be equal for a checkpoint to belong to this job; more steps may be asked for."""
        weights = self.denoiser.state_dict()
        dim = self.data.shape[1]
        levels = torch.logspace(-4, 3, 64)
        points = torch.sin(torch.arange(64.0 * dim)).reshape(64, dim)
        aim = "x0"
        if self.target is not None:
            kind = next(iter(weights.values()))
            aim = digest([self.target(points.to(kind), levels.to(kind))])
        changed = "none"
        if self.augment is not None:
            changed = digest([self.augment(points, torch.Generator().manual_seed(0))])
        return {
            "batch_size": str(self.batch_size),
            "augment": changed,
            "lr": repr(self.lr),
            "ema": repr(self.ema),
            "sigmas": repr(as_distribution(self.sigmas)),
            "weighting": digest([self.loss_weighting(levels)]),
            "target": aim,
            "data": digest([self.data]),
            "network": hashlib.sha256(structure(self.denoiser).encode()).hexdigest()[:16],
            "starting weights": digest(list(weights.values())),
        }

    def past(self, done: int) -> dict[str, str]:
        """What must be equal, besides, in the first `done` steps: their step sizes."""
        factors = [self.schedule(step, self.steps) for step in range(done)]
        return {"step sizes so far": digest([torch.tensor(factors, dtype=torch.float64)])}


def train(
    denoiser: nn.Module,
    data: Tensor,
    sigmas: float | Sequence[float] | Tensor | Distribution,
    *,
    precision: str = "full",
    compile: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    progress: bool = True,
    **settings: Any,
) -> Trained:
    r"""Train `denoiser` to predict x_0 from x_sigma = x_0 + sigma eps.

    A run that was stopped, called again with the same arguments and starting weights, goes on from its
    checkpoint; on a CPU it ends in the same weights, bit for bit. `ensembles.train` trains many small ones.

    In a script started by `accelerate launch` the processes share each batch: all draw it, each computes its
    part of the gradient, all make the same update. The result is that of one process but for the order of
    sums and the masks of dropout. The main process writes the checkpoint; their number may change.

    Parameters
    ----------
    denoiser
        Its weights are trained in place.
    denoiser, data, sigmas, **settings
        As in `Job`, whose settings are `steps`, `batch_size`, `lr`, `schedule`, `ema`, `weighting`, `target`,
        `seed`, `augment` and `known_as`.
    precision
        `full`, that of the weights, or `bfloat16` for products and convolutions (on CUDA with images in
        channels-last layout), while weights, moments, averages and sums that need it stay as they are.
    compile
        Whether to use `torch.compile`, which changes the order of sums and the masks of dropout; a stopped
        run may go on with or without.
    generator
        Source of all draws, on the CPU or on the training device. None: a new one on the CPU with `seed`.
    device
        Where to train; None: where the denoiser is. Of several processes, each has its own instead.
    checkpoint
        Path, written every `checkpoint_every` seconds and at the end; None: none. The one before is kept, and
        taken up, with a warning, where the newest is damaged.
    progress
        Whether to show a bar on stderr.

    Raises
    ------
    ValueError
        For arguments outside their ranges; for a checkpoint that is damaged or of another run; if processes
        that work together were given different arguments.
    FloatingPointError
        At the first loss that is not finite: names the step, the noise levels and the last good checkpoint.
    OSError
        If a checkpoint cannot be written; the last good one is intact.
    """
    job = Job(denoiser, data, sigmas, **settings)
    run = _Run(job, generator, device, choice("precision", precision, PRECISIONS), compile)
    together = run.processes
    if together.count > 1:
        together.agree(run.fingerprint())
    file = None
    if checkpoint is not None:
        file = RunFile(Path(checkpoint), run, checkpoint_every, writes=together.is_main)
    denoiser.train()
    with own_randomness(run.device):
        run.seed_dropout()
        if file is not None:
            file.resume(job.steps)
            together.agree({"steps in the checkpoint": str(run.steps_done)})
        _loop(run, job.steps, file, progress and together.is_main)
        together.wait()  # until the checkpoint is there for all
    run.network.zero_grad(set_to_none=True)
    losses = torch.tensor(run.losses[: job.steps], dtype=torch.float64)
    return Trained(run.averaged_denoiser(), losses, run.seconds)


def of_shape(name: str, value: Tensor, shape: torch.Size, help: str = "") -> Tensor:
    """Return what a function of the caller returned; raises ValueError unless it has `shape`, unbroadcast."""
    if value.shape != shape:
        raise ValueError(f"{name} must return shape {tuple(shape)}, got {tuple(value.shape)}{help}")
    return value


def aim_of(target: Target, x: Tensor, sigma: Tensor) -> Tensor:
    """Return target(x, sigma), (N, n); raises ValueError for another shape."""
    help = "; of a mixture pass `denoise`, since `posterior_mean` takes (S,) for S levels of all points"
    with torch.no_grad():
        return of_shape("target", target(x, sigma), x.shape, help)


def probe_target(target: Target, data: Tensor) -> None:
    """Raise ValueError unless `target` returns (3, n) for 3 points, before any work."""
    aim_of(target, data[:1].expand(3, -1).contiguous(), data.new_ones(3))


def average_decay(ema: float, step: int) -> float:
    """Decay of the running mean of the weights at a step: `ema`, but early on at most (1 + t)/(10 + t)."""
    return min(ema, (1 + step) / (10 + step))


class _Run:
    """All that changes from step to step, and one step."""

    def __init__(
        self,
        job: Job,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        precision: str,
        compile: bool,
    ) -> None:
        self.job, self.network = job, job.denoiser
        self.weighting = job.loss_weighting
        self.distribution = as_distribution(job.sigmas)
        self.processes, self.precision = processes(), precision
        if job.batch_size < self.processes.count:
            raise ValueError(
                f"batch_size must be at least {self.processes.count}, the number of processes that share a "
                f"batch, got {job.batch_size}"
            )
        at = next(parameter for parameter in self.network.parameters() if parameter.requires_grad).device
        self.device = self.processes.device or (at if device is None else torch.device(device))
        self.network.to(self.device)
        if precision == "bfloat16" and self.device.type == "cuda":
            # The layout of images that convolutions on tensor cores take.
            self.network.to(memory_format=torch.channels_last)
        # Another callable with the same weights, whose names are thereby left alone.
        self.forward: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(self.network) if compile else self.network
        )
        self.parameters: list[Tensor] = [
            parameter for parameter in self.network.parameters() if parameter.requires_grad
        ]
        self.data = job.data.detach().to(self.device, self.parameters[0].dtype)
        if job.target is not None:
            probe_target(job.target, self.data)
        # On the processor draws are the same whatever the device.
        self.generator = torch.Generator().manual_seed(job.seed) if generator is None else generator
        # One kernel for all parameters where there is one.
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, lr=job.lr, fused=fused)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.losses: list[float] = []
        self.seconds = 0.0

    def seed_dropout(self) -> None:
        """Seed PyTorch's own generators, from which dropout draws, from ours."""
        self.dropout_seed = int(
            torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
        )
        for stream in streams(self.device):
            stream.manual_seed(self.dropout_seed)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Make update `number` (from 0); returns the loss and the levels of the batch, not looked at yet."""
        draw: dict[str, Any] = {"generator": self.generator, "device": self.generator.device}
        size = self.job.batch_size
        rows = torch.randint(len(self.data), (size,), **draw)
        sigma = self.distribution.sample(size, self.generator).to(self.device, self.data.dtype)
        noise = torch.randn(size, self.data.shape[1], dtype=self.data.dtype, **draw)
        own = self.processes.share(size)
        level = sigma[own]
        aim = self.data.index_select(0, rows[own].to(self.device))
        if self.job.augment is not None:
            aim = of_shape("augment", self.job.augment(aim, self.generator), aim.shape)
        x = torch.addcmul(aim, level[:, None], noise[own].to(self.device))
        if self.job.target is not None:
            aim = aim_of(self.job.target, x, level)
        if self.processes.count > 1:  # each its own masks, which a run that goes on draws again
            for stream in streams(self.device):
                stream.manual_seed(self.dropout_seed + number * self.processes.count + self.processes.index)
        with self._precisely():
            denoised = of_shape("denoiser", self.forward(x, level), x.shape)
        error = (denoised - aim).square().mean(1)
        loss = (of_shape("weighting", self.weighting(level), level.shape) * error).mean()
        if self.processes.count > 1:
            loss = loss * (len(x) / size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach()
        self.processes.add_up([loss, *(p.grad for p in self.parameters if p.grad is not None)])
        self.optimizer.param_groups[0]["lr"] = self.job.lr * self.job.schedule(number, self.job.steps)
        self.optimizer.step()
        with torch.no_grad():
            decay = average_decay(self.job.ema, number)
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss, sigma

    def _precisely(self) -> AbstractContextManager[object]:
        if self.precision == "full":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

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
        state |= optimizer_state(self.optimizer)
        state["generator"] = self.generator.get_state()
        for i, stream in enumerate(streams(self.device)):
            state[f"stream.{i}"] = stream.get_state()
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        head = "network."
        self.network.load_state_dict(
            {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
        )
        restore_optimizer(self.optimizer, state)
        for place, mean in enumerate(self.average):
            mean.copy_(state[f"average.{place}"])
        self.generator.set_state(state["generator"])
        for place, stream in enumerate(streams(self.device)):
            stream.set_state(state[f"stream.{place}"])
        self.losses = state["losses"].tolist()
        self.seconds = state["seconds"].item()

    def fingerprint(self) -> dict[str, str]:
        """What must be equal for a checkpoint to belong to this run."""
        if self.job.known_as is not None:
            return {"known as": self.job.known_as}
        fingerprint = self.job.fingerprint() | {
            "device": self.device.type,
            "generator": digest([self.generator.get_state()]),
        }
        return fingerprint if self.precision == "full" else fingerprint | {"precision": self.precision}

    def past(self, done: int) -> dict[str, str]:
        """What must be equal in the steps done."""
        return self.job.past(done)

    @property
    def steps_done(self) -> int:
        return len(self.losses)


def _loop(run: _Run, steps: int, file: RunFile | None, progress: bool) -> None:
    """Step until `steps`; losses are looked at now and then, since each look waits for the device."""
    from tqdm import tqdm

    done = len(run.losses)
    pending: list[tuple[Tensor, Tensor]] = []
    looked = time.monotonic()
    with tqdm(total=steps, initial=done, desc=f"training on {run.device}", disable=not progress) as bar:
        while done < steps:
            pending.append(run.step(done))
            done += 1
            due = done == steps or (file is not None and file.is_due())
            late = time.monotonic() - looked > _LOOK_EVERY_SECONDS
            if not (due or late or len(pending) >= _LOOK_EVERY_STEPS):
                continue
            mean = _look(run, pending, steps, file)
            seconds = time.monotonic() - looked
            run.seconds += seconds
            rate = len(pending) * run.job.batch_size / seconds
            bar.update(len(pending))
            bar.set_postfix({"loss": f"{mean:.4g}", "samples/s": f"{rate:.4g}"}, refresh=False)
            pending.clear()
            looked = time.monotonic()
            if due:
                if not run.weights_are_finite():
                    raise FloatingPointError(
                        f"the weights are not finite after step {done} of {steps}. {_advice(run, file)}"
                    )
                if file is not None:
                    file.save()


def _look(run: _Run, pending: list[tuple[Tensor, Tensor]], steps: int, file: RunFile | None) -> float:
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


def _advice(run: _Run, file: RunFile | None) -> str:
    good = "none was asked for" if file is None else str(file)
    return f"Last good checkpoint: {good}. Lower lr (now {run.job.lr}) or change the noise levels"


def streams(device: torch.device) -> list[torch.Generator]:
    """PyTorch's own generators that layers such as dropout draw from on `device`."""
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        return [torch.default_generator, torch.cuda.default_generators[index]]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    return [torch.default_generator]


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave PyTorch's own generators as they were found."""
    found = streams(device)
    states = [stream.get_state() for stream in found]
    try:
        yield
    finally:
        for stream, state in zip(found, states, strict=True):
            stream.set_state(state)
