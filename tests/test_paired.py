"""Paired comparison over seeds, and the parameters that pages on mixtures share."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from experiments.learned.bench import paired
from experiments.mixture_page import MixturePage


def test_paired_is_students_test() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 5, 40)) + np.array([1.0, 0.0])[:, None, None]
    found, known = paired(first, second), stats.ttest_rel(first, second)
    interval = known.confidence_interval(0.95)
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], interval, rtol=1e-10)
    np.testing.assert_array_equal(found.sign, np.sign(known.statistic) * (known.pvalue < 0.05))
    assert set(found.sign) == {0, 1}
    assert (paired(first, first).sign == 0).all()


def test_classes_must_fit_into_the_space() -> None:
    values: dict[str, Any] = {"num_classes": 3, "rank": 5, "delta": 0.2, "size": "smoke"}
    assert MixturePage(dim=15, **values).model == (3, 5, 0.2)
    with pytest.raises(ValidationError, match="num_classes \\* rank must be <= dim"):
        MixturePage(dim=14, **values)
