"""Results are computed once, stored whole or not at all, and never pass for something that they are not."""

import ast
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compendium import code_digest as digest
from compendium import machine, results, values
from compendium.results import DamagedResult

EXPERIMENT = '''
"""An experiment that counts its runs, beside the folder of the package."""

import os
import time
from pathlib import Path

import numpy as np

SCALE = 2


def _double(number):
    """Twice the number."""
    return Counter(number).twice()


def unrelated():
    return 1


class Counter:
    def __init__(self, start):
        self.start = start

    def twice(self):
        return SCALE * self.start

    def half(self):
        return self.start / SCALE

    fraction = half


def run(number, noise=0.5, seeds=(0, 1), *, workdir):
    """The experiment."""
    with open(os.environ["RUNS"], "a") as file:
        file.write(f"{number}\\n")
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return {"double": _double(number), "array": np.arange(3, dtype=np.float32) * noise}
'''

IMAGES = """
from pathlib import Path
from types import SimpleNamespace

from molrg.support import data_read


def load(name):
    text = Path(name).read_text()
    if text == "damaged":
        raise ValueError(f"{name} is not a readable text")
    data_read.note(name, f"{len(text):064}")
    return SimpleNamespace(digest=f"{len(text):064}")


@data_read.reader("")
def present(name):
    return load(name).digest if Path(name).exists() else None
"""
"""Data sets that are text files; the digest is the number of letters."""

READER = """
from molrg import images


def run(dataset, *, workdir):
    return {"digest": images.load(dataset).digest}
"""

TORCH = """
class cuda:
    is_initialized = staticmethod(lambda: False)

__version__ = "0"
"""
"""What the store asks of PyTorch, which takes seconds to import."""


