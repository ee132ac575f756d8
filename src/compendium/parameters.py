"""Parameters of a page: checked before any work.

A page binds its parameters to plain values in one cell (tag `parameters`), which is the only place where
defaults are written. The next cell gives types and ranges, and reads the values back:

    class Page(parameters.Page):
        num_classes: int = Field(ge=2, le=1000)
        delta: float = Field(gt=0, lt=1)

    p = Page.read("theory/snr")

`papermill page.ipynb out.ipynb -p num_clases 10` only warns about an unknown name and lets a wrong type
through. Here every public name that the kernel holds, and every name in the cell that papermill adds, is a
parameter or a mistake, and a mistake raises.
"""

import ast
import contextlib
import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from compendium.paths import page_text

__all__ = ["Field", "Page", "ParameterError", "defaults"]


class ParameterError(ValueError):
    """A page was given a parameter that it does not have, or a value that it does not allow."""


class Page(BaseModel):
    """Types and ranges of a page's parameters; subclass it in the page and call `read`.

    Types are strict (`"3"` is not an integer, `True` is not a number; an integer is a real number) and
    values are immutable. Every page has `size`: `"default"`, or `"smoke"` for a run that takes seconds.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    size: Literal["default", "smoke"]

    _is_default: bool = PrivateAttr(default=False)

    @field_validator("*", mode="before")
    @classmethod
    def _list_of_text(cls, value: Any, info: ValidationInfo) -> Any:
        """`-p name "[1, 2]"` of papermill passes text; a list is meant where the parameter is one."""
        if isinstance(value, str) and get_origin(cls.model_fields[info.field_name or ""].annotation) is list:
            with contextlib.suppress(ValueError, SyntaxError):
                return ast.literal_eval(value)
        return value

    @property
    def is_default(self) -> bool:
        """Whether every value equals the default written in the page's text."""
        return self._is_default

    @classmethod
    def read(cls, page_id: str, namespace: Mapping[str, Any] | None = None) -> Self:
        """Read and check the parameters that the running page has been given.

        `page_id` is the page's path in the book without suffix, such as `theory/snr`; its text tells the
        defaults. `namespace` maps names to values; by default it is the notebook's own, where each public
        name bound to a plain literal (number, string, truth value, None, list, tuple, dict) counts.

        Raises `ParameterError` for an unknown, missing, mistyped or out-of-range parameter. The message
        names every parameter of the page with its type and range.
        """
        names = _notebook_names() if namespace is None else namespace
        values = {name: value for name, value in names.items() if _is_plain(value)}
        if namespace is None:  # an unknown parameter may be hidden: private, or rebound by an import
            values |= {name: None for name in _injected_names() if name not in cls.model_fields}
        try:
            page = cls(**values)
        except ValidationError as error:
            raise ParameterError(cls._explain(page_id, error)) from None
        page._is_default = page.model_dump() == defaults(page_id)
        return page

    @classmethod
    def _explain(cls, page_id: str, error: ValidationError) -> str:
        lines = []
        for fault in error.errors(include_url=False, include_context=False):
            name = str(fault["loc"][0]) if fault["loc"] else ""
            if fault["type"] == "extra_forbidden":
                close = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                lines.append(f"unknown parameter {name!r}.{hint}")
            elif fault["type"] == "missing":
                lines.append(f"missing parameter {name!r}.")
            elif not name:
                lines.append(fault["msg"].removeprefix("Value error, ") + ".")
            else:
                allowed = _allowed(cls.model_fields[name])
                inner = "".join(f"[{key!r}]" for key in fault["loc"][1:])
                lines.append(f"{name}{inner} = {fault['input']!r} is not allowed; it must be {allowed}.")
        valid = [f"  {name}: {_allowed(field)}" for name, field in cls.model_fields.items()]
        return f"page {page_id}: " + "\n".join([*lines, "The parameters of this page are:", *valid])


def defaults(page_id: str) -> dict[str, Any]:
    """The defaults written in the `parameters` cell of a page's text; empty where there is no text.

    Raises `ValueError` where the text has no such cell, or the cell binds anything but plain literals.
    """
    import jupytext

    text = page_text(page_id)
    if not text.exists():
        return {}
    for cell in jupytext.read(text).cells:
        if "parameters" in cell.metadata.get("tags", []):
            try:
                return _literals(cell.source)
            except ValueError as error:
                raise ValueError(f"parameters cell of page {page_id}: {error}") from None
    raise ValueError(f"page {page_id} has no code cell tagged 'parameters': {text}")


def _literals(source: str) -> dict[str, Any]:
    values = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = ast.literal_eval(value)
            case _:
                raise ValueError(f"only `name = literal` is allowed there, not {ast.unparse(node)!r}")
    return values


def _notebook_names() -> dict[str, Any]:
    shell = _shell()
    return {k: v for k, v in shell.user_ns.items() if not k.startswith("_") and k not in shell.user_ns_hidden}


def _injected_names() -> set[str]:
    """The names bound by the cells that papermill added, which begin with its comment `# Parameters`."""
    cells = _shell().history_manager.input_hist_parsed
    added = (cell for cell in cells if cell.startswith("# Parameters\n"))
    nodes = (node for cell in added for node in ast.walk(ast.parse(cell)))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        raise RuntimeError("Page.read works inside a notebook; elsewhere pass namespace={name: value, ...}")
    return shell


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, complex, str, bytes)


def _allowed(field: FieldInfo) -> str:
    """Type and range of a parameter in words: `int, >= 2, <= 1000`."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    words = [kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}
    signs |= {"min_length": "length >=", "max_length": "length <=", "pattern": "matching"}
    for constraint in field.metadata:
        for attribute, sign in signs.items():
            if (bound := getattr(constraint, attribute, None)) is not None:
                words.append(f"{sign} {bound}")
    return ", ".join(words) + (f" ({field.description})" if field.description else "")
