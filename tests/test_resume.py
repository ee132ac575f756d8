"""Parts of a run that are kept: each is computed once, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from compendium import resume


def test_a_part_is_computed_once_and_read_back(tmp_path: Path) -> None:
    calls = []

    def squares(count: int) -> dict[str, np.ndarray]:
        calls.append(count)
        return {"squares": np.arange(count) ** 2, "one": np.array(1)}

    file = tmp_path / "new" / "part.npz"
    first = resume.arrays(file, squares, 4)
    again = resume.arrays(file, squares, 4)
    assert calls == [4]
    for found in (first, again):
        assert found.keys() == {"squares", "one"}
        np.testing.assert_array_equal(found["squares"], [0, 1, 4, 9])


def test_arguments_are_handed_on_in_their_order(tmp_path: Path) -> None:
    def difference(first: int, second: int) -> dict[str, int]:
        return {"difference": first - second}

    assert resume.arrays(tmp_path / "part.npz", difference, 5, 3)["difference"] == 2
    assert resume.values(tmp_path / "part.json", difference, 5, 3) == {"difference": 2}


def test_what_json_holds_comes_back_alike_from_either(tmp_path: Path) -> None:
    file = tmp_path / "part.json"
    first = resume.values(file, lambda: [(1, 2.5), "x", float("nan")])
    assert (
        repr(first)
        == repr(resume.values(file, lambda: pytest.fail("computed again")))
        == "[[1, 2.5], 'x', nan]"
    )


@pytest.mark.parametrize("keep", [resume.arrays, resume.values])
def test_a_part_that_fails_leaves_nothing(tmp_path: Path, keep) -> None:  # type: ignore[no-untyped-def]
    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "part", fails)
    assert not list(tmp_path.iterdir())