PARTS = ("results.py", "code_digest.py", "machine.py", "paths.py", "values.py")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages' frame with the experiment `experiments.trial`, used by subprocesses."""
    source, folder = Path(results.__file__).parents[1], tmp_path / "src"
    frame = [source / "compendium" / name for name in PARTS]
    frame += [source / "molrg" / "support" / name for name in ("data_read.py", "atomic_files.py", "clone.py")]
    for path in frame:
        (copy := folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), encoding="utf-8")
    (folder / "experiments").mkdir()
    for package in ("compendium", "molrg", "molrg/support", "experiments"):
        (folder / package / "__init__.py").write_text("")
    (folder / "experiments" / "trial.py").write_text(EXPERIMENT)
    (tmp_path / "src" / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    monkeypatch.setenv("MOLRG_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path


CALL = "results.load_or_compute(trial.run, {'number': 3}, witness={'number': 1})"


def start(code: str = f"print({CALL}.show())", **environment: str) -> subprocess.Popen[str]:
    source = f"from compendium import results\nfrom experiments import trial\n{textwrap.dedent(code)}"
    command = [sys.executable, "-W", "ignore", "-c", source]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


def call(code: str = f"print({CALL}.show())", **environment: str) -> str:
    process = start(code, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def command(*arguments: str) -> tuple[int, str]:
    process = subprocess.run(
        [sys.executable, "-m", "compendium.results", *arguments], capture_output=True, text=True, timeout=60
    )
    return process.returncode, process.stdout + process.stderr


def runs(package: Path) -> list[str]:
    return (package / "runs").read_text().split()


def stored(package: Path) -> Path:
    (path,) = (package / "results" / "trial").glob("*.json")
    return path


def edit(package: Path, old: str, new: str) -> None:
    path = package / "src" / "experiments" / "trial.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


class TestStore:
    """One result in one folder, computed by subprocesses."""

    def test_a_result_is_computed_once_and_then_loaded(self, package: Path) -> None:
        first, second = call(), call()
        assert runs(package) == ["1", "3"]  # the witness and the run
        assert first == second
        assert first.startswith("Stored result trial/")
        assert not list((package / "results" / ".work").glob("**/run"))

    def test_values_come_back_as_they_were(self, package: Path) -> None:
        code = f"v = {CALL}.value; print(v['double'], v['array'].dtype, v['array'].tolist())"
        assert call(code) == call(code) == "6 float32 [0.0, 0.5, 1.0]\n"

    def test_the_same_call_has_one_key_however_it_is_written(self, package: Path) -> None:
        call()
        for same in ("{'number': 3.0}", "{'noise': 0.5, 'number': 3}", "{'number': 3, 'seeds': [0, 1]}"):
            call(f"results.load_or_compute(trial.run, {same}, witness={{'number': 1}})")
        assert runs(package) == ["1", "3"]
        call("results.load_or_compute(trial.run, {'number': 4}, witness={'number': 1})")
        assert runs(package) == ["1", "3", "1", "4"]

    def test_two_processes_at_once_compute_once(self, package: Path) -> None:
        processes = [start(PAUSE="0.5") for _ in range(2)]
        shown = {process.communicate(timeout=60)[0] for process in processes}
        assert [process.returncode for process in processes] == [0, 0]
        assert len(shown) == 1
        assert runs(package) == ["1", "3"]

    @pytest.mark.parametrize("where", [0, 100, -3])
    def test_one_flipped_byte_is_found_and_the_fix_is_named(self, package: Path, where: int) -> None:
        call()
        path = stored(package)
        content = bytearray(path.read_bytes())
        content[where] ^= 1
        path.write_bytes(content)
        with pytest.raises(DamagedResult, match="is damaged: its checksum does not fit") as caught:
            results.load(path)
        assert f"git checkout -- {path}" in str(caught.value)
        process = start()
        assert "DamagedResult" in process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert runs(package) == ["1", "3"]
        said = f"trial/{path.name}: FAILED: DamagedResult: {caught.value}\n"
        assert command("status") == (1, said)

    @pytest.mark.parametrize("kept", [0, 1, 0.5, -1])
    def test_a_truncated_file_is_found(self, package: Path, kept: float) -> None:
        call()
        path = stored(package)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
        with pytest.raises(DamagedResult, match="is damaged"):
            results.load(path)

    def test_other_code_makes_a_result_stale_and_visibly_so(self, package: Path) -> None:
        call()
        edit(package, "SCALE = 2", "SCALE = 4")
        shown = call(f"r = {CALL}; print(r.stale); print(r.show()); print(r.show()._repr_html_())")
        stale, text, html = shown.splitlines()
        assert stale == "True"
        assert text.startswith("STALE: made by other code than the present. Stored result")
        assert "STALE: this result was made by other code than the present</strong>" in html
        assert runs(package) == ["1", "3"]
        status, said = command("status")
        assert status == 1
        assert "STALE: made by other code than the present: run `make revalidate`, or" in said

    def test_edits_that_the_run_does_not_reach_leave_it_fresh(self, package: Path) -> None:
        call()
        edit(package, '"""Twice the number."""', '"""The number, twice."""  # said otherwise')
        edit(package, "def unrelated():\n    return 1", "def unrelated():\n    return 2")
        assert call(f"print({CALL}.stale)") == "False\n"
        assert command("status")[0] == 0

    def test_a_method_counts_under_whatever_name_it_is_called(self, package: Path) -> None:
        edit(package, "return Counter(number).twice()", "return Counter(number).fraction * 0 + 6")
        edit(package, "fraction = half", "fraction = property(half)")
        call()
        edit(package, "return self.start / SCALE", "return self.start / SCALE / 2")
        assert call(f"print({CALL}.stale)") == "True\n"

    def test_functions_of_one_name_in_modules_of_one_name_are_kept_apart(self, package: Path) -> None:
        other = package / "src" / "experiments" / "others" / "trial.py"
        other.parent.mkdir()
        other.write_text(EXPERIMENT.replace("SCALE = 2", "SCALE = 7") + "\nwalk = run\n")
        call()
        again = CALL.replace("trial.run", "others_trial.run")
        code = f"from experiments.others import trial as others_trial; print({again}.value['double'])"
        assert call(code) == "21\n"
        assert len(list((package / "results").glob("*trial/*.json"))) == 2

    def test_a_result_of_another_call_is_refused(self, package: Path) -> None:
        call()
        first = stored(package)
        call(CALL.replace("'number': 3", "'number': 4"))
        (second,) = [path for path in first.parent.glob("*.json") if path != first]
        kept = first.read_bytes()
        second.rename(first)
        second.write_bytes(kept)
        process = start()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert "DamagedResult" in said
        assert "'number': 4" in said
        assert runs(package) == ["1", "3", "1", "4"]
        status, said = command("status")
        assert status == 1
        assert said.count("FAILED: DamagedResult: stored result") == 2
        assert f"which belongs into trial/{second.name}. Restore it with `git checkout -- {first}`" in said

    def test_a_result_too_large_for_the_book_is_kept_where_other_runs_find_it(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MOLRG_RESULTS")
        (package / "book").mkdir()
        edit(package, "np.arange(3", "np.random.default_rng(0).random(600_000) + np.arange(1")
        for _ in range(2):  # the second time it is there, and as large
            said = start(f"with results.listed() as used: {CALL}").communicate(timeout=60)[1]
            (kept,) = (package / "results" / ".reruns" / "trial").glob("*.json")
            assert f"bytes, and the book bears 5,000,000: it is kept in {kept}, where other runs" in said
            assert not list((package / "results").glob("trial/*"))
        assert call(f"print({CALL}.value['double'])") == "6\n"
        assert runs(package) == ["1", "3"]

    def test_the_results_of_a_page_of_the_book_and_of_other_runs_are_kept_apart(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MOLRG_RESULTS")
        (package / "book").mkdir()
        call()
        (rerun,) = (package / "results" / ".reruns" / "trial").glob("*.json")
        assert not list((package / "results").glob("trial/*"))
        call()
        assert runs(package) == ["1", "3"]
        call(f"with results.listed() as used: {CALL}")  # taken over
        assert stored(package).read_bytes() == rerun.read_bytes()
        assert runs(package) == ["1", "3"]
        edit(package, "SCALE = 2", "SCALE = 3")
        stored(package).unlink()
        call(f"with results.listed() as used: {CALL}")  # not taken over, since it is stale
        assert runs(package) == ["1", "3", "1", "3"]
        rerun.unlink()
        assert call(f"print({CALL}.value['double'])") == "9\n"  # of the book
        assert runs(package) == ["1", "3", "1", "3"]

    def test_outside_a_clone_results_are_kept_in_the_users_cache(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MOLRG_RESULTS")
        monkeypatch.setenv("XDG_CACHE_HOME", str(package / "cache"))
        before = {path.name for path in package.iterdir()}
        call()
        assert len(list((package / "cache" / "molrg" / "results" / "trial").glob("*.json"))) == 1
        assert {path.name for path in package.iterdir()} - before == {"cache", "runs"}

    def test_an_edit_during_a_run_loses_nothing_and_shows(self, package: Path) -> None:
        process = start(f"r = {CALL}; print(r.value['double'], r.stale)", PAUSE="1.5")
        while not (package / "runs").exists():
            time.sleep(0.02)
        edit(package, "SCALE = 2", "SCALE = 4")
        out, err = process.communicate(timeout=60)
        assert out == "6 True\n", err
        assert call(f"r = {CALL}; print(r.value['double'], r.stale)") == "6 True\n"
        assert command("status")[0] == 1

    def test_code_that_was_edited_after_its_import_computes_nothing(self, package: Path) -> None:
        path = package / "src" / "experiments" / "trial.py"
        code = f"""
            import pathlib
            path = pathlib.Path({str(path)!r})
            path.write_text(path.read_text().replace("SCALE = 2", "SCALE = 4"))
            {CALL}
        """
        process = start(code)
        said = process.communicate(timeout=60)[1]
        assert "experiments.trial.run was edited after it was imported: start again" in said
        assert not (package / "runs").exists()

    def test_code_that_repeats_the_witness_carries_the_result_forward(self, package: Path) -> None:
        call()
        before = json.loads(stored(package).read_text())
        edit(package, "return SCALE * self.start", "return self.start * SCALE")
        assert command("status")[0] == 1
        status, said = command("revalidate")
        assert status == 0, said
        assert "carried forward, error 0.0e+00" in said
        assert "it repeats" not in said
        assert runs(package) == ["1", "3", "1"]
        assert "Carried forward to code" in call()
        after = json.loads(stored(package).read_text())
        assert after["provenance"]["code"] == before["provenance"]["code"]
        assert after["value"] == before["value"]
        assert command("status")[0] == 0
        edit(package, "return self.start * SCALE", "return SCALE * self.start * 1")
        assert command("revalidate")[0] == 0
        assert call().endswith(
            "which repeats the witness within 0.001; 2 times in all, each on record in the file.\n"
        )

    def test_a_new_parameter_with_a_default_does_not_lose_the_result(self, package: Path) -> None:
        call()
        edit(package, "seeds=(0, 1), *", "seeds=(0, 1), mode='plain', *")
        assert command("revalidate")[0] == 0
        assert call(f"print({CALL}.value['double'])") == "6\n"
        assert runs(package) == ["1", "3", "1"]

    @pytest.mark.parametrize("how", ["revalidate", "recompute"])
    def test_a_moved_result_leaves_one_file_and_replaces_no_other(self, package: Path, how: str) -> None:
        call()
        old = stored(package)
        edit(package, "seeds=(0, 1), *", "seeds=(0, 1), mode='plain', *")
        before = old.read_bytes()
        call()
        (new,) = [path for path in old.parent.glob("*.json") if path != old]
        kept = new.read_bytes()
        status, said = command(how)
        assert status == 1
        assert f"is stored in {new}; delete {old}" in said
        assert (old.read_bytes(), new.read_bytes()) == (before, kept)
        new.unlink()
        assert command(how)[0] == 0
        assert list(old.parent.glob("*.json")) == [new]
        assert command("status")[0] == 0

    def test_a_function_that_fails_does_not_keep_others_from_being_treated(self, package: Path) -> None:
        call()
        call(CALL.replace("'number': 3", "'number': 4").replace("'number': 1", "'number': 2"))
        edit(package, '"""The experiment."""', "[][number - 2] if number == 2 else None")
        status, said = command("revalidate")
        assert status == 1
        assert "FAILED: IndexError: list index out of range" in said
        assert "carried forward, error 0.0e+00" in said

    @pytest.mark.parametrize(
        ("run", "witness", "missing"),
        [
            ("{'number': 3, 'noise': 'plain'}", "{'number': 1, 'noise': 'other'}", "'plain'"),
            ("{'number': 3, 'noise': True}", "{'number': 1, 'noise': False}", "True"),
            ("{'number': 3, 'noise': None}", "{'number': 1}", "None"),
            ("{'number': 3}", "{'number': 1, 'noise': None}", "a number"),
            ("{'number': 3, 'seeds': [1]}", "{'number': 1, 'seeds': []}", "a number"),
            ("{'number': 3, 'seeds': ['a', 'b']}", "{'number': 1, 'seeds': ['a']}", "'b'"),
            ("{'number': 3, 'seeds': {'a': 'b'}}", "{'number': 1, 'seeds': {'a': 'c'}}", "'b'"),
        ],
    )
    def test_a_witness_that_need_not_reach_the_same_code_is_refused_before_any_work(
        self, package: Path, run: str, witness: str, missing: str
    ) -> None:
        process = start(f"results.load_or_compute(trial.run, {run}, witness={witness})")
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert f"reach the same code: give it {missing} too; only dataset, prior, smoke may differ" in said
        assert not (package / "runs").exists()

    def test_a_stored_witness_that_need_not_reach_the_same_code_carries_nothing(self, package: Path) -> None:
        call()
        path = stored(package)
        content = json.loads(path.read_text())
        content["witness"]["parameters"]["noise"] = None
        code = f"""
            import json
            from pathlib import Path
            results._write(Path({str(path)!r}), json.loads({json.dumps(content)!r}))
        """
        call(code)
        edit(package, "SCALE = 2", "SCALE = 1 + 1")
        before = path.read_bytes()
        assert "need not reach the same code" in command("revalidate")[1]
        assert path.read_bytes() == before

    def test_code_that_does_not_repeat_the_witness_is_refused(self, package: Path) -> None:
        call()
        before = stored(package).read_bytes()
        edit(package, "SCALE = 2", "SCALE = 3")
        status, said = command("revalidate")
        assert status == 1
        assert "does not repeat its witness (error 0.5, tolerance 0.001)" in said
        assert f"python -m compendium.results recompute {stored(package)}" in said
        assert stored(package).read_bytes() == before
        assert command("recompute")[0] == 0
        assert call(f"print({CALL}.value['double'], {CALL}.stale)") == "9 False\n"

    def test_a_run_that_is_killed_leaves_nothing_that_is_shown(self, package: Path) -> None:
        process = start(PAUSE="30")
        while not (package / "runs").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert (
            not list((package / "results" / "trial").glob("*"))
            if (package / "results" / "trial").exists()
            else 1
        )
        assert call(f"print({CALL}.value['double'])") == "6\n"  # the lock went with the process

    def test_a_write_that_is_killed_leaves_the_old_file_and_no_litter(self, package: Path) -> None:
        uninterrupted = json.loads(call(f"import json; print(json.dumps({CALL}.value['double']))"))
        path = stored(package)
        path.unlink()
        for moment in ("os.fsync", "os.replace"):
            code = f"""
                import os, signal, pathlib
                def die(*arguments, **names): os.kill(os.getpid(), signal.SIGKILL)
                {"os.fsync = die" if moment == "os.fsync" else "pathlib.Path.replace = die"}
                {CALL}
            """
            process = start(code)
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
            assert not path.exists()
            assert list(path.parent.glob(".*.part"))
        assert call(f"print({CALL}.value['double'])") == f"{uninterrupted}\n"
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    def test_killed_at_random_moments_it_holds_the_whole_result_or_none(self, package: Path) -> None:
        """A process that stores a result over and over, first where there is none, then over an old one.

        Where a kill falls is chance and depends on the machine; the test above kills at each step of a write.
        """
        edit(package, "np.arange(3", "np.arange(70_000")  # writing takes most of the time
        expected = call(f"print({CALL}.value['array'].sum())")
        path, dice = stored(package), random.Random(0)
        code = f"""
            print("ready", flush=True)
            while True:
                {CALL}
                results.recompute(results.stored()[0])
                results.stored()[0].unlink()
        """
        for _ in range(12):
            process = start(code)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0, 0.3))
            process.kill()
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
            if path.exists():
                assert results.load(path).value["double"] == 6
        assert call(f"print({CALL}.value['array'].sum())") == expected
        assert call("results.recompute(results.stored()[0])") == ""
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        assert not list((package / "results" / ".work").glob("**/run"))

    def test_a_full_disk_is_named_and_overwrites_nothing(self, package: Path) -> None:
        call()
        before = stored(package).read_bytes()
        edit(package, "SCALE = 2", "SCALE = 5")
        code = """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
            results.recompute(results.stored()[0])
        """
        process = start(code)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert f"cannot write {stored(package)}" in said
        assert stored(package).read_bytes() == before
        assert [each.name for each in stored(package).parent.iterdir()] == [stored(package).name]
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

    def test_a_path_with_blanks_and_other_letters_works(self, package: Path) -> None:
        elsewhere = package / "résultats d'été ß"
        assert call(f"print({CALL}.value['double'])", MOLRG_RESULTS=str(elsewhere)) == "6\n"
        assert len(list((elsewhere / "trial").glob("*.json"))) == 1


class TestData:
    """A result that was computed from a data set outside the package."""

    @pytest.fixture(autouse=True)
    def data(self, package: Path) -> Path:
        (package / "src" / "molrg" / "images.py").write_text(IMAGES)
        (package / "src" / "experiments" / "reader.py").write_text(READER)
        path = package / "set.txt"
        path.write_text("four")
        return path

    def show(self, data: Path) -> str:
        (data.parent / "small.txt").write_text("1")
        made = f"results.load_or_compute(reader.run, {{'dataset': {str(data)!r}}}, witness=small)"
        small = f"small = {{'dataset': {str(data.parent / 'small.txt')!r}}}"
        return call(f"from experiments import reader; {small}; r = {made}; print(r.stale); print(r.show())")

    def result(self, package: Path) -> Path:
        (path,) = (package / "results" / "reader").glob("*.json")
        return path

    def test_the_digest_of_what_the_run_itself_read_is_kept_and_shown(
        self, package: Path, data: Path
    ) -> None:
        shown = self.show(data)
        made = json.loads(self.result(package).read_text())["provenance"]
        assert made["data"] == {str(data): f"{4:064}"}  # not the witness's
        assert f"data {data} 0000000000, content" in shown

    def test_changed_data_make_a_result_stale_and_visibly_so(self, package: Path, data: Path) -> None:
        assert self.show(data).startswith("False\nStored result")
        data.write_text("longer")
        said = f"made by other data '{data}' (digest 0000000000 then, 0000000000 now)"
        assert self.show(data).startswith(f"True\nSTALE: {said}. Stored result")
        code, status = command("status")
        assert code == 1
        assert f"STALE: {said}: run `make revalidate`, or python -m compendium.results recompute" in status
        data.write_text("back")  # four letters again
        assert self.show(data).startswith("False\n")
        assert command("status")[0] == 0

    def test_absent_data_leave_a_result_as_it_is(self, package: Path, data: Path) -> None:
        before = self.show(data)
        data.unlink()
        assert self.show(data) == before
        assert command("status")[0] == 0

    def test_data_that_can_no_longer_be_read_are_named(self, package: Path, data: Path) -> None:
        self.show(data)
        data.write_text("damaged")
        code, status = command("status")
        assert code == 1
        assert f"data '{data}' that can no longer be read ({data} is not a readable text)" in status

    def test_a_changed_checkpoint_makes_a_result_stale(self, package: Path, data: Path) -> None:
        self.show(data)
        path = self.result(package)
        content = json.loads(path.read_text())
        content["provenance"]["data"] = {"published/model": "one"}
        code = f"""
            import json
            from pathlib import Path
            results._write(Path({str(path)!r}), json.loads({json.dumps(content)!r}))
        """
        call(code)
        published = package / "src" / "molrg" / "published.py"
        reader = package / "src" / "experiments" / "reader.py"
        reader.write_text(reader.read_text().replace("import images", "import images, published"))
        registered = (
            "from molrg.support import data_read\n"
            "@data_read.reader('published/')\ndef present(name):\n    return "
        )
        published.write_text(registered + "{'published/model': 'one'}[name]\n")
        assert command("status")[0] == 0
        published.write_text(registered + "{'published/model': 'another'}[name]\n")
        said = "made by other data 'published/model' (digest one then, another now)"
        assert said in command("status")[1]
        published.write_text(registered + "None\n")
        assert command("status")[0] == 0

    def test_data_that_no_reader_knows_are_named(self, package: Path, data: Path) -> None:
        self.show(data)
        path = package / "src" / "molrg" / "images.py"
        path.write_text(path.read_text().replace('reader("")', 'reader("other/")'))
        said = f"data '{data}' that can no longer be read (no reader of data '{data}' is registered: import"
        assert said in command("status")[1]

    def test_other_code_and_other_data_are_both_named(self, package: Path, data: Path) -> None:
        self.show(data)
        data.write_text("longer")
        path = package / "src" / "experiments" / "reader.py"
        path.write_text(path.read_text().replace("digest}", "digest, 'more': 1}"))
        assert f"STALE: made by other code than the present and other data '{data}'" in self.show(data)

    def test_no_witness_vouches_for_changed_data_and_a_new_run_does(self, package: Path, data: Path) -> None:
        self.show(data)
        before = self.result(package).read_bytes()
        data.write_text("longer")
        code, said = command("revalidate")
        assert code == 1
        assert "for which no witness can vouch; put the data back or compute it again" in said
        assert f"python -m compendium.results recompute {self.result(package)}" in said
        assert self.result(package).read_bytes() == before
        assert command("recompute")[0] == 0
        assert self.show(data).startswith("False\n")
        made = json.loads(self.result(package).read_text())
        assert made["provenance"]["data"] == {str(data): made["value"]["digest"]} == {str(data): f"{6:064}"}


def faulty(number: int, *, workdir: Path) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"numbr": 3}, "faulty: missing a required argument: 'number'|unexpected keyword argument 'numbr'"),
        ({"number": 3, "x": 1}, "its parameters are number"),
        ({"number": float("nan")}, "parameter number = nan must be a finite number"),
        ({"number": np.zeros(2)}, "parameter number = array"),
    ],
)
def test_parameters_are_checked_before_work(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        results.load_or_compute(faulty, parameters, witness={"number": 1})


def test_only_functions_of_the_package_can_be_stored() -> None:
    with pytest.raises(ValueError, match="must be a function at the top level of a module of molrg"):
        results.load_or_compute(faulty, {"number": 1}, witness={"number": 1})


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1.5, np.nan], [np.inf, -0.0]]),
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.array(True),
        np.zeros((0, 3), dtype=np.float32),
        np.linspace(0, 1, 500).round(2).reshape(50, 10).T,
    ],
)
def test_arrays_survive_exactly(value: np.ndarray) -> None:
    again = values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False)))
    assert again.dtype == value.dtype
    assert again.shape == value.shape
    assert again.tobytes() == value.tobytes()


