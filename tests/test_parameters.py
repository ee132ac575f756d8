"""A page's parameters are checked before any work, and a mistake is explained."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from compendium import parameters
from compendium.parameters import Field, ParameterError

CELL = """\
size = "default"
num_classes = 3
delta = 0.2
seeds = [0, 1, 2]
dataset = "digits\""""
GIVEN: dict[str, Any] = {
    "size": "default",
    "num_classes": 3,
    "delta": 0.2,
    "seeds": [0, 1, 2],
    "dataset": "digits",
}


class Page(parameters.Page):
    num_classes: int = Field(ge=2, le=1000)
    delta: float = Field(gt=0, lt=1, description="spread of the background")
    seeds: list[int] = Field(min_length=1)
    dataset: str


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page_source: Callable[..., str]) -> Path:
    path = tmp_path / "page.md"
    path.write_text(page_source(CELL), encoding="utf-8")
    monkeypatch.setattr(parameters, "page_text", lambda page_id: path)
    return path


def read(**changes: Any) -> Page:
    return Page.read("theory/page", GIVEN | changes)


def test_values_are_read() -> None:
    page = read(num_classes=10)
    assert (page.num_classes, page.delta, page.seeds, page.size) == (10, 0.2, [0, 1, 2], "default")


def test_a_list_is_read_from_text_as_papermill_passes_it() -> None:
    assert read(seeds="[3, 4]").seeds == [3, 4]
    assert read(dataset="[3, 4]").dataset == "[3, 4]"
    for wrong in ("[3,", "[3.5]", "[]", "3, 4"):
        with pytest.raises(ParameterError, match="seeds"):
            read(seeds=wrong)


def test_defaults_are_told_from_other_values() -> None:
    assert read().is_default
    assert not read(num_classes=4).is_default
    assert not read(size="smoke").is_default


def test_a_page_whose_text_is_elsewhere_can_be_read_but_is_not_default(text: Path) -> None:
    text.unlink()
    assert not read().is_default


def test_names_that_hold_no_plain_value_are_not_parameters() -> None:
    assert read(numpy=pytest, helper=read, tuple_of_functions=(print,)).is_default


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clases": 10}, "unknown parameter 'num_clases'. Did you mean 'num_classes'?"),
        ({"zzz": None}, "unknown parameter 'zzz'.\n"),
        ({"num_classes": "10"}, "num_classes = '10' is not allowed; it must be int, >= 2, <= 1000."),
        ({"num_classes": True}, "num_classes = True is not allowed; it must be int"),
        ({"num_classes": 1}, "num_classes = 1 is not allowed; it must be int, >= 2, <= 1000."),
        ({"num_classes": 2.5}, "num_classes = 2.5 is not allowed"),
        (
            {"delta": 1.0},
            "delta = 1.0 is not allowed; it must be float, > 0, < 1 (spread of the background).",
        ),
        ({"delta": float("nan")}, "delta = nan is not allowed"),
        ({"seeds": []}, "seeds = [] is not allowed; it must be list[int], length >= 1."),
        ({"seeds": [0, "1"]}, "seeds[1] = '1' is not allowed; it must be list[int], length >= 1."),
        ({"size": "huge"}, "size = 'huge' is not allowed; it must be one of 'default', 'smoke'."),
    ],
)
def test_a_mistake_names_itself_and_every_valid_parameter(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read(**changes)
    assert message in str(caught.value)
    assert "page theory/page:" in str(caught.value)
    for line in (
        "size: one of 'default', 'smoke'",
        "num_classes: int, >= 2, <= 1000",
        "delta: float, > 0, < 1 (spread of the background)",
        "seeds: list[int], length >= 1",
        "dataset: str",
    ):
        assert f"\n  {line}" in str(caught.value)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(ParameterError, match="missing parameter 'dataset'"):
        Page.read("theory/page", {k: v for k, v in GIVEN.items() if k != "dataset"})


def test_an_integer_is_a_real_number() -> None:
    class Scale(parameters.Page):
        scale: float

    assert Scale.read("x", {"size": "smoke", "scale": 1}).scale == 1


def test_conditions_between_parameters_are_explained() -> None:
    from pydantic import model_validator

    class Fit(parameters.Page):
        dim: int
        kind: Literal["a", "b"]

        @model_validator(mode="after")
        def fits(self) -> "Fit":
            if self.dim < 10:
                raise ValueError("dim must hold all classes")
            return self

    with pytest.raises(ParameterError, match="dim must hold all classes"):
        Fit.read("x", {"size": "smoke", "dim": 3, "kind": "a"})


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().num_classes = 4


def test_defaults_are_plain_literals(text: Path, page_source: Callable[..., str]) -> None:
    assert parameters.defaults("theory/page") == GIVEN
    text.write_text(page_source(CELL.replace("delta = 0.2", "delta = 1 / 5")), encoding="utf-8")
    with pytest.raises(ValueError, match="parameters cell of page theory/page"):
        parameters.defaults("theory/page")
    text.write_text(page_source(CELL).replace("[parameters]", "[other]"), encoding="utf-8")
    with pytest.raises(ValueError, match="no code cell tagged 'parameters'"):
        parameters.defaults("theory/page")


def test_outside_a_notebook_a_namespace_is_needed() -> None:
    with pytest.raises(RuntimeError, match="inside a notebook"):
        Page.read("theory/page")


def in_notebook(monkeypatch: pytest.MonkeyPatch, added: str, **names: Any) -> Page:
    history = SimpleNamespace(input_hist_parsed=["", 'size = "default"', added, "p = Page.read(...)"])
    hidden = {"exit": 3}
    shell = SimpleNamespace(user_ns=GIVEN | hidden | names, user_ns_hidden=hidden, history_manager=history)
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    return Page.read("theory/page")


@pytest.mark.parametrize(
    ("added", "name"), [("torch = 3", "torch"), ("_sed = 4", "_sed"), ("exit = 3", "exit"), ("p = 3", "p")]
)
def test_an_unknown_parameter_that_the_kernel_hides_is_named(
    monkeypatch: pytest.MonkeyPatch, added: str, name: str
) -> None:
    with pytest.raises(ParameterError, match=f"unknown parameter '{name}'"):
        in_notebook(monkeypatch, f"# Parameters\nnum_classes = 4\n{added}\n", torch=pytest, _sed=4)


def test_known_parameters_and_other_cells_of_a_notebook_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_notebook(monkeypatch, "# Parameters\nnum_classes = 4\n", num_classes=4).num_classes == 4
    assert in_notebook(monkeypatch, "torch = 3", torch=pytest).is_default
