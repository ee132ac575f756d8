"""Values of stored results as plain JSON and back, and how far two of them differ."""

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["decode", "difference", "encode", "plain"]

_ARRAY = {"__array__", "dtype", "shape"}
_PACKED = {"__packed__", "dtype", "shape"}


def plain(value: Any, name: str) -> Any:
    """Return the value of parameter `name` as JSON has it; 1.0 and 1 are one value.

    Raises `TypeError`, naming the parameter, for what is no finite number, text, truth value, list,
    dictionary or None.
    """
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, name) for key, item in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"parameter {name} = {value!r} must be a finite number, text, list, dictionary or None")


def encode(value: Any) -> Any:
    """Return a value as plain JSON: arrays as their bytes, packed where that is shorter.

    Numbers that are not finite become texts. Raises `TypeError` for what a result cannot hold.
    """
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a result's dictionaries must have texts as keys; found {list(value)!r}")
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"a result may hold numbers, texts, lists, dictionaries and NumPy arrays, not {type(value)}"
    )


def _encode_array(value: np.ndarray) -> dict[str, Any]:
    if value.dtype.kind not in "biuf":
        raise TypeError(f"a result may hold arrays of numbers, not of {value.dtype}")
    data = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).tobytes()
    packed = zlib.compress(data, 9)
    key, kept = ("__packed__", packed) if len(packed) < len(data) else ("__array__", data)
    text = base64.b64encode(kept).decode("ascii")
    return {key: text, "dtype": str(value.dtype.newbyteorder("=")), "shape": list(value.shape)}


def decode(value: Any) -> Any:
    """Return the value that was encoded; what was a tuple is a list."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) in (_ARRAY, _PACKED):
        packed = "__packed__" in value
        data = base64.b64decode(value["__packed__" if packed else "__array__"])
        stored = np.dtype(value["dtype"]).newbyteorder("<")
        array = np.frombuffer(zlib.decompress(data) if packed else data, dtype=stored)
        return array.astype(value["dtype"]).reshape(value["shape"])
    if set(value) == {"__float__"}:
        return float(value["__float__"])
    return {key: decode(item) for key, item in value.items()}


def difference(old: Any, new: Any) -> float:
    """Return the largest |new - old| / max |old|, each maximum over one array.

    It is infinite where anything but numbers differs. A number is an array of one, and so is a list of
    numbers; for an array of zeros the error is absolute.
    """
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        return max((difference(old[key], new[key]) for key in old), default=0.0)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if not all(isinstance(item, (int, float)) for item in [*old, *new]):
            return max((difference(a, b) for a, b in zip(old, new, strict=True)), default=0.0)
        old, new = np.array(old), np.array(new)
    numbers = (int, float, np.ndarray)
    if isinstance(old, numbers) and isinstance(new, numbers) and np.shape(old) == np.shape(new):
        a, b = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        scale = np.max(np.abs(a), where=np.isfinite(a), initial=0.0) or 1.0
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where(same, 0.0, np.abs(a - b) / scale)
        return float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))
    return 0.0 if type(old) is type(new) and bool(np.all(old == new)) else math.inf
