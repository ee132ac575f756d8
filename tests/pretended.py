"""Devices that are not there: their tensors compute on the CPU, and refuse what CUDA and MPS refuse.

Within `device(kind)` tensors can be made on, and moved to, a device of that kind. An operation that mixes its
tensors with others, a generator of another device, a conversion to NumPy, and float64 on MPS raise as they do
there. What it does not show: kernels, speed, precision below float32, and operations inside of autograd and
vmap.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

KINDS = ("cuda", "mps")
_MOVES: set[Any] = {
    Tensor.to,
    Tensor.copy_,
    Tensor.cpu,
    Tensor.__deepcopy__,
    torch._has_compatible_shallow_copy_type,
}
_INDEXING: set[Any] = {Tensor.__getitem__, Tensor.__setitem__}
_TO_NUMPY: set[Any] = {Tensor.numpy, Tensor.__array__}


class Pretended(Tensor):
    """A tensor of the device."""

    place = torch.device("cpu")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return Pretended.place

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy = _there(self.detach().clone()).requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copy, self.requires_grad) if is_parameter else copy
        return memo[id(self)]


class Generator(torch.Generator):
    """A generator that may say that it is one of the device."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.place = Pretended.place if _is_there(device) else torch.device("cpu")
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = _placed(func, args, kwargs)
        if func is Tensor.to:
            args = tuple(
                torch.device("cpu") if isinstance(each, str | torch.device) else each for each in args
            )
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if there and Pretended.place.type == "mps" and _has_doubles(result):
            raise TypeError(f"{func.__name__}: MPS has no float64")
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            return result
        return tree_map_only(Tensor, _there if there else _here, result)


def _placed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the result of a call is of the device; raises as the device would."""
    name = getattr(func, "__name__", str(func))
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Pretended) for tensor in tensors)
    if func in _INDEXING:
        there = isinstance(args[0], Pretended)
        indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        value = args[2] if func is Tensor.__setitem__ else None
        if not there and any(isinstance(index, Pretended) and index.ndim > 0 for index in indices):
            raise RuntimeError(f"{name}: an index of another device than the tensor's, which is the CPU's")
        if indices and isinstance(value, Tensor) and value.ndim and isinstance(value, Pretended) != there:
            raise RuntimeError(f"{name}: a value of another device")
    elif func in _MOVES:
        there = isinstance(args[0], Pretended) and func is not Tensor.cpu
        for argument in args[1:] if func is Tensor.to else ():
            if isinstance(argument, Tensor):
                there = isinstance(argument, Pretended)
            elif isinstance(argument, str | torch.device):
                there = _is_there(argument)
    elif there and any(not isinstance(tensor, Pretended) and tensor.ndim > 0 for tensor in tensors):
        raise RuntimeError(f"{name}: tensors of two devices")
    if there and func in _TO_NUMPY:
        raise TypeError(f"{name}: a tensor of the device cannot be an array; use Tensor.cpu()")
    if kwargs.get("device") is not None:
        there = _is_there(kwargs["device"])
    generator = kwargs.get("generator")
    if generator is not None and _is_there(generator.device) != there:
        raise RuntimeError(f"{name}: a generator of {generator.device} for a tensor of another device")
    return there


def _is_there(device: Any) -> bool:
    return torch.device(device).type == Pretended.place.type != "cpu"


def _has_doubles(result: Any) -> bool:
    return any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in tree_leaves(result))


def _there(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Pretended) else tensor.as_subclass(Pretended)


def _here(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if isinstance(tensor, Pretended) else tensor


def vmap(function: Callable[..., Any], *options: Any, **more: Any) -> Callable[..., Any]:
    """PyTorch's vmap, which takes tensors apart where no subclass follows: the whole is one operation."""
    mapped = torch.func.vmap(function, *options, **more)

    def call(*arguments: Any) -> Any:
        there = any(isinstance(leaf, Pretended) for leaf in tree_leaves(arguments))
        result = mapped(*tree_map_only(Tensor, _here, arguments))
        return tree_map_only(Tensor, _there, result) if there else result

    return call


_STREAM = SimpleNamespace(is_capturing=lambda: False)  # what optimizers ask of a device's stream


@contextlib.contextmanager
def device(kind: str) -> Iterator[torch.device]:
    """Within, a device of `kind` is one of this machine."""
    there = torch.device(kind, 0)
    own = Generator()
    own.place = there
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with (
        mock.patch.object(Pretended, "place", there),
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.multiple(
            torch.cuda,
            init=lambda: None,
            is_available=lambda: kind == "cuda",
            is_bf16_supported=lambda: True,
            is_current_stream_capturing=lambda: False,
            current_device=lambda: 0,
            default_generators=(own,),
        ),
        mock.patch.object(torch.accelerator, "current_stream", return_value=_STREAM),
        mock.patch.object(torch.backends.mps, "is_available", return_value=kind == "mps"),
        mock.patch.object(torch.mps, "_get_default_mps_generator", return_value=own),
        _Mode(),
    ):
        try:
            yield there
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
