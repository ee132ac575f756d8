"""Ensembles: many small networks trained, and evaluated, as one batched network.

A small network leaves most of a machine idle: its matrix products are too small, and most of the time goes to
starting them. M networks of one structure do each step as one batched product instead. What they are trained
on, noise levels, step sizes, weightings, seeds, may differ.
"""

import copy
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.adam import adam

from molrg.learning.backpropagation import Backpropagation, applies
from molrg.learning.checkpoints import RunFile
from molrg.learning.training import (
    Job,
    Trained,
    aim_of,
    average_decay,
    of_shape,
    own_randomness,
    probe_target,
    streams,
)
from molrg.model.noise import Levels, as_distribution
from molrg.support.checks import nonnegative
from molrg.support.fingerprints import structure

__all__ = ["Stack", "train"]

# Networks in one batch: on a CPU, as many as keep weights, gradients and moments in its cache.
_PARAMETERS_AT_ONCE = {"cpu": 2**21}
_PARAMETERS_AT_ONCE_ELSEWHERE = 2**28
_LOOK_EVERY_SECONDS = 0.5
# With what torch.optim.Adam, which `training` uses, takes by default.
_adam = partial(
    adam,
    max_exp_avg_sqs=[], beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False,
)  # fmt: skip


class Stack:
    """M networks of one structure as one function: `stack(x, sigma)` returns (M, N, n).

    `denoisers` are modules with forward(x, sigma), equal but for the values of their weights and buffers, of
    which the stack holds copies. Raises ValueError if there are none, or two differ in structure.
    """

    def __init__(self, denoisers: Sequence[nn.Module]) -> None:
        if not denoisers:
            raise ValueError("denoisers must hold at least one network")
        first = structure(denoisers[0])
        for i, denoiser in enumerate(denoisers):
            if structure(denoiser) != first:
                raise ValueError(
                    f"denoisers must be equal but for their weights; number {i} differs from number 0: "
                    f"{structure(denoiser)} against {first}"
                )
        self.template = copy.deepcopy(denoisers[0])
        self.parameters, self.buffers = stack_module_state(list(denoisers))
        self.parameters = {name: value.detach() for name, value in self.parameters.items()}
        self._size = len(denoisers)
        # Without the bookkeeping of vmap, which costs a third of the time at small batches.
        self.in_one_call = getattr(self.template, "takes_stacked_weights", False) and all(
            torch.equal(value, value[:1].expand_as(value)) for value in self.buffers.values()
        )

    def __len__(self) -> int:
        return self._size

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return every network's output on x, (M, N, n).

        `x` is (N, n), the same for all, or (M, N, n), one part for each; `sigma` is a number, (N,) or (M, N).
        """
        like = next(iter(self.parameters.values()))
        x = x.to(like)
        level = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
        if self.in_one_call:
            x = x.expand(len(self), *x.shape[-2:])
            rows = level.expand(x.shape[:-1]) if level.ndim else level
            return functional_call(self.template, self.parameters, (x, rows))
        rows = level if level.ndim else level.expand(x.shape[-2])

        def one(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, sigma: Tensor
        ) -> Tensor:
            return functional_call(self.template, (parameters, buffers), (x, sigma))

        where = (0, 0, 0 if x.ndim == 3 else None, 0 if rows.ndim == 2 else None)
        # Dropout, where there is some, is each network's own.
        return vmap(one, where, randomness="different")(self.parameters, self.buffers, x, rows)

    def unstack(self, parameters: dict[str, Tensor] | None = None) -> list[nn.Module]:
        """Return the networks, in evaluation mode; with `parameters`, (M, ...) each, in their place."""
        values = self.parameters if parameters is None else parameters
        own = dict(self.template.named_parameters())
        buffers = dict(self.template.named_buffers())
        networks = []
        for i in range(len(self)):
            # A copy of the template with each network's tensors in the place of its own.
            parts: dict[int, Any] = {
                id(parameter): nn.Parameter(_row(values[name], i), parameter.requires_grad)
                for name, parameter in own.items()
            }
            parts |= {id(buffer): _row(self.buffers[name], i) for name, buffer in buffers.items()}
            networks.append(copy.deepcopy(self.template, parts).eval())
        return networks

    def to(self, device: torch.device) -> None:
        """Move all to `device`."""
        self.template.to(device)
        self.parameters = {name: value.to(device) for name, value in self.parameters.items()}
        self.buffers = {name: value.to(device) for name, value in self.buffers.items()}


def train(
    jobs: Iterable[Job],
    *,
    device: torch.device | str | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    progress: bool = True,
) -> list[Trained]:
    """Train the network of every job; the result is that of `training.train` for each alone.

    Jobs whose networks have one structure, and that have steps, batch size and `ema` in common, are trained
    as one batched network, with the draws that each would make alone; jobs of one seed and with data of one
    size share them. What differs is the order of sums, so that weights agree up to roundoff, which training
    enlarges, and the masks of dropout. A network whose loss stops being finite does not stop the others: its
    losses tell from which step on, and a warning names it.

    Parameters
    ----------
    jobs
        See `training.Job`. Their networks are left as they are.
    device
        Where to train; None: where the networks are.
    checkpoints
        A folder, written every `checkpoint_every` seconds, from which the same jobs go on. None: none.
    progress
        Whether to show one bar over the steps of all networks on stderr, with the mean loss.

    Returns the results in the order of the jobs.

    Raises
    ------
    ValueError
        If there are no jobs, for arguments outside their ranges, or for a damaged checkpoint.
    OSError
        If a checkpoint cannot be written; the last good one is intact.
    """
    jobs = list(jobs)
    if not jobs:
        raise ValueError("jobs must hold at least one training.Job")
    if any(job.augment is not None for job in jobs):
        raise ValueError("networks that are trained together take no augment; train them one by one")
    nonnegative("checkpoint_every", checkpoint_every)
    from tqdm import tqdm

    results: dict[int, Trained] = {}
    total = sum(job.steps for job in jobs)
    own = next(jobs[0].denoiser.parameters()).device
    place = own if device is None else torch.device(device)
    with tqdm(total=total, desc=f"training {len(jobs)} networks on {place}", disable=not progress) as bar:
        for members in _batches(jobs, place):
            run = _Run([jobs[i] for i in members], place)
            file = None
            with own_randomness(place):
                run.seed_dropout()
                if checkpoints is not None:
                    name = hashlib.sha256(json.dumps(run.fingerprint()).encode()).hexdigest()[:16]
                    file = RunFile(Path(checkpoints) / f"{name}.safetensors", run, checkpoint_every)
                    file.resume(run.steps)
                    bar.update(run.steps_done * len(members))
                _loop(run, file, bar)
            results |= dict(zip(members, run.trained(), strict=True))
    _warn_of_divergence(results)
    return [results[i] for i in range(len(jobs))]


def _batches(jobs: list[Job], device: torch.device) -> list[list[int]]:
    """The jobs, by their numbers, that are trained together; equal step sizes side by side."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        key = (structure(job.denoiser), job.data.shape[1], job.steps, job.batch_size, job.ema)
        alike.setdefault(key, []).append(i)
    batches = []
    for listed in alike.values():
        rates = [(jobs[i].lr, jobs[i].schedule) for i in listed]
        members = [listed[place] for places in _equal(rates) for place in places]
        size = sum(parameter.numel() for parameter in jobs[members[0]].denoiser.parameters())
        limit = _PARAMETERS_AT_ONCE.get(device.type, _PARAMETERS_AT_ONCE_ELSEWHERE)
        parts = -(-len(members) * size // limit)
        each = -(-len(members) // parts)
        batches += [members[start : start + each] for start in range(0, len(members), each)]
    return batches


class _Run:
    """One batch of networks: all that changes from step to step, and one step."""

    def __init__(self, jobs: list[Job], device: torch.device) -> None:
        self.jobs, self.device = jobs, device
        self.steps, self.ema = jobs[0].steps, jobs[0].ema
        self.stack = Stack([job.denoiser for job in jobs])
        self.stack.to(device)
        self.stack.template.train()
        # Gradients of the matrices of linear layers come transposed in memory, and so are these kept.
        self.stack.parameters = {
            name: _transposed(_transposed(value).contiguous())
            for name, value in self.stack.parameters.items()
        }
        template = self.stack.template
        learns = {name for name, value in template.named_parameters() if value.requires_grad}
        learned = {name: value for name, value in self.stack.parameters.items() if name in learns}
        self.learned = [value.requires_grad_() for value in learned.values()]
        gradients, first, second = (
            {name: torch.zeros_like(value) for name, value in learned.items()} for _ in range(3)
        )
        self._gradients = list(gradients.values())
        self.average = {name: value.detach().clone() for name, value in self.stack.parameters.items()}
        self._means = [self.average[name] for name in learned]
        self._kept = {
            "parameters": self.stack.parameters, "average": self.average, "first": first, "second": second,
        }  # fmt: skip
        # In one piece: many small arrays that stay would cut up the memory that steps and checkpoints reuse.
        self.losses = self.learned[0].new_empty(self.steps, len(jobs))
        self.steps_done = 0

        # Members with the same step size are a slice of every stacked tensor, and one call of Adam: as a
        # function, since the object's own bookkeeping takes up to a tenth of a step.
        self._fused = device.type in ("cpu", "cuda")
        stacks = {"params": learned, "grads": gradients, "exp_avgs": first, "exp_avg_sqs": second}
        rates = [(job.lr, job.schedule) for job in jobs]
        self._updates = []
        for rate in dict.fromkeys(rates):
            part = slice(rates.index(rate), rates.index(rate) + rates.count(rate))
            tensors: dict[str, Any] = {
                key: [_transposed(value.detach())[part] for value in values.values()]
                for key, values in stacks.items()
            }
            counts = [torch.zeros((), device=device if self._fused else "cpu") for _ in learned]
            self._updates.append((rate, tensors | {"state_steps": counts}))
        self._by_hand = (
            Backpropagation(template, learned, gradients, jobs[0].batch_size)
            if self.stack.in_one_call and applies(template)
            else None
        )

        self.batches = _Batches(jobs, self.learned[0])
        self._weightings = [
            (jobs[members[0]].loss_weighting, torch.tensor(members, device=device))
            for members in _equal([_weighting_key(job) for job in jobs])
        ]
        self._sigma: Tensor | None = None
        self._weights: Tensor

    def seed_dropout(self) -> None:
        """Seed PyTorch's own generators, from which dropout draws."""
        for stream in streams(self.device):
            stream.manual_seed(self.batches.dropout_seed)

    def step(self) -> Tensor:
        """Make the next update; returns the loss of every network, (M,)."""
        number = self.steps_done
        x, sigma, aim = self.batches.draw()
        if sigma is not self._sigma:
            self._sigma, self._weights = sigma, self._weigh(sigma)
            if self._by_hand is not None:
                self._by_hand.at(sigma, self._weights)
        if self._by_hand is not None:
            loss = self._by_hand(x, aim)
        else:
            denoised = of_shape("denoiser", self.stack(x, sigma), x.shape)
            loss = (self._weights * (denoised - aim).square().mean(-1)).mean(-1)
            torch._foreach_copy_(self._gradients, torch.autograd.grad(loss.sum(), self.learned))
        with torch.no_grad():
            for (lr, schedule), tensors in self._updates:
                _adam(**tensors, lr=lr * schedule(number, self.steps), fused=self._fused)
            torch._foreach_lerp_(self._means, self.learned, 1 - average_decay(self.ema, number))
        self.losses[number] = loss.detach()
        self.steps_done += 1
        return self.losses[number]

    def trained(self) -> list[Trained]:
        """The results, in the order of the jobs."""
        losses = self.losses.cpu().double()
        networks = self.stack.unstack(self.average)
        return [Trained(network, losses[:, i].clone()) for i, network in enumerate(networks)]

    def past(self, done: int) -> dict[str, str]:
        """Nothing: the fingerprint holds all step sizes, as the number of steps is fixed."""
        return {}

    def fingerprint(self) -> dict[str, str]:
        """What must be equal for a checkpoint to belong to this run."""
        jobs = [job.fingerprint() | job.past(job.steps) | {"seed": str(job.seed)} for job in self.jobs]
        digest = hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:16]
        # The names in `state` are part of it: a file that has others is not taken for one of this run.
        return {
            "networks": digest,
            "steps": str(self.steps),
            "device": self.device.type,
            "state": ", ".join(self._kept),
        }

    def state(self) -> dict[str, Tensor]:
        """Everything a later run needs to go on, as named tensors."""
        state = {
            f"{kind}.{name}": value for kind, values in self._kept.items() for name, value in values.items()
        }
        for place, generator in enumerate(self.batches.generators):
            state[f"generator.{place}"] = generator.get_state()
        state |= {f"stream.{i}": stream.get_state() for i, stream in enumerate(streams(self.device))}
        state["losses"] = self.losses[: self.steps_done]
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        with torch.no_grad():
            for kind, values in self._kept.items():
                for name, value in values.items():
                    value.copy_(state[f"{kind}.{name}"])
        for place, generator in enumerate(self.batches.generators):
            generator.set_state(state[f"generator.{place}"])
        for place, stream in enumerate(streams(self.device)):
            stream.set_state(state[f"stream.{place}"])
        self.steps_done = len(state["losses"])
        self.losses[: self.steps_done] = state["losses"]
        for _, tensors in self._updates:
            for count in tensors["state_steps"]:
                count.fill_(self.steps_done)

    def _weigh(self, sigma: Tensor) -> Tensor:
        if len(self._weightings) == 1:
            return of_shape("weighting", self._weightings[0][0](sigma), sigma.shape)
        weights = torch.empty_like(sigma)
        for weighting, members in self._weightings:
            weights[members] = of_shape("weighting", weighting(sigma[members]), sigma[members].shape)
        return weights


class _Batches:
    """The noisy samples on which M networks make a step, drawn as each would draw them alone."""

    def __init__(self, jobs: list[Job], like: Tensor) -> None:
        self.device, self.dtype = like.device, like.dtype
        self.members, self.size = len(jobs), jobs[0].batch_size
        sets = list({id(job.data): job.data for job in jobs}.values())
        self.data = torch.cat([data.detach().to(like) for data in sets])
        starts = dict(zip(map(id, sets), accumulate([0, *map(len, sets[:-1])]), strict=True))
        self._offset = torch.tensor([starts[id(job.data)] for job in jobs], device=self.device)[:, None]

        # Draws depend on the seed, the number of samples, and the levels unless there is only one of these.
        distributions = [as_distribution(job.sigmas) for job in jobs]
        single = [isinstance(each, Levels) and len(each.sigmas) == 1 for each in distributions]
        groups = _equal(
            [
                (job.seed, len(job.data), None if one else repr(each))
                for job, each, one in zip(jobs, distributions, single, strict=True)
            ]
        )
        which = [next(g for g, group in enumerate(groups) if i in group) for i in range(len(jobs))]
        self._which = torch.tensor(which, device=self.device)
        self._counts = [len(jobs[group[0]].data) for group in groups]
        self._distributions = [distributions[group[0]] for group in groups]
        # On the processor draws are the same whatever the device.
        self.generators = [torch.Generator().manual_seed(jobs[group[0]].seed) for group in groups]
        # Each takes the seed of dropout from its generator when it is trained alone.
        self.dropout_seed, *_ = [
            int(torch.randint(2**62, (), generator=generator)) for generator in self.generators
        ]
        # A level that stays, rounded as a draw of it would be; zero stands for several.
        fixed = [
            each.sample(1, self.generators[0]).item() if one else 0.0
            for each, one in zip(distributions, single, strict=True)
        ]
        self._fixed = torch.tensor(fixed, dtype=self.dtype, device=self.device)[:, None]
        # Where all stay, these are the levels of every step.
        self._sigma = self._fixed.repeat(1, self.size) if all(single) else None
        self._targets = [
            (target, torch.tensor(members, device=self.device))
            for members in _equal([job.target for job in jobs])
            if (target := jobs[members[0]].target) is not None
        ]
        for target, _ in self._targets:
            probe_target(target, self.data)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy samples (M, B, n), their levels (M, B) and what the networks are to return (M, B, n)."""
        size, dim = self.size, self.data.shape[1]
        rows, levels, noise = [], [], []
        for generator, count, distribution in zip(
            self.generators, self._counts, self._distributions, strict=True
        ):
            rows.append(torch.randint(count, (size,), generator=generator))
            levels.append(distribution.sample(size, generator).to(self.dtype))
            noise.append(torch.randn(size, dim, dtype=self.dtype, generator=generator))
        sigma = self._sigma
        if sigma is None:
            sigma = torch.where(self._fixed > 0, self._fixed, self._each(levels))
        places = self._each(rows) + self._offset
        aim = self.data.index_select(0, places.flatten()).unflatten(0, places.shape)
        x = torch.addcmul(aim, sigma[..., None], self._each(noise))
        for target, members in self._targets:
            part = aim_of(target, x[members].flatten(0, 1), sigma[members].flatten())
            aim[members] = part.unflatten(0, (len(members), size))
        return x, sigma, aim

    def _each(self, drawn: list[Tensor]) -> Tensor:
        """What was drawn, for each network, on the device."""
        if len(drawn) == 1:
            return drawn[0].to(self.device).expand(self.members, *drawn[0].shape)
        return torch.stack(drawn).to(self.device).index_select(0, self._which)


def _loop(run: _Run, file: RunFile | None, bar: Any) -> None:
    """Step to the end; losses are looked at now and then, since each look waits for the device."""
    looked, shown = time.monotonic(), run.steps_done
    while run.steps_done < run.steps:
        loss = run.step()
        done = run.steps_done
        if file is not None and (done == run.steps or file.is_due()):
            file.save()
        if done == run.steps or time.monotonic() - looked > _LOOK_EVERY_SECONDS:
            bar.set_postfix(loss=f"{loss.nanmean().item():.4g}", refresh=False)
            bar.update((done - shown) * len(run.jobs))
            looked, shown = time.monotonic(), done


def _warn_of_divergence(results: dict[int, Trained]) -> None:
    diverged = [
        f"number {i} from step {int(trained.losses.isfinite().int().argmin()) + 1} on"
        for i, trained in sorted(results.items())
        if not trained.losses.isfinite().all()
    ]
    if diverged:
        warnings.warn(
            f"the loss is not finite in {len(diverged)} of {len(results)} networks: {', '.join(diverged)}; "
            "lower their lr or change their noise levels",
            RuntimeWarning,
            stacklevel=3,
        )


def _equal(keys: Sequence[Any]) -> list[list[int]]:
    """The places of equal keys, in order of first appearance."""
    places: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return list(places.values())


def _weighting_key(job: Job) -> Any:
    """Equal for jobs with the same weighting."""
    if job.weighting is not None:
        return job.weighting
    own = getattr(job.denoiser, "sigma_data", None)
    return id(job.data) if own is None else float(own)


def _row(stacked: Tensor, i: int) -> Tensor:
    """The part of network i, in memory of its own."""
    return stacked[i].detach().clone(memory_format=torch.contiguous_format)


def _transposed(value: Tensor) -> Tensor:
    """Stacked matrices transposed, anything else as it is."""
    return value.mT if value.ndim == 3 else value
