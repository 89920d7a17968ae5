"""Alarms over time: how often they are false, how soon they are right, and how their state survives."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import DamagedFile, DataError, NewerFile
from headrace.monitoring import betting
from headrace.monitoring.drift import window_values
from headrace.monitoring.features import Values
from headrace.monitoring.sequential import Alarm, AlarmSettings, AlarmState
from tests.monitoring.rows import contract, outputs, profile, rows

PROFILE = profile()


def values(seed: int, count: int = 50, **changes: Any) -> dict[str, Values]:
    return window_values(PROFILE, rows(seed, count, **changes), contract(), outputs(seed + 10_000, count))


def null_evidence(streams: int, windows: int, settings: AlarmSettings, seed: int, at_border: bool = False) -> Any:
    """Returns the highest evidence of each simulated stream in which nothing changes, with a reference of its own for each.

    With `at_border` the rows are as far from the reference distribution as the tolerance allows, always in one direction.
    """
    rng = np.random.default_rng(seed)
    gaps = np.tile(np.array(PROFILE.feature("distance").ranks.gaps, dtype=float), (streams, 1))
    p = rng.standard_gamma(gaps)
    p /= p.sum(axis=1, keepdims=True)
    if at_border:
        half = p.shape[1] // 2
        lower = p[:, :half].sum(axis=1, keepdims=True)
        p[:, :half] *= (lower - settings.tolerance) / lower
        p[:, half:] *= (1 - lower + settings.tolerance) / (1 - lower)
    exchangeable = settings.tolerance == 0 and settings.rows == "independent"
    radius = 0.0 if exchangeable else betting.region_radius(gaps[0], 0.005, rng)
    reference = betting.Reference(gaps, settings.tolerance, settings.rows == "correlated", np.full(streams, radius))
    evidence = betting.Evidence.empty(gaps)
    highest = np.zeros(streams)
    for number in range(1, windows + 1):
        counts = np.stack([rng.multinomial(rng.integers(1, 60), one) for one in p])
        evidence = betting.update(evidence, reference, counts, number)
        highest = np.maximum(highest, betting.log_evidence(evidence, number))
    return highest


@pytest.mark.parametrize(
    ("settings", "at_border"),
    [
        (AlarmSettings(), False),
        (AlarmSettings(tolerance=0.05), True),
        (AlarmSettings(rows="correlated"), False),
    ],
)
def test_unchanged_rows_raise_an_alarm_no_more_often_than_stated(settings: AlarmSettings, at_border: bool) -> None:
    highest = null_evidence(streams=300, windows=100, settings=settings, seed=4, at_border=at_border)
    for alpha in (0.5, 0.2, 0.05):
        share = float((highest >= -np.log(alpha)).mean())
        assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 300)


def test_the_wealth_of_unchanged_rows_is_one_on_average() -> None:
    """Over all orders in which Pólya's urn can give two windows of two rows: the bets are a martingale."""
    gaps = np.array([1.0, 4.0, 6.0])
    average, most = 0.0, 0.0
    for drawn in itertools.product(range(3), repeat=4):
        urn, chance = gaps.copy(), 1.0
        for bucket in drawn:
            chance *= urn[bucket] / urn.sum()
            urn[bucket] += 1
        evidence = betting.Evidence.empty(gaps)
        for number, window in enumerate((drawn[:2], drawn[2:]), 1):
            counts = np.bincount(window, minlength=3)
            evidence = betting.update(evidence, betting.Reference(gaps), counts, number)
        wealth = np.exp(float(betting.log_evidence(evidence, 2)))
        average, most = average + chance * wealth, max(most, wealth)
    assert average == pytest.approx(1, abs=1e-12)
    assert most > 1.01


def test_the_wealth_put_aside_is_one_in_total() -> None:
    assert sum(betting.put_aside(number) for number in range(1, 2_000)) + betting.reserve(1_999) == pytest.approx(1)
    assert betting.reserve(10**9) > 0


def test_a_clear_shift_is_found_within_hours_and_named() -> None:
    alarm = Alarm(PROFILE)
    for hour in range(60):
        assert alarm.update(f"before {hour}", values(hour)).raised is None
    found = next(h for h in range(40) if alarm.update(f"after {h}", values(100 + h, shift=0.5)).raised)
    assert found <= 12
    assert alarm.state.raised is not None
    assert alarm.state.raised.features == ["distance"]
    assert alarm.state.raised.window == f"after {found}"
    assert alarm.state.p_value <= 0.05


def test_changed_categories_are_found() -> None:
    alarm = Alarm(PROFILE)
    found = next(h for h in range(60) if alarm.update(str(h), values(h, shares=(0.4, 0.5, 0.1))).raised)
    assert found <= 12
    assert alarm.state.raised is not None and alarm.state.raised.features == ["carrier"]


def test_a_difference_below_the_tolerance_raises_no_alarm_and_a_larger_one_does() -> None:
    shares = (0.5, 0.4, 0.1)  # a total variation distance of 0.1
    strict, tolerant = Alarm(PROFILE), Alarm(PROFILE, AlarmSettings(tolerance=0.2))
    for hour in range(60):
        strict.update(str(hour), values(hour, shares=shares))
        tolerant.update(str(hour), values(hour, shares=shares))
    assert strict.state.raised is not None
    assert tolerant.state.raised is None
    assert any(tolerant.update(f"far {h}", values(500 + h, shares=(0.1, 0.3, 0.6))).raised for h in range(40))


