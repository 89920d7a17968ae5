"""Wilson's interval, compared with scipy's."""

from __future__ import annotations

import pytest
from scipy import stats

from headrace.evaluation.intervals import wilson_interval


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (3, 50), (40, 50), (43, 50), (50, 50), (7, 10_000)])
@pytest.mark.parametrize("confidence", [0.95, 0.998])
def test_the_interval_equals_that_of_scipy(k: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(k / n, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_without_cases_nothing_is_known() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
