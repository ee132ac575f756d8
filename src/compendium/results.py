"""Stored results: what took long to compute is computed once, and never shown as something that it is not.

    record = results.load_or_compute(parametric_network.run, {"num_classes": 3}, witness={"num_classes": 2})
    record.value, record.provenance, record.stale

A result is a small JSON file, `results/<module>/<key>.json`, whose key is a digest of the function's name and
its parameters. It holds the value, where it comes from, a witness (the outcome of a small run of the same
code), and a checksum over all of it. A result made by other code than the present is stale: it is loaded, and
shows itself as such. So does one whose code was edited while it was computed, and one whose data set is no
longer what it was; where the data are absent, as they may be for who only reads, the result stands.

    python -m compendium.results status        # which results are stale or damaged; fails if one is
    python -m compendium.results revalidate    # carry forward stale ones whose witness the code repeats
    python -m compendium.results recompute     # compute the stale ones again
"""

import argparse
import base64
import contextlib
import datetime
import fcntl
import hashlib
import html
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compendium import code_digest
from molrg.support import data_read
from molrg.support.atomic_files import write_atomically
from molrg.support.clone import ROOT

__all__ = [
    "FORMAT",
    "FREE",
    "LARGEST",
    "DamagedResult",
    "Function",
    "Provenance",
    "Record",
    "listed",
    "load",
    "load_or_compute",
    "main",
    "recompute",
    "results_folder",
    "revalidate",
    "stored",
]

FORMAT = 1
FREE = ("dataset", "smoke")
"""Parameters that name the data and the size, in which a witness may differ from its run."""
LARGEST = 1_000_000
"""Largest stored result in bytes: results are committed, so they are to stay small."""

Function = Callable[..., dict[str, Any]]


class DamagedResult(ValueError):
    """A stored result is not, byte for byte, what was written, or not the one that was asked for."""


@dataclass(frozen=True)
class Record:
    """A result and where it comes from.

    `value` is what the function returned. `provenance` holds `parameters`, `code` (digest), `data` (digest of
    each image data set read, by name), `device`, `versions`, `date`, `seconds`, `checksum`, `carried` (how
    later code came to vouch for it) and, where the witness was made later than the result, `witness`.
    `changes` says what is no longer as it was when the result was made: its code, its data. `path` is its
    file.
    """

    value: dict[str, Any]
    provenance: dict[str, Any]
    changes: tuple[str, ...]
    path: Path

    @property
    def stale(self) -> bool:
        """Whether other code than the present or other data made the result."""
        return bool(self.changes)

    def show(self) -> "Provenance":
        """The line of provenance that stands below each figure that uses this result."""
        return Provenance(self)


class Provenance:
    """One line for the reader, with a banner where the result is stale; a display object (HTML and text)."""

    def __init__(self, record: Record):
        made, self.changes = record.provenance, " and ".join(record.changes)
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        self.text = (
            f"Stored result {record.path.parent.name}/{record.path.name}: computed on {made['date'][:10]} "
            f"on {made['device']} in {_duration(made['seconds'])}; {versions}; code {made['code'][:10]}, "
            + "".join(f"data {name} {content[:10]}, " for name, content in made.get("data", {}).items())
            + f"content {made['checksum'][:10]}."
        )
        if carried := [step for step in made["carried"] if "renamed" not in step]:
            last, times = carried[-1], len(carried)
            self.text += (
                f" Carried forward to code {last['code'][:10]} on {last['date'][:10]}, which repeats the "
                f"witness within {last['tolerance']:g}"
                + (f"; {times} times in all, each on record in the file." if times > 1 else ".")
            )

    def __repr__(self) -> str:
        return (f"STALE: made by {self.changes}. " if self.changes else "") + self.text

    def _repr_html_(self) -> str:
        banner = ""
        if self.changes:
            banner = (
                '<strong class="stale" style="color:#fff;background:#b00020;padding:.1em .5em">'
                f"STALE: this result was made by {html.escape(self.changes)}</strong> "
            )
        return f'<p class="provenance">{banner}<small>{html.escape(self.text)}</small></p>'