def test_numbers_that_are_not_finite_survive() -> None:
    value = {"a": [float("inf"), -float("inf"), 1.5], "b": {"c": None, "d": "text"}, "e": np.float32(0.25)}
    assert values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False))) == value


def test_arrays_are_packed_where_that_is_shorter() -> None:
    packed = json.dumps(values.encode(np.zeros(10_000)))
    assert len(packed) < 200
    assert "__array__" in values.encode(np.array([np.pi]))


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": np.array(["x"])}, {"a": {3}}])
def test_what_cannot_be_stored_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="a result"):
        values.encode(value)


def test_differences_are_relative_to_the_largest_magnitude_of_an_array() -> None:
    difference = values.difference
    assert difference({"a": [1000.0]}, {"a": [1001.0]}) == pytest.approx(1e-3)
    assert difference({"a": 1e-6}, {"a": 2e-6}) == pytest.approx(1)
    assert difference(np.array([1e-6, 1e-9]), np.array([1e-6, 3e-9])) == pytest.approx(2e-3)
    assert difference([1e-6, 1e-9], [1e-6, 3e-9]) == pytest.approx(2e-3)
    assert difference([np.array([1.0]), np.array([1e-9])], [np.array([1.0]), np.array([2e-9])]) == 1
    assert difference(np.zeros(2), np.array([0.0, 1e-9])) == pytest.approx(1e-9)
    assert difference(np.array([np.inf, 2.0]), np.array([np.inf, 1.0])) == 0.5
    assert difference(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 0
    for other in ({"a": [1.0, 2.0]}, {"b": [1.0]}, {"a": 1.0}, {"a": ["x"]}, {"a": [float("nan")]}):
        assert difference({"a": [1.0]}, other) == np.inf


SOURCES = {
    "molrg": "from molrg.tools import twice",
    "molrg.tools": """
import numpy as np
from molrg import constants as c

TABLE = {"one": 1}
TABLE["two"] = c.SCALE


def twice(x, times=2):
    return times * shifted(x, c.OFFSET)


def shifted(x, by):
    return np.sqrt(x) + by


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)
""",
    "molrg.constants": "SCALE = 2\nOFFSET = 0.5\nUNUSED = 1",
    "compendium": "",
    "experiments": "",
    "experiments.page": '''
"""An experiment."""

from molrg import twice
from molrg.tools import even

WORDS = ["a", "b"]


class Base:
    def value(self):
        return 1


class Counter(Base):
    step: int = 3
    twice = step

    def value(self, twice=twice):
        def inner():
            return twice(self.step)

        return inner()


def run(number, mode="plain", *, workdir):
    """Run it."""
    from molrg import tools  # here, since it is slow to import

    if mode == "plain" and even(number):
        return {w: tools.shifted(twice(number), 1) for w in WORDS}
    return Counter().value()
''',
}
"""A package with a library below it, as modules' texts."""


def code_digest(texts: dict[str, str], name: str = "experiments.page.run") -> str:
    return digest._of_name(name, texts)


def replaced(old: str, new: str, *modules: str) -> dict[str, str]:
    """The sources with a text replaced, wherever it is in the modules, or in all."""
    texts = {name: t.replace(old, new) if name in (modules or SOURCES) else t for name, t in SOURCES.items()}
    assert texts != SOURCES
    return texts


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 3"),  # it is used as the module is run
        ("OFFSET = 0.5", "OFFSET = 0.25"),
        ("np.sqrt(x) + by", "np.sqrt(x) - by"),
        ("np.sqrt", "np.cbrt"),
        ("import numpy as np", "import torch as np"),
        ("times=2", "times=3"),
        ("n == 0 or odd(n - 1)", "n == 1 or odd(n - 1)"),
        ("n != 0 and even(n - 1)", "n != 0 and odd(n - 1)"),
        ('mode="plain", *', 'mode="other", *'),
        ('["a", "b"]', '["b", "a"]'),
        ("step: int = 3", "step: int = 4"),
        ("return 1\n", "return 2\n"),
        ("twice(self.step)", "(self.step)"),
        ("twice = step", "thrice = step"),
        ("tools.shifted(twice(number), 1)", "twice(tools.shifted(number, 1))"),
        ("shifted(x, c.OFFSET)", "shifted(x, c.SCALE)"),
        ("(x, by)", "(by, x)"),
        ("if mode", "if not mode"),
        ("from molrg import twice\n", "from molrg.tools import shifted as twice\n"),
        ("from molrg import twice\n", "twice = abs\n"),
        ('TABLE["two"]', 'TABLE["three"]'),
        ("def even", "@c.noted\ndef even"),
        ("even(number)", "(lambda even: even)(number)"),
        ("import tools  #", "import constants as tools  #"),
    ],
)
def test_the_digest_of_a_result_changes_with_any_code_that_is_reached(old: str, new: str) -> None:
    assert code_digest(replaced(old, new)) != code_digest(SOURCES)