def test_rows_that_repeat_within_a_window_are_no_evidence_if_rows_may_be_correlated() -> None:
    def repeated(seed: int) -> dict[str, Values]:
        one = values(seed, 2)
        return {name: np.repeat(column, 25) for name, column in one.items()}

    independent, correlated = Alarm(PROFILE), Alarm(PROFILE, AlarmSettings(rows="correlated"))
    for hour in range(40):
        independent.update(str(hour), repeated(hour))
        correlated.update(str(hour), repeated(hour))
    assert independent.state.raised is not None
    assert correlated.state.raised is None
    assert any(correlated.update(f"after {h}", values(100 + h, shift=1.0)).raised for h in range(60))


@pytest.mark.parametrize("settings", [AlarmSettings(), AlarmSettings(tolerance=0.05, rows="correlated")])
def test_a_state_that_was_written_and_read_goes_on_the_same(tmp_path: Path, settings: AlarmSettings) -> None:
    path = tmp_path / "alarm.json"
    whole = Alarm(PROFILE, settings)
    for hour in range(6):
        whole.update(str(hour), values(hour, shift=0.2))
        alarm = Alarm(PROFILE, settings, AlarmState.read(path))
        alarm.update(str(hour), values(hour, shift=0.2)).write(path)  # the process ends after each window
    assert AlarmState.read(path) == whole.state
    assert path.stat().st_size < 20_000


def test_a_window_given_twice_counts_once() -> None:
    alarm = Alarm(PROFILE)
    before = alarm.update("2026-10-25T01Z", values(1, shift=1.0))
    again = alarm.update("2026-10-25T01Z", values(2, shift=3.0))
    assert not again.counted and again.model_copy(update={"counted": True}) == before
    assert alarm.update("2026-10-25T00Z", values(3)).counted  # a clock that goes back is another window
    assert alarm.state.windows == 2


def test_an_empty_window_changes_no_evidence() -> None:
    alarm = Alarm(PROFILE)
    before = alarm.update("1", values(1)).evidence
    state = alarm.update("2", values(2, 0))
    assert state.evidence == before and state.windows == 1 and state.counted
    assert not alarm.update("2", values(2)).counted


def test_a_window_of_one_row_counts() -> None:
    state = Alarm(PROFILE).update("1", values(1, 1))
    assert state.rows == 1 and state.raised is None


def test_a_field_that_vanished_raises_an_alarm_at_once() -> None:
    window = window_values(PROFILE, rows(3, 50).drop(columns="distance"), contract())
    state = Alarm(PROFILE).update("1", window)
    assert state.raised is not None and state.raised.features == ["distance"]


def test_answers_that_are_not_recorded_do_not_hinder_the_inputs() -> None:
    alarm = Alarm(PROFILE)
    for hour in range(20):
        alarm.update(str(hour), window_values(PROFILE, rows(hour, 50, shift=0.7), contract()))
    assert alarm.state.raised is not None and alarm.state.raised.features == ["distance"]
    assert all(alarm.state.by_feature[name] <= 1e-9 for name in ("(answer)", "(confidence)"))


def test_infinite_numbers_and_unseen_categories_raise_an_alarm_and_no_error() -> None:
    frame = rows(5, 50)
    frame.loc[:20, "distance"] = np.inf
    frame.loc[:20, "carrier"] = "ZZ"
    state = Alarm(PROFILE).update("1", window_values(PROFILE, frame, contract()))
    assert state.raised is not None and set(state.raised.features) == {"distance", "carrier"}


def test_a_raised_alarm_stays_until_the_restart_and_counted_windows_stay_counted() -> None:
    alarm = Alarm(PROFILE)
    alarm.update("1", values(1, shift=5.0))
    assert alarm.update("2", values(2)).raised is not None
    assert alarm.restart().raised is None
    assert alarm.state.highest == 0
    assert not alarm.update("1", values(1, shift=5.0)).counted
    assert alarm.update("3", values(3)).windows == 1


def test_the_state_of_another_version_or_of_other_settings_is_refused() -> None:
    state = Alarm(PROFILE).update("1", values(1))
    with pytest.raises(DataError, match="version 1 with another profile; this one is of version 2"):
        Alarm(profile(version="2"), state=state)
    with pytest.raises(DataError, match="other settings"):
        Alarm(PROFILE, AlarmSettings(alpha=0.01), state)


def test_a_damaged_or_newer_state_is_refused_and_a_missing_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "alarm.json"
    assert AlarmState.read(path) is None
    path.write_text("{")
    with pytest.raises(DamagedFile, match="not valid JSON"):
        AlarmState.read(path)
    path.write_text("{}")
    with pytest.raises(DamagedFile, match="not the state of an alarm: model: Field required"):
        AlarmState.read(path)
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(NewerFile):
        AlarmState.read(path)