def results_folder() -> Path:
    """Where results are stored: `MOLRG_RESULTS`, or `results` in the repository."""
    return Path(os.environ.get("MOLRG_RESULTS") or ROOT / "results").resolve()


def load_or_compute(
    function: Function, parameters: Mapping[str, Any], *, witness: Mapping[str, Any], tolerance: float = 1e-3
) -> Record:
    """The stored result of `function(**parameters, workdir=...)`; computed and stored where there is none.

    `function` is a module-level function of the package that returns a dictionary of numbers, texts, lists,
    dictionaries and NumPy arrays. `workdir` is a private folder for its checkpoints: a run that was killed
    goes on from there. Of two processes that ask for the same result, one computes and the other waits.
    `witness` is a set of parameters with which the function takes seconds, computed and stored beside the
    result; `tolerance` is the error, relative to the largest magnitude in each array, within which later code
    must repeat it. The witness makes the run's choices: texts, truth values and None are the same in both,
    whatever has entries has some in both; only those of the parameters in `FREE` may differ.

    Raises `TypeError` for parameters that the function does not take, `ValueError` for a witness that makes
    other choices, `DamagedResult` for a stored file whose
    content changed or belongs to another call, `RuntimeError` where the result is to be computed and its code
    was edited after it was imported, and `OSError` where the result cannot be written; nothing is then
    overwritten.
    """
    parameters, witness = _complete(function, parameters), _complete(function, witness)
    _check_witness(function, parameters, witness)
    code_digest.of_function(function)  # raises, before any work, where the function's code cannot be followed
    path = _path(function, parameters)
    if not path.exists():
        with _locked(path):
            if not path.exists():
                _compute(function, parameters, witness, tolerance, path)
    content = _read(path)
    if (content["function"], content["parameters"]) != (_name(function), parameters):
        raise DamagedResult(
            f"stored result {path} holds {content['function']} at {content['parameters']}, not "
            f"{_name(function)} at {parameters}. Restore it with `git checkout -- {path}`, or delete it to "
            "compute it again"
        )
    _note_use(path)
    return _record(path, content)


def load(path: Path) -> Record:
    """Read one stored result.

    Raises `FileNotFoundError`, and `DamagedResult` for a file with as little as one changed byte.
    """
    return _record(path, _read(path))


def _record(path: Path, content: dict[str, Any]) -> Record:
    provenance = {
        **content["provenance"],
        "parameters": content["parameters"],
        "checksum": content["sha256"],
    }
    changes = ["other code than the present"] * _is_stale(content) + _changed_data(content)
    return Record(_decode(content["value"]), provenance, tuple(changes), path)


def _changed_data(content: dict[str, Any]) -> list[str]:
    """The data sets and checkpoints of a result that are here and not what they were when it was computed."""
    changed = []
    noted = content["provenance"].get("data", {})
    if noted:
        with contextlib.suppress(ImportError):  # the function is gone: the result is stale for that
            importlib.import_module(content["function"].rpartition(".")[0])  # and with it the readers
    for name, before in noted.items():
        try:
            now = data_read.present(name)
        except (LookupError, ValueError) as error:
            changed.append(f"data {name!r} that can no longer be read ({error})")
            continue
        if now not in (None, before):
            changed.append(f"other data {name!r} (digest {before[:10]} then, {now[:10]} now)")
    return changed


def _is_stale(content: dict[str, Any]) -> bool:
    made = content["provenance"]
    vouched = made["carried"][-1]["code"] if made["carried"] else made["code"]
    try:
        return vouched != code_digest.of_name(content["function"])
    except (ImportError, ValueError):  # the function is gone
        return True


def stored() -> list[Path]:
    """The files of all stored results, in alphabetical order."""
    return sorted(results_folder().glob("*/*.json"))