MOVED = SOURCES | {
    "molrg.tools": SOURCES["molrg.tools"].replace("def even", "def _even_before"),
    "experiments.parity": """
def odd(n):
    return n != 0 and even(n - 1)


def even(n):
    return n == 0 or odd(n - 1)
""",
    "experiments.page": SOURCES["experiments.page"].replace(
        "molrg.tools import even", "experiments.parity import even"
    ),
}


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(MOVED, id="functions that call each other in another module of another package"),
        pytest.param(
            {
                name.replace("molrg.tools", "molrg.deep.bench"): text.replace(
                    "molrg.tools", "molrg.deep.bench"
                )
                for name, text in replaced("import tools", "import deep").items()
            }
            | {
                "molrg.deep": "",
                "experiments.page": SOURCES["experiments.page"]
                .replace("molrg.tools", "molrg.deep.bench")
                .replace("import tools", "import deep")
                .replace("tools.shifted", "deep.bench.shifted"),
            },
            id="another module",
        ),
        pytest.param(replaced("shifted", "displaced"), id="another name of a function"),
        pytest.param(replaced("WORDS", "TEXTS"), id="another name of a constant"),
        pytest.param(replaced("Base", "Root"), id="another name of a class"),
        pytest.param(
            replaced("from molrg import twice", "from molrg.tools import twice"), id="not handed on"
        ),
        pytest.param(
            replaced("from molrg.tools import even", "import molrg.tools as t")
            | {
                "experiments.page": SOURCES["experiments.page"]
                .replace("from molrg.tools import even", "import molrg.tools")
                .replace("and even(", "and molrg.tools.even(")
            },
            id="an import of the module",
        ),
        pytest.param(
            replaced("from molrg import constants as c", "from molrg.constants import OFFSET, SCALE")
            | {
                "molrg.tools": SOURCES["molrg.tools"]
                .replace("from molrg import constants as c", "from .constants import OFFSET as o, SCALE")
                .replace("c.OFFSET", "o")
                .replace("c.SCALE", "SCALE")
            },
            id="a relative import of names",
        ),
        pytest.param(
            replaced("    from molrg import tools  # here, since it is slow to import\n", "")
            | {
                "experiments.page": SOURCES["experiments.page"]
                .replace("    from molrg import tools  # here, since it is slow to import\n", "")
                .replace("WORDS =", "from molrg import tools\nWORDS =")
            },
            id="an import at the top",
        ),
        pytest.param(
            {
                **SOURCES,
                "molrg.tools": SOURCES["molrg.tools"]
                .replace("import numpy as np", "from numpy import sqrt as root")
                .replace("np.sqrt", "root"),
            },
            id="an import of another package",
        ),
        pytest.param(replaced('"""Run it."""', '"""Run."""  # now'), id="a docstring"),
        pytest.param(replaced('"""An experiment."""', "# An experiment"), id="a comment"),
        pytest.param(replaced("UNUSED = 1", "UNUSED = 2"), id="what is not reached"),
        pytest.param(replaced("(number)", "(\n  number\n  )"), id="layout"),
        pytest.param(
            SOURCES | {"compendium": "print()", "molrg.other": "print()"}, id="another module that acts"
        ),
    ],
)
def test_moving_and_renaming_leave_the_digest(texts: dict[str, str]) -> None:
    assert texts != SOURCES
    assert code_digest(texts) == code_digest(SOURCES)


