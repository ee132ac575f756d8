"""The ledger is validated, and checks report what they find."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compendium import claims
from compendium.claims import Checker, CheckFailed, Claim

LEDGER = {
    "peak": Claim("peak", "One peak.", "Theorem 1", "paper", "certified", "theory/snr", "reproduced in part"),
    "other": Claim(
        "other", "Else.", "Figure 4", "paper", "experiment", "theory/angles", "reproduced", "3 seeds"
    ),
}


def checker(default: bool = True) -> Checker:
    return Checker("theory/snr", SimpleNamespace(is_default=default), LEDGER)


def test_an_identity_prints_its_bound_and_not_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    checker().identity("score against autograd", np.array([[3e-17, -2e-12]]), 1e-9)
    assert capsys.readouterr().out == "holds | score against autograd: difference <= 1e-09\n"


@pytest.mark.parametrize("error", [2e-9, -2e-9, float("nan"), [0.0, float("nan")], [0.0, -1.0]])
@pytest.mark.parametrize("default", [True, False])
def test_a_broken_identity_stops_the_page_at_any_parameters(error: float, default: bool) -> None:
    with pytest.raises(CheckFailed, match=r"moments: difference .* exceeds the bound 1e-09"):
        checker(default).identity("moments", error, 1e-9)


def test_a_recorded_verdict_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    checker().claim("peak", "reproduced in part", "peak 271.7 against 411.2")
    assert capsys.readouterr().out == "reproduced in part | peak: peak 271.7 against 411.2\n"


def test_a_change_of_verdict_stops_the_page_at_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        CheckFailed, match="recorded verdict is 'reproduced in part', this run finds 'not rep"
    ):
        checker().claim("peak", "not reproduced", "no peak")
    checker(default=False).claim("peak", "not reproduced", "no peak")
    assert capsys.readouterr().out == "not reproduced | peak: no peak\n"


def test_a_claim_of_another_page_or_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="no claim 'other' for page theory/snr, only peak"):
        checker().claim("other", "reproduced", "")
    with pytest.raises(ValueError, match="verdict 'true' of claim 'peak' is not one of reproduced, "):
        checker().claim("peak", "true", "")


def test_the_ledger_is_read(tmp_path: Path) -> None:
    path = tmp_path / "claims.yml"
    path.write_text(
        "peak:\n  statement: >\n    One\n    peak.\n  where: T\n  source: this book\n  evidence: experiment\n"
        "  scale: 3 seeds\n  page: p\n  verdict: extended\n"
    )
    expected = Claim("peak", "One peak.", "T", "this book", "experiment", "p", "extended", "3 seeds")
    assert claims.load(path) == {"peak": expected}
    path.write_text("")
    assert claims.load(path) == {}


GOOD = {
    "statement": "a",
    "where": "b",
    "source": "paper",
    "evidence": "proved",
    "page": "c",
    "verdict": "reproduced",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({key: None}, "claim 'peak' in claims.yml must have exactly the keys statement") for key in GOOD),
        ({"x": "1"}, "must have exactly the keys"),
        ({"scale": "3 seeds"}, "must have exactly the keys"),
        ({"evidence": "experiment"}, "must have exactly the keys statement, where, source, evidence, scale"),
        ({"source": "authors"}, "source 'authors' is not one of paper, reviewer, literature, this book"),
        ({"evidence": "shown"}, "evidence 'shown' is not one of proved, certified, exact computation, simul"),
        ({"verdict": "proved"}, "verdict 'proved' is not one of reproduced, "),
        ({"statement": "''"}, "statement must be a text that is not empty"),
        ({"statement": "3"}, "statement must be a text that is not empty"),
        (
            {"verdict": "reproduced, verdict: extended"},
            "the ledger of claims has 'verdict' twice, below line 1",
        ),
    ],
)
def test_a_faulty_claim_is_refused(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    entry = ", ".join(f"{key}: {value}" for key, value in (GOOD | change).items() if value is not None)
    path = tmp_path / "claims.yml"
    path.write_text(f"peak: {{{entry}}}\n")
    with pytest.raises(ValueError, match=message):
        claims.load(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "must have exactly the keys"),
        ("text\nother: text\npeak: text", "the ledger of claims has 'peak' twice"),
    ],
)
def test_a_faulty_ledger_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    path = tmp_path / "claims.yml"
    path.write_text(f"peak: {entry}\n")
    with pytest.raises(ValueError, match=message):
        claims.load(path)


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (True, "reproduced"),
        (np.bool_(False), "not reproduced"),
        ([True, False], "reproduced in part"),
        (np.array([[False], [False]]), "not reproduced"),
        ([True, True], "reproduced"),
    ],
)
def test_what_holds_decides_the_verdict(
    finding: object, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checker(default=False).claim("peak", finding, "so many of so many")
    assert capsys.readouterr().out.startswith(f"{verdict} | peak")


@pytest.mark.parametrize("finding", [1.0, [], [0, 1], None, "perhaps"])
def test_a_finding_that_is_no_finding_is_refused(finding: object) -> None:
    with pytest.raises(ValueError, match="claim 'peak'"):
        checker(default=False).claim("peak", finding, "evidence")


@pytest.mark.parametrize(
    ("source", "recorded", "affirmed"),
    [
        ("paper", "not reproduced", "reproduced"),
        ("paper", "extended", "extended"),
        ("reviewer", "not reproduced", "reproduced"),
        ("this book", "reproduced in part", "extended"),
        ("this book", "reproduced", "reproduced"),
    ],
)
def test_a_claim_of_this_book_alone_is_an_extension(source: str, recorded: str, affirmed: str) -> None:
    claim = Claim("id", "statement", "where", source, "proved", "page", recorded)
    assert claim.affirmed == affirmed