def revalidate(path: Path) -> float:
    """Carry a stale result forward: run its witness with the present code and compare.

    Returns the largest error, relative to the largest magnitude in each array. The file then names the
    present code as one that vouches for the result, in `provenance["carried"]`; the code that made it stays
    on record. A fresh result is left alone. Raises `ValueError`, and changes nothing, where the witness comes
    out differently, where the data changed, or where the present parameters have another result already.
    """
    with _held(path) as (content, function, moved):
        if changed := _changed_data(content):
            raise ValueError(
                f"{path}: made by {' and '.join(changed)}, for which no witness can vouch; put the data back "
                f"or compute it again: python -m compendium.results recompute {path}"
            )
        if not _is_stale(content):
            return 0.0
        code = _unedited(function)
        witness = content["witness"]
        _check_witness(function, content["parameters"], witness["parameters"])
        with tempfile.TemporaryDirectory(prefix="molrg-") as folder:
            again = function(**_complete(function, witness["parameters"]), workdir=Path(folder))
        error = _difference(_decode(witness["value"]), _decode(_encode(dict(again))))
        if not error <= witness["tolerance"]:
            raise ValueError(
                f"{path}: the present code does not repeat its witness (error {error:.2g}, tolerance "
                f"{witness['tolerance']:g}); compute it again: python -m compendium.results recompute {path}"
            )
        step = {"code": code, "date": _today(), "tolerance": witness["tolerance"]}
        content["provenance"]["carried"].append(step)
        content["parameters"] = _complete(function, content["parameters"])
        _write(moved, content)
        if moved != path:
            path.unlink()
    return error


def recompute(path: Path) -> Record:
    """Compute a stored result again with the present code, and replace it once that is done.

    Raises `ValueError` where the present parameters have another result already.
    """
    with _held(path) as (content, function, moved):
        witness = content["witness"]
        parameters = _complete(function, content["parameters"])
        small = _complete(function, witness["parameters"])
        _compute(function, parameters, small, witness["tolerance"], moved)
        if moved != path:
            path.unlink()
    return load(moved)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[tuple[dict[str, Any], Function, Path]]:
    """Lock a stored result and read it: its content, its function, and the path that it is to have now.

    A new parameter with a default changes the key, and so the path.
    """
    with contextlib.ExitStack() as locks:
        locks.enter_context(_locked(path))
        content = _read(path)
        function = _function(content["function"])
        moved = _path(function, _complete(function, content["parameters"]))
        if moved != path:
            locks.enter_context(_locked(moved))
            if moved.exists():
                raise ValueError(
                    f"{path}: the same call with the present code is stored in {moved}; delete {path}"
                )
        yield content, function, moved


@contextlib.contextmanager
def listed() -> Iterator[set[str]]:
    """Collect the results used meanwhile, by this process and those that it starts.

    Yields a set that holds, at the end, their paths relative to the results folder.
    """
    used: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="molrg-") as folder:
        notes = Path(folder, "used")
        before = os.environ.get(_NOTES)
        os.environ[_NOTES] = str(notes)
        try:
            yield used
        finally:
            os.environ.pop(_NOTES)
            if before is not None:
                os.environ[_NOTES] = before
            if notes.exists():
                used.update(notes.read_text(encoding="utf-8").splitlines())


_NOTES = "MOLRG_USED_RESULTS"


def _note_use(path: Path) -> None:
    if notes := os.environ.get(_NOTES):
        with Path(notes).open("a", encoding="utf-8") as file:
            file.write(path.relative_to(results_folder()).as_posix() + "\n")