def test_a_function_that_is_moved_and_renamed_itself_keeps_its_digest() -> None:
    texts = dict(SOURCES)
    texts["compendium.other"] = texts.pop("experiments.page").replace("def run", "def go")
    assert code_digest(texts, "compendium.other.go") == code_digest(SOURCES)


def test_variables_are_not_followed() -> None:
    def of(body: str, before: str = "") -> str:
        return code_digest({"molrg": "", "molrg.a": f"{before}\ndef run(x):\n    {body}\n"}, "molrg.a.run")

    for body in (
        "return lambda y: y",
        "y = x; return y",
        "y: int = x; return y",
        "for y, *z in x: return y",
        "return (y := x) + y",
        "return [(y := z) for z in x] + y",
        "def y(): return 1\n    return y",
        "def f(y=1): return y\n    return f",
        "with x as y: return y",
        "try: return 1\n    except ValueError as y: return y",
        "match x:\n        case {'a': y, **z}: return y",
        "def f():\n        y = 2\n        def g():\n            nonlocal y\n            y = 3",
    ):
        assert of(body, "y = 1") == of(body, "y = 2") == of(body)
    for body in (
        "return [y for y in x]",  # counts as if it were followed, since only functions have scopes here
        "class A:\n        y = 2\n    return A",
        "return [y for z in x]",
        "return [z for z in x if y]",
        "return [y for y in y]",
        "return [y for y in x] + y",
        "return lambda x: y",
        "def f(y=y): return y\n    return f",
        "return lambda y=y: y",
        "global y; y += 1",
        "def f():\n        y = 2\n    return y",
        "class A:\n        y = 2\n        def f(self): return y\n    return A",
        "class A:\n        z = y\n        y = 3\n    return A",
        "def f(): return y\n    return f",
    ):
        assert of(body, "y = 1") != of(body, "y = 2"), body


