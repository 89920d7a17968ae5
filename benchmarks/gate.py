"""Measures the model gate's false promotions and its power: `python -m benchmarks.gate`.

The peer is the rule of most pipelines: promote when the metric is higher.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate_retraining import FULL, QUICK, Retrained, mnist, retrain, small_digits
from benchmarks.report import Row, hardware, percent, rate, section, wrap
from headrace.evaluation import paired_tests
from headrace.evaluation.error_budget import confidence_of
from headrace.evaluation.gate import compare
from headrace.recipe.gate import BeatChampion
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION

CONFIDENCE = 0.95
RETRAINS = 12
SERIES = (RETRAINS, 52)
"""Lengths of the simulated series: a retrain a month, and one a week, for a year."""
METRIC_ROWS = 300
Drawn = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""The true targets, and the outputs of two models."""


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs every measurement, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few trials on scikit-learn's digits, without a network: a check of the code, not a result",
    )
    parser.add_argument("--out", type=Path, help="file for the report (default: docs/benchmarks/gate.md, or none with --quick)")
    parser.add_argument("--cache", type=Path, default=Path(".headrace/benchmarks"), help="folder for the downloaded digits")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else Path("docs/benchmarks/gate.md"))
    digits = small_digits() if options.quick else mnist(options.cache.resolve())
    started = time.perf_counter()
    trials = 400 if options.quick else 20_000
    sections = [
        equal_models(trials),
        power(trials),
        repeated(trials // 10),
        cost_of_the_budget(trials),
        every_metric(40 if options.quick else 600),
        *retrained_models(retrain(digits, QUICK if options.quick else FULL)),
    ]
    text = "\n\n".join([wrap(HEAD.format(hardware=hardware(), minutes=(time.perf_counter() - started) / 60)), *sections]) + "\n"
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return text


HEAD = """# The model gate: false promotions and power

Written by `python -m benchmarks.gate` in {minutes:.1f} minutes on {hardware}.

The gate compares a candidate with the champion on the same test rows, and promotes the candidate when it is better with
95 % confidence (one-sided, margin 0). That confidence holds for all comparisons on a test set together: comparison k
spends 1 / (k (k + 1)) of the allowed 5 %. *Each at 95 %* is the gate without this budget; where a table does not speak of
series, it is one comparison at 95 %. *Naive* is the peer: promote when the metric is higher. A promotion is *false* when
the candidate's true accuracy is not higher than the champion's. Brackets show 95 % Clopper-Pearson intervals."""


def equal_models(trials: int) -> str:
    """Simulates two models with the same true accuracy: every promotion is false."""
    rng = np.random.default_rng(1)
    rows = []
    for n in (200, 1_000, 5_000, 20_000):
        for accuracy in (0.80, 0.95, 0.99):
            won, lost = discordant(rng, n, 0.8 * (1 - accuracy), 0.0, trials)
            rows.append((f"{n:,}", f"{accuracy:.2f}", rate(mcnemar(won, lost)), rate(won > lost)))
    prose = f"""
{trials:,} releases per row of the table. The two models have the same true accuracy, and exactly one of them is right on
0.8 × (1 − accuracy) of all test rows. A false promotion costs no accuracy here, because the candidate is as good. It costs
a rollout, and users' trust in the gate."""
    return section("Equal models, simulated", prose, ("test rows", "true accuracy", "gate: false promotions", "naive"), rows)


def power(trials: int) -> str:
    """Simulates a candidate that is better by a known amount: every promotion is right."""
    rng = np.random.default_rng(2)
    rows = []
    for n in (1_000, 5_000, 20_000):
        for gain in (0.005, 0.01, 0.02):
            won, lost = discordant(rng, n, 0.04, gain, trials)
            rows.append((f"{n:,}", f"{100 * gain:g} points", rate(mcnemar(won, lost)), rate(won > lost)))
    prose = f"""
{trials:,} releases per row of the table. Exactly one of the two models is right on 4 % of the test rows. This is the cost
of the gate's caution: where it promotes rarely, the test set is too small to distinguish the gain from chance."""
    header = ("test rows", "true gain in accuracy", "gate: correct promotions", "naive")
    return section("A truly better candidate, simulated", prose, header, rows)


def repeated(trials: int) -> str:
    """Simulates retrains in a row, each compared with the current champion; all models are equally good."""
    rng = np.random.default_rng(3)
    rows = []
    for n in (1_000, 10_000):
        for length in SERIES:
            series = max(10, trials * RETRAINS // length)
            counts = discordant(rng, n, 0.04, 0.0, series * length)
            won, lost = (found.reshape(series, length) for found in counts)
            numbers = np.arange(1, length + 1)
            gate = np.stack([mcnemar(won[:, k - 1], lost[:, k - 1], confidence_of(int(k), CONFIDENCE)) for k in numbers])
            alone = mcnemar(won.ravel(), lost.ravel()).reshape(won.shape).sum(axis=1)
            found = (gate.sum(axis=0), alone, (won > lost).sum(axis=1))
            rows.append((f"{n:,}", f"{length}, new rows for each", *map(_series, found)))
            found = tuple(np.array([_promotions(_equally_good(rng, n, length)) for _ in range(series)]).T)
            rows.append((f"{n:,}", f"{length}, always the same", *map(_series, found)))
    prose = f"""
{trials:,} series of {SERIES[0]} and {trials * RETRAINS // SERIES[1]:,} of {
        SERIES[1]
    } per row of the table. Every model has true
accuracy 0.95 and two models differ on 4 % of the rows, so every promotion is false. (Where the test rows stay the same, a
model gets row i right with a probability drawn from Beta(0.691, 0.0364).) The table has the share of series with a false
promotion. An exact test at 95 % on new rows for each retrain would give 1 − 0.95^{RETRAINS} = {
        100 * (1 - 0.95**RETRAINS):.0f} % and 1 − 0.95^{SERIES[1]} = {100 * (1 - 0.95 ** SERIES[1]):.0f} %."""
    header = ("test rows", "retrains", "gate", "each at 95 %", "naive")
    return section("12 and 52 retrains in a row, simulated", prose, header, rows)


def cost_of_the_budget(trials: int) -> str:
    """Simulates a candidate that is better by a known amount, as the first and as a later comparison on the same rows."""
    rng = np.random.default_rng(6)
    rows = []
    for n in (1_000, 5_000, 20_000):
        for gain in (0.005, 0.01, 0.02):
            won, lost = discordant(rng, n, 0.04, gain, trials)
            shares = [percent(mcnemar(won, lost, confidence_of(int(k), CONFIDENCE))) for k in (1, 2, 5, RETRAINS, SERIES[1])]
            rows.append((f"{n:,}", f"{100 * gain:g} points", percent(mcnemar(won, lost)), *shares))
    prose = f"""
{trials:,} releases per row of the table, drawn as above. The shares of correct promotions by a single comparison at 95 %,
and by the gate where it is the first, second, … comparison on these test rows: this is what the error budget costs."""
    header = (
        "test rows",
        "true gain in accuracy",
        "each at 95 %",
        *(f"comparison {k}" for k in (1, 2, 5, RETRAINS, SERIES[1])),
    )
    return section("The cost of the error budget in power, simulated", prose, header, rows)


def every_metric(trials: int) -> str:
    """Compares equal models by every metric: each pair is drawn so that swapping the two models changes nothing."""
    rng = np.random.default_rng(4)
    pairs: dict[str, Callable[[], Drawn]] = {
        "10 classes": lambda: _classifiers(rng, 10, 3),
        "2 classes, high confidence": lambda: _classifiers(rng, 2, 4),
        "normal errors": lambda: _regressors(rng, lambda shape: rng.normal(size=shape)),
        "errors with a long tail": lambda: _regressors(rng, lambda shape: np.exp(1.5 * rng.normal(size=shape))),
    }
    # A tenth of the gate's resamples, to save time: the error rate does not depend on their number.
    with mock.patch.object(paired_tests, "RESAMPLES", 999):
        rows = [row for name, draw in pairs.items() for row in _metric_rows(name, draw, trials)]
    prose = f"""
{trials:,} releases per row of the table, on {METRIC_ROWS} test rows. *Bootstrap alone* is the textbook bound, without the
swap test that the gate adds. Where a few rows determine the metric, the textbook bound does not reach its 95 %."""
    header = ("models", "metric", "gate: false promotions", "bootstrap alone", "naive", "method")
    return section("Every metric, equal models, simulated", prose, header, rows)


def retrained_models(found: Retrained) -> list[str]:
    """Compares trained models on real rows."""
    plan, seeds = found.plan, range(found.plan.seeds)
    promoted = {
        (i, j, t): _accuracy_gate(found, i, j, t)
        for t in range(plan.test_sets)
        for j in seeds
        for i in range(len(found.truth))
        if i != j
    }
    candidates = {"retrained with another seed": seeds, f"trained on {plan.more:,} rows": range(plan.seeds, len(found.truth))}
    rows = []
    for name, chosen in candidates.items():
        trials = [key for key in promoted if key[0] in chosen]
        no_better = np.array([found.truth[i] <= found.truth[j] for i, j, _ in trials])
        p_values, naive = np.array([promoted[key] for key in trials]).T
        gate, naive = p_values < 1 - CONFIDENCE, naive.astype(bool)
        rows.append((name, f"{len(trials):,}", *(percent(p) for p in (gate, naive, gate & no_better, naive & no_better))))
    spread = found.truth[: plan.seeds]
    prose = f"""
{found.source}. One CNN recipe, trained by Headrace's training loop with {plan.seeds} seeds on the same {plan.train:,}
rows. Their true accuracies, measured on {found.truth_rows:,} rows used for nothing else: {spread.min():.4f} to
{spread.max():.4f}, standard deviation {spread.std(ddof=1):.4f}. On {100 * found.disagreement:.1f} % of those rows
exactly one of two models is right. {plan.better_seeds} more models were trained on {plan.more:,} rows: mean
{found.truth[plan.seeds :].mean():.4f}. Every candidate is compared with every champion on {plan.test_sets} disjoint test
sets of {plan.test:,} rows. Models of different seeds differ slightly in true accuracy, so some promotions of a retrain are
right. The pairs share models and rows, so they are not independent trials, and no interval is given."""
    header = ("candidate", "releases", "at 95 %: promoted", "naive: promoted", "at 95 %: false", "naive: false")
    return [section("Real retrains", prose, header, rows), _real_series(found, promoted)]


def _real_series(found: Retrained, promoted: dict[tuple[int, int, int], tuple[float, bool]]) -> str:
    """Takes random orders of the retrained models, and compares each model with the current champion on one test set."""
    rng, plan = np.random.default_rng(5), found.plan
    length = min(RETRAINS, plan.seeds - 1)
    series = 200 * plan.test_sets
    rules: tuple[Callable[[float, bool, int], bool], ...] = (
        lambda p, better, k: p < 1 - confidence_of(int(k), CONFIDENCE),
        lambda p, better, k: p < 1 - CONFIDENCE,
        lambda p, better, k: better,
    )
    counts = np.zeros((len(rules), 3, series))
    for trial in range(series):
        order = rng.permutation(plan.seeds)[: length + 1]
        for which, promotes in enumerate(rules):
            champion = order[0]
            for k, candidate in enumerate(order[1:], 1):
                if promotes(*promoted[int(candidate), int(champion), trial % plan.test_sets], k):
                    counts[which, 0, trial] += 1
                    counts[which, 1, trial] += found.truth[candidate] <= found.truth[champion]
                    champion = candidate
            counts[which, 2, trial] = found.truth[champion] - found.truth[order[0]]
    rows = [
        (name, percent(c[1] > 0), f"{c[0].mean():.2f}", f"{c[1].mean():.2f}", f"{100 * c[2].mean():+.2f} points")
        for name, c in zip(("gate", "each at 95 %", "naive"), counts, strict=True)
    ]
    prose = f"""
{series:,} random orders of the same {plan.seeds} models, each series on one test set. The gain is the mean true
accuracy of the last champion minus that of the first."""
    header = ("rule", "series with a false promotion", "promotions per series", "false ones", "true gain")
    return section(f"{length} real retrains in a row", prose, header, rows)


def discordant(
    rng: np.random.Generator, n: int, share: float, gain: float, trials: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws the counts `(trials,)` of rows that only the candidate gets right, and that only the champion gets right."""
    won, lost, _ = rng.multinomial(n, [(share + gain) / 2, (share - gain) / 2, 1 - share], size=trials).T
    return won, lost


def mcnemar(won: Any, lost: Any, confidence: float = CONFIDENCE) -> NDArray[np.bool_]:
    """Returns the gate's decision for each pair of counts; a test checks that `gate.compare` decides the same."""
    from scipy.stats import binom

    found: NDArray[np.bool_] = binom.sf(np.asarray(won) - 1, np.add(won, lost), 0.5) < 1 - confidence
    return found


@lru_cache(maxsize=1_000_000)
def _p_value(won: int, lost: int) -> float:
    from scipy.stats import binom

    return float(binom.sf(won - 1, won + lost, 0.5))


def _equally_good(rng: np.random.Generator, n: int, retrains: int) -> NDArray[np.bool_]:
    """Draws which rows each model gets right, `(retrains + 1, n)`."""
    return rng.random((retrains + 1, n), dtype=np.float32) < rng.beta(0.691, 0.0364, n)


def _promotions(right: NDArray[np.bool_]) -> list[int]:
    """Counts the promotions of the gate, of the gate without a budget, and of the naive rule when each model is compared with
    the current champion."""
    levels = (lambda k: 1 - confidence_of(int(k), CONFIDENCE), lambda k: 1 - CONFIDENCE)
    found = [0, 0, 0]
    for rule in range(3):
        champion = 0
        for candidate in range(1, len(right)):
            won = int((right[candidate] & ~right[champion]).sum())
            lost = int((right[champion] & ~right[candidate]).sum())
            if won > lost if rule == 2 else _p_value(won, lost) < levels[rule](candidate):
                champion, found[rule] = candidate, found[rule] + 1
    return found


def series_with_false_promotion(
    rng: np.random.Generator, n: int, retrains: int, series: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Simulates series of retrains on the same `n` test rows, all models equally good.

    Returns:
        Which series `(series,)` have a promotion by the gate, and which by the naive rule.
    """
    found = np.array([_promotions(_equally_good(rng, n, retrains)) for _ in range(series)])
    return found[:, 0] > 0, found[:, 2] > 0


def _series(promotions: NDArray[Any]) -> str:
    return rate(promotions > 0)


def _classifiers(rng: np.random.Generator, classes: int, signal: float) -> Drawn:
    y = rng.integers(classes, size=METRIC_ROWS)
    seen = rng.normal(size=(METRIC_ROWS, classes)) + signal * np.eye(classes)[y]
    exps = np.exp([2 * (seen + 0.3 * rng.normal(size=seen.shape)) for _ in range(2)])
    first, second = exps / exps.sum(axis=2, keepdims=True)
    return y, first, second


def _regressors(rng: np.random.Generator, errors: Callable[[tuple[int, int]], NDArray[Any]]) -> Drawn:
    y = 3 * rng.normal(size=METRIC_ROWS)
    first, second = y + errors((2, METRIC_ROWS))
    return y, first, second


def _metric_rows(name: str, draw: Callable[[], Drawn], trials: int) -> Iterator[Row]:
    metrics = CLASSIFICATION if "class" in name else REGRESSION
    answers: dict[str, list[tuple[bool, bool, bool]]] = {metric: [] for metric in metrics}
    methods = {}
    for trial in range(trials):
        rows = draw()
        for metric, better in metrics.items():
            beat = BeatChampion(metric=metric, confidence=CONFIDENCE)
            gated = compare(*rows, beat=beat, better=better, seed=trial)
            with mock.patch.object(paired_tests, "hold_back", lambda bound, *_: bound):
                bootstrap_only = compare(*rows, beat=beat, better=better, seed=trial)
            answers[metric].append((gated.promoted, bootstrap_only.promoted, (gated.improvement or 0) > 0))
            methods[metric] = gated.method.replace(f", {paired_tests.RESAMPLES} resamples", "").split(", which sees")[0]
    for metric, found in answers.items():
        gate, alone, naive = (np.array(column) for column in zip(*found, strict=True))
        yield (
            name,
            metric,
            rate(gate),
            rate(alone) if "swap test" in methods[metric] else "(no bootstrap)",
            rate(naive),
            methods[metric],
        )


def _accuracy_gate(found: Retrained, candidate: int, champion: int, test_set: int) -> tuple[float, bool]:
    """Returns the p-value of the gate's test, and whether the naive rule promotes."""
    outputs = found.outputs[test_set]
    beat = BeatChampion(metric="accuracy", confidence=CONFIDENCE)
    answer = compare(found.y[test_set], outputs[candidate], outputs[champion], beat=beat, better="higher", seed=0)
    return 1.0 if answer.p_value is None else answer.p_value, (answer.improvement or 0) > 0


if __name__ == "__main__":
    main()