def _compute(
    function: Function,
    parameters: dict[str, Any],
    witness: dict[str, Any],
    tolerance: float,
    path: Path,
) -> None:
    """Run the function and its witness and store both; the caller holds the lock.

    The digest is that of the code in this process: if the files are edited meanwhile, the result is stale.
    """
    code = _unedited(function)
    workdir = results_folder() / ".work" / path.parent.name / f"{path.stem}-{code[:8]}"
    for part in ("witness", "run"):
        (workdir / part).mkdir(parents=True, exist_ok=True)
    own = witness == parameters  # a smoke run is its own witness
    small = {} if own else _encode(dict(function(**witness, workdir=workdir / "witness")))
    before, start = _cuda_allocations(), time.monotonic()
    with data_read.listed() as read:
        value = _encode(dict(function(**parameters, workdir=workdir / "run")))
    seconds = time.monotonic() - start
    content = {
        "format": FORMAT,
        "function": _name(function),
        "parameters": parameters,
        "value": value,
        "witness": {"parameters": witness, "value": value if own else small, "tolerance": tolerance},
        "provenance": {
            "code": code,
            "data": read,
            "device": _device(before),
            "versions": _versions(),
            "date": _today(),
            "seconds": round(seconds, 1),
            "carried": [],
        },
    }
    _write(path, content)
    shutil.rmtree(workdir)


def _complete(function: Function, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the function's defaults filled in, as plain JSON: the same call, the same key."""
    signature = inspect.signature(function)
    if "workdir" not in signature.parameters:
        raise TypeError(f"{function.__qualname__} must take `workdir`, a folder for its checkpoints")
    try:
        bound = signature.bind(**parameters, workdir=None)
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters if name != "workdir")
        raise TypeError(f"{function.__qualname__}: {error}; its parameters are {known}") from None
    bound.apply_defaults()
    return {name: _plain(value, name) for name, value in bound.arguments.items() if name != "workdir"}