def test_attributes_of_what_is_reached_count() -> None:
    texts = {"molrg": "", "molrg.a": "y = 1\ndef run(): return y.real"}
    assert code_digest(texts, "molrg.a.run") != code_digest(
        texts | {"molrg.a": texts["molrg.a"].replace("real", "imag")}, "molrg.a.run"
    )


def test_either_of_two_imports_under_one_name_counts() -> None:
    text = "try:\n    from molrg.b import f\nexcept ImportError:\n    from molrg.c import f"
    text += "\ndef run(): return f()"
    texts = {"molrg": "", "molrg.a": text, "molrg.b": "def f(): return 1", "molrg.c": "def f(): return 2"}
    found = {
        code_digest(texts | {name: "def f(): return 3"}, "molrg.a.run") for name in ("molrg.b", "molrg.c")
    }
    assert len(found | {code_digest(texts, "molrg.a.run")}) == 3
    with pytest.raises(ValueError, match=r"molrg.a imports \* from molrg.b, whose names cannot be followed"):
        code_digest(texts | {"molrg.a": "from molrg.b import *\ndef run(): return f()"}, "molrg.a.run")


def test_what_acts_counts_in_the_packages_around_and_in_modules_that_hand_on() -> None:
    acting = "import torch\ntorch.set_default_dtype(torch.float64)\n"
    for module in ("molrg", "molrg.tools", "experiments"):
        assert code_digest(SOURCES | {module: acting + SOURCES[module]}) != code_digest(SOURCES)
    assert code_digest(SOURCES | {"molrg.constants": acting + SOURCES["molrg.constants"]}) != code_digest(
        SOURCES
    )


