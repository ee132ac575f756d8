"""Stored results: what took long to compute is computed once, and never shown as something that it is not.

    record = results.load_or_compute(parametric_network.run, {"num_classes": 3}, witness={"num_classes": 2})
    record.value, record.provenance, record.stale

A result is a small JSON file, `<module>/<key>.json`, whose key is a digest of the function's name and its
parameters. It holds the value, where it comes from, a witness (the outcome of a small run of the same
code), and a checksum over all of it. A result made by other code than the present is stale: it is loaded, and
shows itself as such. So does one whose code was edited while it was computed, and one whose data set is no
longer what it was; where the data are absent, as they may be for who only reads, the result stands.

What a page computes when it is executed for the book is kept in `results/`, which is committed; what any
other run computes, in a folder that git ignores. A page of the book takes over what another run left there.

    python -m compendium.results status        # which results are stale or damaged; fails if one is
    python -m compendium.results revalidate    # carry forward stale ones whose witness the code repeats
    python -m compendium.results recompute     # compute the stale ones again
"""

import argparse
import contextlib
import fcntl
import hashlib
import html
import importlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compendium import code_digest, machine, values
from compendium.paths import reruns_folder, results_folder
from molrg.support import data_read
from molrg.support.atomic_files import write_atomically

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
    "revalidate",
    "stored",
]

FORMAT = 1
FREE = ("dataset", "prior", "smoke")
"""Parameters that name the data and the size, in which a witness may differ from its run."""
LARGEST = 5_000_000
"""Largest stored result of the book in bytes, which is committed; the results of other runs may be larger."""

Function = Callable[..., dict[str, Any]]

_NOTES = "MOLRG_USED_RESULTS"  # the file in which a run for the book notes which results it uses


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


def load_or_compute(
    function: Function, parameters: Mapping[str, Any], *, witness: Mapping[str, Any], tolerance: float = 1e-3
) -> Record:
    """The stored result of `function(**parameters, workdir=...)`; computed and stored where there is none.

    `function` is a module-level function of the package that returns a dictionary of numbers, texts, lists,
    dictionaries and NumPy arrays. `workdir` is a private folder for its checkpoints: a run that was killed
    goes on from there. Of two processes that ask for the same result, one computes and the other waits.
    `witness` is a set of parameters with which the function takes seconds, computed and stored beside the
    result; `tolerance` is the error, relative to the largest magnitude in each array, within which later code
    must repeat it. Texts, truth values and None are the same in both, but for the parameters in `FREE`.

    Raises `TypeError` for parameters that the function does not take, `ValueError` for a witness that makes
    other choices and for a result too large for the book, which is then kept where other runs find it,
    `DamagedResult` for a stored file whose content changed or belongs to another call, `RuntimeError` where
    the result is to be computed and its code was edited after it was imported, and `OSError` where the result
    cannot be written; nothing is then overwritten.
    """
    parameters, witness = _complete(function, parameters), _complete(function, witness)
    _check_witness(function, parameters, witness)
    code_digest.of_function(function)  # raises, before any work, where the function's code cannot be followed
    name, notes = _file(_name(function), parameters), os.environ.get(_NOTES)
    path, rerun = results_folder() / name, reruns_folder() / name
    if not notes and not path.exists():
        path = rerun
    if not path.exists():
        with _locked(path):
            if not path.exists() and rerun.exists() and not load(rerun).stale:
                _write(path, _read(rerun))
            if not path.exists():
                _compute(function, parameters, witness, tolerance, path)
    if notes:
        with Path(notes).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    return load(path)


