"""Tests of the benchmark of drift alarms: it runs, and its rules are those that it names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import drift as benchmark
from benchmarks.drift_streams import by_day, counts_of, first_alarms, kolmogorov_smirnov, psi
from headrace.monitoring.drift import population_stability
from headrace.monitoring.sequential import Alarm, AlarmSettings
from tests.monitoring.rows import profile


@pytest.mark.exhaustive
def test_a_quick_run_shows_few_false_alarms_by_headrace_and_many_by_an_hourly_psi(tmp_path: Path) -> None:
    out = tmp_path / "drift.md"
    text = benchmark.main(["--quick", "--no-flights", "--no-embeddings", "--out", str(out)])
    assert out.read_text(encoding="utf-8") == text
    unchanged = text.split("## Nothing changes, simulated")[1].split("##")[0]
    shares = {name: float(share) for name, share in re.findall(r"\| ([^|]+) \| \d+ \| ([\d.]+) %", unchanged)}
    assert shares["Headrace"] <= 20 and shares["PSI > 0.2, an hour"] == 100
    found = text.split("## How soon a change is found, simulated")[1].split("##")[0]
    hours = {cells[0]: cells[1] for cells in (line.strip("| ").split(" | ") for line in found.splitlines() if "|" in line)}
    assert int(hours["mean + 1 sd"]) <= int(hours["mean + 0.5 sd"]) <= int(hours["mean + 0.25 sd"])


def test_the_test_of_a_day_equals_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    training, values = rng.normal(size=900), rng.normal(0.1, 1, size=(4, 300)).round(1)
    values[0, :50] = np.nan
    expected = [stats.ks_2samp(training, day[~np.isnan(day)], method="asymp") for day in values]
    sizes = [900 * n / (900 + n) for n in (250, 300, 300, 300)]
    # scipy's asymptotic p-value is that of another approximation; the statistic behind it is the same
    assert kolmogorov_smirnov(training, values) == pytest.approx(
        [stats.kstwobign.sf(np.sqrt(size) * one.statistic) for size, one in zip(sizes, expected, strict=True)]
    )


def test_the_stability_index_equals_that_of_the_drift_table() -> None:
    rng = np.random.default_rng(0)
    training, values = rng.normal(size=5_000), rng.normal(0.5, 1, size=(1, 1_000))
    edges = [-np.inf, *np.quantile(training, np.linspace(0, 1, 11)[1:-1]), np.inf]
    p, q = (np.histogram(rows, edges)[0] / rows.size for rows in (training, values))
    assert psi(training, values, False)[0] == pytest.approx(population_stability(p, q))
    assert psi(np.zeros(10), np.zeros((1, 10)), False)[0] == 0


def test_the_simulation_of_many_streams_agrees_with_the_alarm() -> None:
    of_distance = profile().feature("distance")
    one_feature = profile().model_copy(update={"features": [of_distance]})
    values = np.random.default_rng(0).normal(0.4, 1, size=(24, 50))
    for settings in (AlarmSettings(), AlarmSettings(tolerance=0.02), AlarmSettings(rows="correlated")):
        alarm = Alarm(one_feature, settings)
        hours = [alarm.update(str(hour), {"distance": rows}).raised for hour, rows in enumerate(values)]
        expected = next((number for number, raised in enumerate(hours, 1) if raised), 0)
        field = benchmark.FIELDS[0]
        counts = counts_of(field, of_distance.ranks, values, np.random.default_rng(1))
        found = first_alarms([of_distance.ranks.gaps], [counts], settings, 1)
        assert found.tolist() == [expected]


def test_hours_become_whole_days() -> None:
    assert by_day(np.zeros((50, 3))).shape == (2, 72)