def test_what_acts_counts_wherever_it_is_run() -> None:
    alone = {"molrg": "", "molrg.a": "def run(): return 1"}
    assert code_digest(alone, "molrg.a.run") != code_digest(alone | {"molrg": "print()"}, "molrg.a.run")
    hands_on = {
        "molrg": "",
        "compendium": "",
        "molrg.a": "from compendium.b import f\ndef run(): return f()",
        "compendium.b": "from molrg.c import f",
        "molrg.c": "def f(): return 1",
    }
    acts = {"compendium.b": "print()\nfrom molrg.c import f"}
    assert code_digest(hands_on, "molrg.a.run") != code_digest(hands_on | acts, "molrg.a.run")
    in_turn = {
        "molrg": "",
        "molrg.a": "from molrg import b\nb.go()\ndef run(): return 1",
        "molrg.b": "x[1] = 1\ndef go(): return 1",
    }
    edited = in_turn | {"molrg.b": in_turn["molrg.b"].replace("= 1\n", "= 2\n")}
    assert code_digest(in_turn, "molrg.a.run") != code_digest(edited, "molrg.a.run")


def test_the_digest_follows_names_and_nothing_else() -> None:
    from molrg import snr

    source = "from molrg import snr\nsnr.theorem(3, 5, 0.2, 1.0)\n"
    assert digest.of_source(source) == digest.of_source('"""Text."""\n' + source.replace("\n", "  # why\n"))
    assert digest.of_source(source) == digest.of_source(
        "from molrg.snr import theorem\ntheorem(3, 5, 0.2, 1.0)"
    )
    assert digest.of_source(source) != digest.of_source(source.replace("theorem", "exact"))
    reached, _ = digest._reach(("molrg.snr.approximations", "theorem"))
    assert ("molrg.snr.approximations", "theorem") in reached
    assert not {("molrg.model.mixture", "MoLRG"), ("molrg.snr.simulation", "estimate")} & set(reached)
    assert ("molrg.model.mixture", "MoLRG") in digest._reach(("molrg.snr.simulation", "estimate"))[0]
    assert len(digest.of_function(snr.exact)) == 64