def load(path: Path) -> Record:
    """Read one stored result.

    Raises `FileNotFoundError`, and `DamagedResult` for a file with as little as one changed byte, or with
    the content of another result.
    """
    content = _read(path)
    provenance = content["provenance"] | {
        "parameters": content["parameters"],
        "checksum": content["sha256"],
    }
    changes = ["other code than the present"] * _is_stale(content) + _changed_data(content)
    return Record(values.decode(content["value"]), provenance, tuple(changes), path)


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
        error = values.difference(values.decode(witness["value"]), values.decode(values.encode(dict(again))))
        if not error <= witness["tolerance"]:
            raise ValueError(
                f"{path}: the present code does not repeat its witness (error {error:.2g}, tolerance "
                f"{witness['tolerance']:g}); compute it again: python -m compendium.results recompute {path}"
            )
        step = {"code": code, "date": machine.today(), "tolerance": witness["tolerance"]}
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
        moved = path.parents[1] / _file(_name(function), _complete(function, content["parameters"]))
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
    workdir = _work(path, f"-{code[:8]}")
    for part in ("witness", "run"):
        (workdir / part).mkdir(parents=True, exist_ok=True)
    own = witness == parameters  # a smoke run is its own witness
    small = {} if own else values.encode(dict(function(**witness, workdir=workdir / "witness")))
    before, start = machine.cuda_allocations(), time.monotonic()
    with data_read.listed() as read:
        value = values.encode(dict(function(**parameters, workdir=workdir / "run")))
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
            "device": machine.device(before),
            "versions": machine.versions(),
            "date": machine.today(),
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
    return {name: values.plain(value, name) for name, value in bound.arguments.items() if name != "workdir"}


def _check_witness(function: Function, parameters: Mapping[str, Any], witness: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a witness that need not reach all code that the run reaches."""
    for name, value in parameters.items():
        if name not in FREE and (missing := _choices(value) - _choices(witness.get(name))):
            raise ValueError(
                f"{function.__qualname__}: the witness has {name} = {witness.get(name)!r} and the run "
                f"{value!r}, so that it need not reach the same code: give it {', '.join(sorted(missing))} "
                f"too; only {', '.join(FREE)} may differ"
            )


def _choices(value: Any) -> set[str]:
    """What in a parameter may choose code: texts, truth values, None, and that there are numbers at all."""
    if isinstance(value, (list, dict)):
        entries = value.values() if isinstance(value, dict) else value
        return set().union(*map(_choices, entries))
    return {repr(value) if value is None or isinstance(value, (bool, str)) else "a number"}


def _name(function: Function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _file(function: str, parameters: Mapping[str, Any]) -> str:
    """Where a result is in its folder, by the function's name and the complete parameters."""
    key = hashlib.sha256(_canonical({"function": function, "parameters": parameters})).hexdigest()[:16]
    return f"{function.rpartition('.')[0].partition('.')[2]}/{key}.json"


def _work(path: Path, suffix: str) -> Path:
    """A file or folder of a result that is being computed, beside the stored ones."""
    return path.parents[1] / ".work" / path.parent.name / (path.stem + suffix)


def _canonical(content: Mapping[str, Any]) -> bytes:
    """The one way to write a content as JSON, so that bytes can be compared."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _write(path: Path, content: dict[str, Any]) -> None:
    content = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    written = _canonical(content)
    if len(written) > LARGEST and path.parents[1] == results_folder() != reruns_folder():
        kept = reruns_folder() / path.parent.name / path.name
        write_atomically(kept, written)
        raise ValueError(
            f"the result for {path} takes {len(written):,} bytes, and the book bears {LARGEST:,}: it is kept "
            f"in {kept}, where other runs find it; for the book let the function return less"
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
    if (right := _file(content["function"], content["parameters"])) != f"{path.parent.name}/{path.name}":
        raise DamagedResult(
            f"stored result {path} holds {content['function']} at {content['parameters']}, which belongs "
            f"into {right}. Restore it with `git checkout -- {path}`, or delete it to compute it again"
        )
    return content


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
    lock = _work(path, ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    failed = False
    for path in [p.resolve() for p in given.path] or stored():
        try:
            outcome = _treat(given.command, path)
        except Exception as error:  # whatever an experiment raises: the other results are still treated
            outcome = f"FAILED: {type(error).__name__}: {error}"
        failed |= outcome.startswith(("STALE", "FAILED"))
        file = sys.stderr if outcome.startswith("FAILED") else sys.stdout
        print(f"{path.parent.name}/{path.name}: {outcome}", file=file)
    return int(failed)


def _treat(command: str, path: Path) -> str:
    changes = load(path).changes
    if not changes:
        return "fresh"
    if command == "revalidate":
        return f"carried forward, error {revalidate(path):.1e}"
    if command == "recompute":
        recompute(path)
        return "computed again"
    return (
        f"STALE: made by {' and '.join(changes)}: run `make revalidate`, or "
        "python -m compendium.results recompute"
    )


if __name__ == "__main__":
    sys.exit(main())
