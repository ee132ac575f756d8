"""Every command that the README or a page prints: taken apart as a shell and the command itself do it."""

import argparse
import ast
import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import pytest

from compendium import pages, parameters
from compendium.paths import page_text
from molrg.support.clone import ROOT

TEXTS = [ROOT / "README.md", *sorted(p for p in pages.BOOK.rglob("*.md") if "_build" not in p.parts)]
PROGRAMS = (
    "accelerate apt-get conda git jupyter-book make papermill pip pytest python python3 source torchrun"
)


class Parsed(Exception):
    """A command line was understood; nothing was run."""


def commands(path: Path) -> list[str]:
    """The lines of shell blocks, and code in sentences that begins with a program and has an argument."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    for quoted in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        words = [word for word in quoted.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if len(words) > 1 and words[0] in PROGRAMS.split():
            lines.append(quoted)
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


PRINTED = sorted({command for path in TEXTS for command in commands(path)})


@cache
def page_class(page: str) -> Any:
    """The class of a page's parameters, from the imports and classes in the code before it is read."""
    cells = [cell.source for cell in jupytext.read(page_text(page)).cells if cell.cell_type == "code"]
    before, name, _ = re.split(r"^p = (\w+)\.read\(", "\n".join(cells), maxsplit=1, flags=re.M)
    needed = (ast.Import, ast.ImportFrom, ast.ClassDef)
    names: dict[str, Any] = {}
    body: list[ast.stmt] = [node for node in ast.parse(before).body if isinstance(node, needed)]
    exec(compile(ast.Module(body, []), page, "exec"), names)
    return names[name]


def check_papermill(words: list[str]) -> None:
    from papermill.cli import _resolve_type, papermill

    context = papermill.make_context("papermill", list(words))
    given = {name: _resolve_type(value) for name, value in context.params["parameters"]}
    page = pages.page_id(ROOT / context.params["notebook_path"])
    assert context.params["output_path"] == "out.ipynb"
    assert given
    page_class(page).read(page, parameters.defaults(page) | given)


def check_module(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    with pytest.raises(Parsed):
        importlib.import_module(words[0]).main(words[1:])


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where a command would be refused; one of an unknown kind is refused here."""
    words = [w for w in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    match [Path(words[0]).name, *words[1:]]:
        case ["papermill", *rest]:
            check_papermill(rest)
        case ["python" | "python3", "-m", "venv", ".venv"]:
            pass
        case ["python" | "python3", "-m", *rest]:
            check_module(rest, monkeypatch)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
        case ["torchrun", *rest]:
            from torch.distributed.run import get_args_parser

            assert get_args_parser().parse_args(rest).training_script.endswith(".py")
        case ["accelerate", "launch", *rest]:
            from accelerate.commands.launch import launch_command_parser

            assert launch_command_parser().parse_args(rest).training_script.endswith(".py")
        case ["pip", "install", *rest]:
            pinned = (ROOT / "requirements.txt").read_text("utf-8").split()
            assert {word for word in rest if "==" in word} <= set(pinned)
        case ["conda", "env", "create", "-f", file]:
            assert (ROOT / file).is_file()
        case ["conda", "activate", name]:
            assert f"name: {name}\n" in (ROOT / "environment.yml").read_text("utf-8")
        case ["jupyter-book", "build", folder] | ["pytest", "--nbval", folder]:
            assert (ROOT / folder / "_config.yml").is_file()
        case ["source", ".venv/bin/activate"] | ["apt-get", "install", "chromium"]:
            pass
        case other:
            raise AssertionError(f"say here how to check {other}")


def test_commands_are_found() -> None:
    assert len(PRINTED) > 40
    by_page = {page: commands(page_text(page)) for page in pages.page_ids()}
    silent = [page for page, printed in by_page.items() if not any("papermill" in each for each in printed)]
    assert silent == []


@pytest.mark.parametrize("command", PRINTED)
def test_a_printed_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        "papermill book/theory/snr.ipynb out.ipynb -p num_clases 10",
        "papermill book/theory/snr.ipynb out.ipynb -p delta 1.5",
        "papermill book/theory/no_page.ipynb out.ipynb -p delta 0.5",
        'papermill book/theory/memorization.ipynb out.ipynb -p per_class "[2, 32"',
        "python -m experiments.images.model_zoo trian",
        "python -m compendium.no_module status",
        "make nothing",
        "pip install torch==1.0",
        "torchrun --processes 2 extract.py",
        "rm -r book",
    ],
)
def test_a_wrong_command_is_noticed(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(wrong, monkeypatch)
