"""Each kind of input on the page of the appendix: accepted or refused by name, never with a raw error."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from experiments.images import inputs

ALL: list[tuple[Mapping[str, inputs.Make], Callable[[Path], str], str, int]] = [
    (inputs.FOLDERS, inputs.read_images, "floating point", 8),
    (inputs.ARCHIVES, inputs.read_images, "images of floating point", 3),
    (inputs.CHECKPOINTS, inputs.read_checkpoint, "no scheduler", 4),
]
CASES = [
    (kind, make, read, list(kinds).index(kind) < accepted)
    for kinds, read, _, accepted in ALL
    for kind, make in kinds.items()
]


def test_the_kinds_accepted_come_first() -> None:
    for kinds, _, first_refused, accepted in ALL:
        assert list(kinds).index(first_refused) == accepted


@pytest.mark.parametrize(("kind", "make", "read", "accepted"), CASES, ids=[case[0] for case in CASES])
def test_a_kind_is_accepted_or_refused_by_name(
    kind: str, make: inputs.Make, read: Callable[[Path], str], accepted: bool
) -> None:
    was, said = inputs.tried(make, read)
    assert was == accepted, said
    assert was or "FOLDER" in said
    assert "/tmp" not in said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("grey, 8 bits", "1 x 6 x 8 values, image files of mode L (4), 0 ... 255"),
        ("grey, 16 bits", "1 x 6 x 8 values, image files of mode I;16 (4), 0 ... 65535"),
        ("with an orientation tag: turned", "3 x 8 x 6 values"),
        ("floating point", "pixels of mode F, whose range is unknown (save as"),
        ("one of another size", "another size than 4 of 5 images, 8x6: test/dog/1.png (9x6)"),
    ],
)
def test_what_is_said_of_a_folder(kind: str, said: str) -> None:
    assert said in inputs.tried(inputs.FOLDERS[kind], inputs.read_images)[1]


def test_a_raw_error_is_not_taken_for_a_refusal() -> None:
    def fail(path: Path) -> str:
        raise TypeError("raw")

    with pytest.raises(TypeError, match="raw"):
        inputs.tried(lambda folder: None, fail)