def test_a_module_passed_as_a_value_counts_whole_and_by_its_names() -> None:
    texts = SOURCES | {
        "molrg.a": "from molrg import constants\ndef run(name): return getattr(constants, name)"
    }
    before = code_digest(texts, "molrg.a.run")
    for old, new in (("UNUSED = 1", "UNUSED = 2"), ("UNUSED", "OTHER")):
        edited = texts | {"molrg.constants": texts["molrg.constants"].replace(old, new)}
        assert code_digest(edited, "molrg.a.run") != before


@pytest.mark.parametrize(
    ("statement", "acts"),
    [
        ("for i in range(3):\n    x = i", True),
        ("if True:\n    x = 1", True),
        ("with open('a') as x:\n    pass", True),
        ("try:\n    x = 1\nexcept ValueError:\n    pass", True),
        ("@snr.exact\ndef f():\n    pass", True),
        ("@local\ndef f():\n    pass", True),
        ("snr.exact()", True),
        ("@functools.cache\ndef f():\n    pass", False),
        ("x = 1", False),
        ("if __name__ == '__main__':\n    x = 1", False),
        ("if TYPE_CHECKING:\n    from molrg import images", False),
    ],
)
def test_what_may_act_at_import_counts_with_every_part_of_a_module(statement: str, acts: bool) -> None:
    before = "import functools\nfrom molrg import snr\ndef local(f):\n    return f\n"
    module = digest._Module("experiments.trial", before + statement)
    assert module.effects == module.statements[-1:] * acts


def test_a_cuda_device_is_named_only_where_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    count = 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: f"device {index}")
    assert machine.device(machine.cuda_allocations()).startswith("CPU (")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda i: {"allocation.all.allocated": i * count})
    before = machine.cuda_allocations()
    assert machine.device(before).startswith("CPU (")
    count = 6
    assert machine.device(before) == machine.device([]) == "device 1"


def test_the_used_results_are_listed(package: Path) -> None:
    code = f"""
        with results.listed() as used:
            {CALL}, {CALL}
            assert used == set()
        {CALL.replace("3", "4")}
        print(used)
    """
    (name,) = ast.literal_eval(call(code))
    assert results.load(package / "results" / name).provenance["parameters"]["number"] == 3


def test_every_committed_result_is_whole_and_made_by_the_present_code() -> None:
    for path in results.stored():
        content = json.loads(path.read_text(encoding="utf-8"))
        function = results._function(content["function"])
        results._check_witness(function, content["parameters"], content["witness"]["parameters"])
    unfit = [path for path in results.stored() if results.load(path).stale]
    assert not unfit, f"stale: {unfit}; run `make revalidate`, or python -m compendium.results recompute"


def test_no_committed_result_names_a_path_of_a_machine() -> None:
    for path in results.stored():
        provenance = results.load(path).provenance
        names = [*provenance.get("data", {}), *map(str, provenance["parameters"].values())]
        assert not [name for name in names if "/" in name and Path(name).is_absolute()], path
