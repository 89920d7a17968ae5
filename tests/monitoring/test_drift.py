"""Drift of a window: effect sizes that people know, the worst feature first, and unusual windows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import distance as scipy_distance

from headrace.errors import DataError
from headrace.monitoring.drift import (
    FeatureDrift,
    chance_distance,
    compare,
    jensen_shannon,
    population_stability,
    total_variation,
)
from headrace.monitoring.profile import make_profile
from tests.monitoring.rows import contract, outputs, profile, rows

PROFILE = profile()


def drift(frame: pd.DataFrame) -> dict[str, FeatureDrift]:
    return {one.name: one for one in compare(PROFILE, frame, contract())}


def test_the_worst_feature_is_first() -> None:
    found = compare(PROFILE, rows(5, 1_000, shift=1.0), contract(), outputs(6, 1_000))
    assert found[0].name == "distance" and len(found) == 5
    # of two normal distributions one standard deviation apart: 2 Φ(1/2) − 1
    assert found[0].total_variation == pytest.approx(0.383, abs=0.04)
    assert found[0].psi is not None and found[0].psi > 0.2
    excesses = [one.excess for one in found]
    assert excesses == sorted(excesses, reverse=True) and abs(excesses[1]) < 0.03


def test_unchanged_rows_are_as_far_as_chance_explains() -> None:
    found = [drift(rows(seed, 50))["distance"] for seed in range(20, 120)]
    mean = np.mean([one.total_variation for one in found])
    assert mean == pytest.approx(found[0].expected_by_chance, rel=0.1)
    assert found[0].expected_by_chance is not None and found[0].expected_by_chance > 0.1  # 50 rows are few


def test_a_changed_share_is_the_total_variation() -> None:
    frame = rows(5, 10_000, shares=(0.3, 0.6, 0.1))
    assert drift(frame)["carrier"].total_variation == pytest.approx(0.3, abs=0.03)


def test_distances_equal_those_of_scipy_and_of_the_formulas() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    assert total_variation(p, q) == pytest.approx(0.4)
    assert jensen_shannon(p, q) == pytest.approx(scipy_distance.jensenshannon(p, q, base=2))
    assert population_stability(p, q) == pytest.approx(sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True)))
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
    assert chance_distance(np.array([0.5, 0.5]), 100, 10**9) == pytest.approx(0.04, abs=0.001)


def test_missing_unseen_and_out_of_range_values_are_counted() -> None:
    frame = rows(5, 100)
    frame.loc[:9, "distance"] = np.nan
    frame.loc[10:29, "distance"] = [np.inf, -np.inf] * 10
    frame.loc[:4, "carrier"] = "ZZ"
    frame.loc[5:6, "carrier"] = None
    found = drift(frame)
    assert found["distance"].missing == 0.1 and found["distance"].outside_range == 0.2 and found["distance"].unseen is None
    assert found["carrier"].unseen == 0.05 and found["carrier"].missing == 0.02 and found["carrier"].outside_range is None


def test_buckets_of_reference_and_window_are_distributions_side_by_side() -> None:
    frame = rows(5, 500)
    frame["hour"] = frame["hour"] + 0.5  # of a column that had whole numbers only
    for one in drift(frame).values():
        assert sum(bucket.reference for bucket in one.buckets) == pytest.approx(1)
        assert sum(bucket.window for bucket in one.buckets) == pytest.approx(1)
    hours = drift(frame)["hour"]
    assert hours.buckets[-1].name == "other numbers" and hours.total_variation == pytest.approx(1)


def test_a_vanished_field_is_absent_and_first() -> None:
    found = compare(PROFILE, rows(5, 200).drop(columns="carrier"), contract())
    assert found[0].name == "carrier" and found[0].absent and found[0].missing == 1 and found[0].total_variation == 1
    assert not found[1].absent


def test_a_window_without_rows_has_no_distance() -> None:
    found = compare(PROFILE, rows(5, 0), contract(), np.zeros((0, 2)))
    assert len(found) == 5
    assert all(one.rows == 0 and one.total_variation is None and one.buckets == [] for one in found)


def test_one_row_is_no_drift() -> None:
    found = compare(PROFILE, rows(5, 1), contract(), outputs(5, 1))
    assert all(one.total_variation is not None and one.excess < 0.2 for one in found)


def test_a_constant_reference_sees_another_number() -> None:
    constant = rows(1, 300).assign(hour=7)
    reference = make_profile(contract(), [constant])
    found = {one.name: one for one in compare(reference, rows(5, 100).assign(hour=8), contract())}
    assert found["hour"].total_variation == 1 and found["hour"].outside_range == 1
    same = {one.name: one for one in compare(reference, rows(5, 100).assign(hour=7), contract())}
    assert same["hour"].total_variation == 0 and same["hour"].psi == 0


def test_a_reference_that_was_all_missing_sees_numbers() -> None:
    reference = make_profile(contract(), [rows(1, 300).assign(distance=np.nan, carrier=None)])
    found = {one.name: one for one in compare(reference, rows(5, 100), contract())}
    for name in ("distance", "carrier"):
        assert found[name].total_variation == 1 and found[name].missing == 0
    assert found["distance"].outside_range == 1 and found["carrier"].unseen == 0


def test_answers_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="answers of shape"):
        compare(PROFILE, rows(5, 3), contract(), np.zeros((3, 7)))