def _check_witness(function: Function, parameters: Mapping[str, Any], witness: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a witness that need not reach all code that the run reaches."""
    for name, value in parameters.items():
        if name not in FREE and (missing := _choices(value) - _choices(witness.get(name))):
            raise ValueError(
                f"{function.__qualname__}: the witness has {name} = {witness.get(name)!r} and the run "
                f"{value!r}, so that it need not reach the same code: give it {', '.join(sorted(missing))} "
                f"too; only {' and '.join(FREE)} may differ"
            )


def _choices(value: Any) -> set[str]:
    """What in a parameter may choose code: texts, truth values, None, and that there are numbers at all."""
    if isinstance(value, (list, dict)):
        entries = value.values() if isinstance(value, dict) else value
        return set().union(*map(_choices, entries))
    return {repr(value) if value is None or isinstance(value, (bool, str)) else "a number"}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, name) for key, item in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value  # 1.0 and 1 are one value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"parameter {name} = {value!r} must be a finite number, text, list, dictionary or None")


def _name(function: Function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _path(function: Function, parameters: Mapping[str, Any]) -> Path:
    call = {"function": _name(function), "parameters": parameters}
    key = hashlib.sha256(_canonical(call)).hexdigest()[:16]
    return results_folder() / function.__module__.partition(".")[2] / f"{key}.json"


def _canonical(content: Mapping[str, Any]) -> bytes:
    """The one way to write a content as JSON, so that bytes can be compared."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _write(path: Path, content: dict[str, Any]) -> None:
    content = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    written = _canonical(content)
    if len(written) > LARGEST:
        raise ValueError(
            f"the result for {path} takes {len(written):,} bytes, more than {LARGEST:,}: return less"
        )
    for leftover in path.parent.glob(f".{path.name}.*.part"):  # of a run that was killed here
        leftover.unlink()
    write_atomically(path, written)


def _read(path: Path) -> dict[str, Any]:
    written = path.read_bytes()
    try:
        content = json.loads(written)
        unsigned = {key: value for key, value in content.items() if key != "sha256"}
        intact = content["sha256"] == hashlib.sha256(_canonical(unsigned)).hexdigest()
        intact = intact and written == _canonical(content)
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedResult(
            f"stored result {path} is damaged: its checksum does not fit its content. Restore it with "
            f"`git checkout -- {path}`, or delete it to compute it again"
        )
    if content["format"] != FORMAT:
        raise ValueError(f"stored result {path} has format {content['format']}; this code reads {FORMAT}")
    return content


def _encode(value: Any) -> Any:
    """A value as plain JSON: arrays as their bytes, and numbers that are not finite as text."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"a result may hold arrays of numbers, not of {value.dtype}")
        data = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        text = base64.b64encode(data.tobytes()).decode("ascii")
        return {"__array__": text, "dtype": str(value.dtype.newbyteorder("=")), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a result's dictionaries must have texts as keys; found {list(value)!r}")
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"a result may hold numbers, texts, lists, dictionaries and NumPy arrays, not {type(value)}"
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__array__", "dtype", "shape"}:
        data = np.frombuffer(
            base64.b64decode(value["__array__"]), dtype=np.dtype(value["dtype"]).newbyteorder("<")
        )
        return data.astype(value["dtype"]).reshape(value["shape"])
    if set(value) == {"__float__"}:
        return float(value["__float__"])
    return {key: _decode(item) for key, item in value.items()}


def _difference(old: Any, new: Any) -> float:
    """Largest |new - old| / max |old|, each maximum over one array; infinite where anything else differs.

    A number is an array of one, and so is a list of numbers; for an array of zeros the error is absolute.
    """
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        return max((_difference(old[key], new[key]) for key in old), default=0.0)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if not all(isinstance(item, (int, float)) for item in [*old, *new]):
            return max((_difference(a, b) for a, b in zip(old, new, strict=True)), default=0.0)
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


def _function(name: str) -> Function:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _unedited(function: Function) -> str:
    """Digest of a function's code; raises `RuntimeError` where its files changed since they were imported."""
    code = code_digest.of_loaded(function)
    if code != code_digest.of_function(function):
        raise RuntimeError(f"the code of {_name(function)} was edited after it was imported: start again")
    return code


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of one result; the system releases it when the process ends, however it ends."""
    lock = results_folder() / ".work" / path.parent.name / f"{path.stem}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cuda_allocations() -> list[int]:
    """How often memory was allocated on each CUDA device since this process began."""
    import torch

    if not torch.cuda.is_initialized():
        return []
    devices = range(torch.cuda.device_count())
    return [torch.cuda.memory_stats(each).get("allocation.all.allocated", 0) for each in devices]


def _device(before: Sequence[int]) -> str:
    """The device that was used since `before`; a CUDA device may be there without a run that asks for it."""
    for index, count in enumerate(_cuda_allocations()):
        if count > (before[index] if before else 0):
            import torch

            return torch.cuda.get_device_name(index)
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"CPU ({model}, {os.cpu_count()} cores)"


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for name in ("scipy", "scikit-learn", "diffusers", "python-flint"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m compendium.results", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("command", choices=["status", "revalidate", "recompute"])
    parser.add_argument("path", nargs="*", type=Path, help="files of results; by default all that are stored")
    given = parser.parse_args(arguments)
    failed = 0
    for path in [p.resolve() for p in given.path] or stored():
        try:
            changes = load(path).changes
            if not changes:
                outcome = "fresh"
            elif given.command == "revalidate":
                outcome = f"carried forward, error {revalidate(path):.1e}"
            elif given.command == "recompute":
                recompute(path)
                outcome = "computed again"
            else:
                outcome = (
                    f"STALE: made by {' and '.join(changes)}: run `make revalidate`, or "
                    "python -m compendium.results recompute"
                )
                failed = 1
        except Exception as error:  # whatever an experiment raises: the other results are still treated
            outcome, failed = f"FAILED: {type(error).__name__}: {error}", 1
        print(
            f"{path.parent.name}/{path.name}: {outcome}",
            file=sys.stderr if "FAILED" in outcome else sys.stdout,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
