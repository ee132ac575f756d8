"""Claims and checks: what the paper says, and what a page finds.

`book/claims.yml` lists every claim with its statement, who makes it and where, the kind of evidence, page and
recorded verdict. A page's check cells go through a `Checker`. An identity must hold for all parameters; a
claim has a verdict, which is a finding: at the page's default parameters it must equal the recorded one, so
that a change of verdict cannot pass unseen, and at other parameters it is shown.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from molrg.support.clone import ROOT

__all__ = ["EVIDENCE", "LEDGER", "OWN", "SOURCES", "VERDICTS", "CheckFailed", "Checker", "Claim", "load"]

VERDICTS = ("reproduced", "reproduced in part", "not reproduced", "extended")
"""The possible findings about a claim."""

OWN = "this book"
SOURCES = ("paper", "reviewer", "literature", OWN)
"""Who makes a claim: the paper, its review thread, other work, or this book."""

EVIDENCE = ("proved", "certified", "exact computation", "simulation", "experiment")
"""What a verdict rests on, from the strongest on: of several kinds, the weakest that it needs."""

LEDGER = ROOT / "book" / "claims.yml"


class CheckFailed(AssertionError):
    """An identity does not hold, or a claim's verdict differs from the recorded one."""


@dataclass(frozen=True)
class Claim:
    """A claim: what is said, where and by whom, evidence, page and recorded verdict.

    `source` is one of `SOURCES`, `evidence` one of `EVIDENCE`. An experiment has a `scale`: data, networks,
    repetitions, in a few words; it is empty for all else.
    """

    id: str
    statement: str
    where: str
    source: str
    evidence: str
    page: str
    verdict: str
    scale: str = ""

    @property
    def affirmed(self) -> str:
        """The verdict if all of it holds: `extended` for what only this book claims, else `reproduced`."""
        if self.verdict in ("reproduced", "extended"):
            return self.verdict
        return "extended" if self.source == OWN else "reproduced"


class _Parameters(Protocol):
    @property
    def is_default(self) -> bool: ...


def load(path: Path | None = None) -> dict[str, Claim]:
    """The ledger: claims by id, in the order of `book/claims.yml`.

    Raises `ValueError`, naming the claim, for a missing, unknown or empty key, for an unknown source, kind of
    evidence or verdict, and for an experiment without a scale; naming the line for an id or a key that occurs
    twice.
    """
    path = path or LEDGER
    entries = _entries(path.read_text(encoding="utf-8"))
    return {claim_id: _claim(claim_id, entry, path) for claim_id, entry in entries.items()}


@lru_cache(maxsize=1)  # the build asks for every page, and reading YAML takes half a second
def _entries(text: str) -> Mapping[str, Any]:
    import yaml

    loader = yaml.SafeLoader(text)
    ledger = loader.get_single_node()
    if ledger is None:
        return {}
    for mapping in (ledger, *(entry for _, entry in ledger.value)):
        if isinstance(mapping, yaml.MappingNode):  # of two equal keys the last would win, unseen
            keys = Counter(key.value for key, _ in mapping.value)
            if twice := [key for key, count in keys.items() if count > 1]:
                raise ValueError(
                    f"the ledger of claims has {twice[0]!r} twice, below line {mapping.start_mark.line + 1}"
                )
    return loader.construct_document(ledger)


def _claim(claim_id: str, entry: Mapping[str, Any], path: Path) -> Claim:
    where = f"claim {claim_id!r} in {path.name}"
    keys = ["statement", "where", "source", "evidence", "page", "verdict"]
    if isinstance(entry, Mapping) and entry.get("evidence") == "experiment":
        keys.insert(4, "scale")
    if not isinstance(entry, Mapping) or set(entry) != set(keys):
        found = sorted(entry) if isinstance(entry, Mapping) else repr(entry)
        raise ValueError(f"{where} must have exactly the keys {', '.join(keys)}; found {found}")
    for key in keys:
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{where}: {key} must be a text that is not empty; found {entry[key]!r}")
    for key, known in (("source", SOURCES), ("evidence", EVIDENCE), ("verdict", VERDICTS)):
        if entry[key] not in known:
            raise ValueError(f"{where}: {key} {entry[key]!r} is not one of {', '.join(known)}")
    return Claim(id=claim_id, **{key: " ".join(entry[key].split()) for key in keys})


class Checker:
    """The checks of one page. Each check prints one line; a broken one raises `CheckFailed`.

    `page_id` is the page's path in the book without suffix; `parameters` its checked parameters, of which
    only `is_default` is used; `ledger` the claims by id, by default those of `book/claims.yml`.
    """

    def __init__(self, page_id: str, parameters: _Parameters, ledger: Mapping[str, Claim] | None = None):
        self._enforce = parameters.is_default
        self._page = page_id
        self._claims = {c.id: c for c in (load() if ledger is None else ledger).values() if c.page == page_id}

    def identity(self, compared: str, error: Any, bound: float) -> None:
        """Check that an error is at most a bound, whatever the parameters of the page.

        `error` is a number, array or tensor of errors, whose largest absolute value counts. The line shows
        the bound and not the value, which is roundoff and differs between processors.
        """
        import numpy

        largest = float(numpy.max(numpy.abs(numpy.asarray(error)), initial=0.0))
        if not largest <= bound:  # also where it is not a number
            raise CheckFailed(f"{compared}: difference {largest:.3g} exceeds the bound {bound:.3g}")
        print(f"holds | {compared}: difference <= {bound:.3g}")

    def claim(self, claim_id: str, finding: Any, evidence: str) -> None:
        """State what this run finds about a claim of the ledger, with its evidence.

        `finding` is a verdict; or whether the claim holds; or whether each of its parts, or of the cases
        tried, holds: some make it `reproduced in part`. At the page's default parameters the verdict must be
        the recorded one. Raises `ValueError` for an unknown verdict or a claim that the ledger does not list
        for this page.
        """
        if claim_id not in self._claims:
            known = ", ".join(self._claims) or "none"
            raise ValueError(f"book/claims.yml has no claim {claim_id!r} for page {self._page}, only {known}")
        verdict = finding if isinstance(finding, str) else self._verdict(claim_id, finding)
        if verdict not in VERDICTS:
            raise ValueError(f"verdict {verdict!r} of claim {claim_id!r} is not one of {', '.join(VERDICTS)}")
        recorded = self._claims[claim_id].verdict
        if self._enforce and verdict != recorded:
            raise CheckFailed(
                f"claim {claim_id}: the recorded verdict is {recorded!r}, this run finds {verdict!r}: "
                f"{evidence}. If the finding stands, record it in book/claims.yml."
            )
        print(f"{verdict} | {claim_id}: {evidence}")

    def _verdict(self, claim_id: str, finding: Any) -> str:
        import numpy

        holds = numpy.asarray(finding)
        if holds.dtype != bool or not holds.size:
            raise ValueError(
                f"finding of claim {claim_id!r} must be a verdict, or True or False; it is {finding!r}"
            )
        if holds.all():
            return self._claims[claim_id].affirmed
        return "reproduced in part" if holds.any() else "not reproduced"
