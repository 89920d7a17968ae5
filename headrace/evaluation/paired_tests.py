"""Bounds on the improvement of one model over another on the same rows: exact, asymptotic or resampled.

Every bound is one-sided at `confidence`; `lower` and `upper` together make a two-sided interval of level 2·confidence − 1.
Differences are positive when the candidate is better. Rows of a group (a person, a document) err together: with `groups`,
`(rows,)` numbers from 0, whole groups are resampled and exchanged instead of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Groups = NDArray[np.int64] | None

RESAMPLES = 9_999
LARGE = 5_000
"""With more rows a formula replaces resampling: resampling n rows costs n·RESAMPLES draws, and BCa's jackknife n²."""
TAIL = 20
"""Resamples that have to be beyond a bound: with fewer expected there, a formula replaces resampling."""
STEADY_ROWS = 20
"""Rows of a class that have to agree before agreement is evidence (0.86 to the 20th is 5 %)."""
CELLS_AT_ONCE = 4_000_000
"""Numbers in memory while resampling: 32 MB."""


@dataclass(frozen=True)
class Bound:
    """A one-sided bound on each side; None if the rows allow no bound."""

    lower: float | None
    upper: float | None
    method: str
    p_value: float | None = None


def mcnemar(won: int, lost: int, rows: int, confidence: float) -> Bound:
    """Makes the exact McNemar test: of the rows that only one model gets right, does the candidate get more than half?

    Only the candidate gets `won` rows right, only the champion `lost` rows. p is P(X >= won) for X ~ Bin(won + lost, 1/2)
    (McNemar 1947, Psychometrika 12:153; as advised by Dietterich 1998, Neural Computation 10:1895). The bounds are
    Clopper-Pearson's on won/(won + lost), turned into a difference of accuracies given the number of discordant rows.
    """
    from scipy.stats import beta, binom

    discordant = won + lost
    low = float(beta.ppf(1 - confidence, won, lost + 1)) if won else 0.0
    high = float(beta.ppf(confidence, won + 1, lost)) if lost else 1.0
    return Bound(
        (2 * low - 1) * discordant / rows,
        (2 * high - 1) * discordant / rows,
        "exact McNemar test",
        p_value=float(binom.sf(won - 1, discordant, 0.5)),
    )


def tango(won: int, lost: int, rows: int, confidence: float) -> Bound:
    """Returns the score interval for the difference of two paired proportions (Tango 1998, Statistics in Medicine 17:891).

    It is correct with few discordant rows, where a bootstrap fails: 100 rows without any do not show a loss below 1 %.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(confidence))
    edge = 1 - 1e-12

    def root(goal: float) -> float:
        def excess(delta: float) -> float:
            return _tango_score(won, lost, rows, delta) - goal

        if excess(-edge) <= 0:
            return -1.0
        return 1.0 if excess(edge) >= 0 else float(brentq(excess, -edge, edge, xtol=1e-12))

    return Bound(root(z), root(-z), "Tango's score interval")


def mean(differences: Floats, margin: float, confidence: float, rng: np.random.Generator, groups: Groups = None) -> Bound:
    """Bounds the mean of row-wise differences `(rows,)`: up to LARGE rows by a BCa bootstrap (Efron & Tibshirani 1993,
    chapter 14), above by a t bound corrected for skewness; both limited by the swap test.
    """
    ones = np.ones_like(differences)
    pair = np.stack([differences, ones], axis=1), np.stack([0 * ones, ones], axis=1)
    return quotient(*pair, margin, confidence, rng, groups)


def quotient(
    candidate: Floats, champion: Floats, margin: float, confidence: float, rng: np.random.Generator, groups: Groups = None
) -> Bound:
    """Bounds the difference of two ratios of sums, from amounts and weights `(rows, 2)` with the same weights in both.

    It bounds the mean of the rows' linear contributions (the delta method), limited by the swap test on the amounts. With
    weights of 1 it is a difference of two means.
    """
    weights = candidate[:, 1]
    saved = (candidate[:, 0] - champion[:, 0]) / weights.mean()
    if len(saved) < 2 or np.ptp(saved) == 0:
        return Bound(None, None, "too few rows that differ")
    differences = saved + saved.mean() * (1 - weights / weights.mean())
    return linear(differences, saved - margin * weights / weights.mean(), margin, confidence, rng, groups)


def linear(
    contributions: Floats,
    exchanged: Floats,
    margin: float,
    confidence: float,
    rng: np.random.Generator,
    groups: Groups = None,
) -> Bound:
    """Bounds a gain from the first-order contributions of the rows, `(rows,)`, whose mean it is; limited by the swap test.

    Args:
        exchanged: what each row adds to the gain beyond the margin, `(rows,)`, and takes from it if the models change places.
        groups: the group of each row; the contributions of a group are added up first (for the AUC this is Obuchowski 1997,
            Biometrics 53:567).
    """
    if groups is not None:
        count, centre = int(groups.max()) + 1, contributions.mean()
        deviations = np.bincount(groups, contributions - centre, minlength=count)
        contributions = centre + deviations * count / len(contributions)
        exchanged = np.bincount(groups, exchanged, minlength=count).astype(np.float64)
    if len(contributions) < 2 or np.ptp(contributions) == 0:
        return Bound(None, None, f"too few {'rows' if groups is None else 'groups'} that differ")
    with_formula = len(contributions) > LARGE or not _can_resample(confidence, RESAMPLES)
    bound = hall(contributions, confidence) if with_formula else _bca(contributions, confidence, rng)
    bound = hold_back(bound, swap_test(exchanged, rng, 1 - confidence), margin, confidence)
    return bound if groups is None else replace(bound, method=f"{bound.method}, by {len(contributions):,} groups")


def _can_resample(confidence: float, resamples: int) -> bool:
    return (1 - confidence) * resamples >= TAIL


def swap_test(differences: Floats, rng: np.random.Generator, level: float = 0.05) -> float:
    """Returns the p-value of a mean above zero if the two models of each row could be exchanged (the sign-flip test: Fisher
    1935, chapter 3; for comparing two models Yeh 2000, arXiv:cs/0008005).

    The test is exact if the models differ by chance only, as one recipe trained with two seeds. A bootstrap is not: when a
    few rows dominate the loss, it promoted one retrain in seven instead of one in twenty.

    Args:
        level: where this many flips cannot tell whether p is below it, a formula replaces them.
    """
    n = len(differences)
    flips = int(np.clip(12 * CELLS_AT_ONCE // n, 999, RESAMPLES))
    if not _can_resample(1 - level, flips):
        return sign_flip_tail(differences)
    observed = float(differences.sum())
    as_high = 0
    for size in _batches(flips, n):
        bits = np.unpackbits(rng.integers(256, size=(size, -(-n // 8)), dtype=np.uint8), axis=1, count=n)
        # a tolerance, since the sum of unflipped rows in another order is not the same number to the last bit
        as_high += int((2 * (bits @ differences) - observed >= observed - 1e-9 * float(np.abs(differences).sum())).sum())
    return (1 + as_high) / (1 + flips)


def sign_flip_tail(differences: Floats) -> float:
    """Returns the p-value of `swap_test` without resampling, by a saddlepoint approximation of the sum of randomly signed
    numbers (Robinson 1982, JRSS B 44:91; Lugannani & Rice 1980, Adv. Appl. Prob. 12:475).

    Differences that are multiples of one number get a continuity correction. p is never below that of equal signs, 2^-n.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    sizes = np.abs(differences[differences != 0])
    observed = float(differences.sum())
    if len(sizes) == 0 or observed <= 0:
        return 1.0
    scale = float(sizes.max())
    sizes, observed = sizes / scale, observed / scale
    least, total = 2.0 ** -len(sizes), float(sizes.sum())
    if observed >= total * (1 - 1e-9):
        return least
    step = float(sizes.min())
    if np.allclose(sizes / step, np.round(sizes / step), atol=1e-6):
        observed -= step
    if observed <= 1e-9 * total:
        return 1.0

    def slope(t: float) -> float:
        return float(sizes @ np.tanh(sizes * t)) - observed

    high = 1.0
    while slope(high) < 0:
        high *= 2
    t = float(brentq(slope, 0.0, high))
    x = sizes * t
    cumulant = float((x + np.log1p(np.exp(-2 * x))).sum()) - len(sizes) * math.log(2)
    curvature = float((sizes**2 / np.cosh(np.minimum(x, 300)) ** 2).sum())
    w, u = math.sqrt(max(0.0, 2 * (t * observed - cumulant))), t * math.sqrt(curvature)
    if w < 1e-4 or u == 0:
        return 1.0 if w < 1e-4 else least
    tail = float(norm.sf(w) + norm.pdf(w) * (1 / u - 1 / w))
    return min(1.0, max(least, tail))


def hold_back(bound: Bound, p_value: float, margin: float, confidence: float) -> Bound:
    """Lowers the bound to the margin if the swap test does not confirm that the margin is exceeded."""
    lower = bound.lower
    if lower is not None and p_value > 1 - confidence:
        lower = min(lower, margin)
    return Bound(lower, bound.upper, f"{bound.method}, with a swap test", p_value)


def _bca(differences: Floats, confidence: float, rng: np.random.Generator) -> Bound:
    from scipy.stats import bootstrap

    with np.errstate(all="ignore"):
        interval = bootstrap(
            (differences,),
            np.mean,
            confidence_level=2 * confidence - 1,
            n_resamples=RESAMPLES,
            batch=max(1, CELLS_AT_ONCE // len(differences)),
            method="BCa",
            rng=rng,
        ).confidence_interval
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return hall(differences, confidence)
    return Bound(float(interval.low), float(interval.high), f"paired BCa bootstrap, {RESAMPLES} resamples")


def hall(differences: Floats, confidence: float) -> Bound:
    """Returns a t bound on a mean, corrected for skewness by Hall's cubic (Hall 1992, JRSS B 54:221), in O(rows)."""
    from scipy.stats import t

    n = len(differences)
    centre, scale = float(differences.mean()), float(differences.std(ddof=1))
    skew = float((((differences - centre) / scale) ** 3).mean())

    def bound(level: float) -> float:
        x = float(t.ppf(level, n - 1)) / math.sqrt(n) - skew / (6 * n)
        shift = x if abs(skew) < 1e-6 else (math.copysign(abs(1 + skew * x) ** (1 / 3), 1 + skew * x) - 1) * 3 / skew
        return centre - scale * shift

    return Bound(bound(confidence), bound(1 - confidence), "t bound corrected for skewness (Hall)")


def delong(
    y: NDArray[np.int64],
    candidate: Floats,
    champion: Floats,
    confidence: float,
    grouped: tuple[NDArray[np.int64], float, np.random.Generator] | None = None,
) -> Bound:
    """Bounds the difference of two AUCs on the same rows (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837).

    Takes classes `(rows,)` and probabilities `(rows, classes)`. With several classes it uses the mean of one against the
    rest, and the variance of the mean of their components. Degrees of freedom are Welch-Satterthwaite's, since a class may
    have few rows.

    Args:
        grouped: the group of each row, the margin, and random numbers for the swap test, where rows of a group err together.
    """
    from scipy.stats import t

    present = np.unique(y)
    scored = np.array([1]) if candidate.shape[1] == 2 else present
    parts = np.zeros(len(y))
    for k in scored:
        parts += (_placements(y == k, candidate[:, k]) - _placements(y == k, champion[:, k])) / len(scored)
    groups = [parts[y == k] for k in present]
    if min(len(group) for group in groups) < 2:
        return Bound(None, None, "DeLong, which needs two rows of each class")
    if grouped is not None:
        rows_of, margin, rng = grouped
        centres = np.zeros(len(y))
        for k in present:
            centres[y == k] = parts[y == k].mean()
        gain = float(parts.mean()) / 2
        bound = linear(gain + parts - centres, parts / 2 - margin, margin, confidence, rng, rows_of)
        return replace(bound, method=f"DeLong's components, {bound.method}")
    spread = np.array([group.var(ddof=1) * len(group) for group in groups]) / len(y) ** 2
    centre = float(parts.mean()) / 2  # the sum over positives is one AUC, that over negatives another
    if spread.sum() == 0:
        # for example a perfect candidate and a constant champion: accepted if each class has enough rows
        sure = centre != 0 and min(len(group) for group in groups) >= STEADY_ROWS
        return (
            Bound(centre, centre, "DeLong, no row disagrees") if sure else Bound(None, None, "DeLong, which sees no variance")
        )
    freedom = spread.sum() ** 2 / np.sum(spread**2 / (np.array([len(group) for group in groups]) - 1))
    reach = float(t.ppf(confidence, freedom)) * math.sqrt(float(spread.sum()))
    return Bound(centre - reach, centre + reach, "DeLong")


def macro_f1(
    y: NDArray[np.int64],
    candidate: NDArray[np.int64],
    champion: NDArray[np.int64],
    classes: int,
    margin: float,
    confidence: float,
    rng: np.random.Generator,
    groups: Groups = None,
) -> Bound:
    """Bounds the difference of two macro F1 scores by a percentile bootstrap over rows (Efron & Tibshirani 1993, chapter 13).

    Rows with the same truth and predictions are drawn together, as multinomial counts: the distribution is the same, and the
    cost depends on the number of distinct triples, not of rows. The bound is limited by the swap test, drawn the same way.
    With groups, and for a confidence that resampling cannot resolve, by the delta method.
    """
    if groups is not None or not _can_resample(confidence, RESAMPLES):
        return _linear_macro_f1(y, candidate, champion, classes, margin, confidence, rng, groups)
    cells, counts = np.unique(np.stack([y, candidate, champion], axis=1), axis=0, return_counts=True)
    resamples = int(np.clip(25 * CELLS_AT_ONCE // len(cells), 1_000, RESAMPLES))
    truth, first, second = (_groups(column, np.ones(len(cells)), classes) for column in cells.T)
    first_right, second_right = (_groups(cells[:, 0], cells[:, 0] == cells[:, i], classes) for i in (1, 2))

    def gain(kept: Floats, exchanged: Floats) -> Floats:
        """Returns the gain from counts `(resamples, cells)` of unchanged rows, and of rows whose predictions are exchanged."""
        support = (kept + exchanged) @ truth
        return _f1(support, kept @ first + exchanged @ second, kept @ first_right + exchanged @ second_right) - _f1(
            support, kept @ second + exchanged @ first, kept @ second_right + exchanged @ first_right
        )

    differences, swapped = [], []
    for size in _batches(resamples, len(cells)):
        drawn = rng.multinomial(len(y), counts / len(y), size=size).astype(np.float64)
        differences.append(gain(drawn, np.zeros_like(drawn)))
        kept = rng.binomial(counts, 0.5, size=(size, len(cells))).astype(np.float64)
        swapped.append(gain(kept, counts - kept))
    observed = gain(counts[None].astype(np.float64), np.zeros((1, len(cells))))
    bound = _percentile(np.concatenate(differences), confidence, resamples)
    if margin < 0:  # a margin that allows a loss cannot be tested by exchanging
        return bound
    p_value = (1 + int((np.concatenate(swapped) >= observed - 1e-12).sum())) / (1 + resamples)
    return hold_back(bound, p_value, 0.0, confidence)


def _linear_macro_f1(
    y: NDArray[np.int64],
    candidate: NDArray[np.int64],
    champion: NDArray[np.int64],
    classes: int,
    margin: float,
    confidence: float,
    rng: np.random.Generator,
    groups: Groups,
) -> Bound:
    truth = np.bincount(y, minlength=classes).astype(np.float64)
    counted = [
        (
            np.bincount(predicted, minlength=classes).astype(np.float64),
            np.bincount(y[predicted == y], minlength=classes).astype(np.float64),
        )
        for predicted in (candidate, champion)
    ]
    scores = [float(_f1(truth[None], both[0][None], both[1][None])[0]) for both in counted]
    ours, theirs = (
        _f1_contributions(y, predicted, truth, *both) for predicted, both in zip((candidate, champion), counted, strict=True)
    )
    gain = scores[0] - scores[1]
    # exchanged at the mean of both models' counts, so that neither is preferred
    middle = [(one + other) / 2 for one, other in zip(*counted, strict=True)]
    swapped = [_f1_contributions(y, predicted, truth, *middle) for predicted in (candidate, champion)]
    bound = linear(gain + ours - theirs, swapped[0] - swapped[1], max(0.0, margin), confidence, rng, groups)
    return replace(bound, method=f"delta method, {bound.method}")


def _f1_contributions(
    y: NDArray[np.int64], predicted: NDArray[np.int64], truth: Floats, guesses: Floats, right: Floats
) -> Floats:
    """Returns the first-order contribution of each row to macro F1, `(rows,)`, less its value; from counts by class of true
    rows, of predictions, and of right ones."""
    total = truth + guesses
    known = np.where(total > 0, total, 1.0)
    hit, cost = 2 / known, 2 * right / known**2
    found: Floats = len(y) / (total > 0).sum() * (hit[y] * (predicted == y) - cost[y] - cost[predicted])
    return found


def squared(
    y: Floats,
    candidate: Floats,
    champion: Floats,
    metric: str,
    margin: float,
    confidence: float,
    rng: np.random.Generator,
    groups: Groups = None,
) -> Bound:
    """Bounds the gain in `rmse` or `r2`, from the true and both predicted values `(rows,)`.

    Up to LARGE rows by a percentile bootstrap over rows, above by the mean of the metric's linear contributions (the delta
    method); limited by the swap test on the squared errors, of which either gain is a multiple.
    """
    rows = np.stack([np.square(candidate - y), np.square(champion - y), y - y.mean(), np.square(y - y.mean())], axis=1)
    saved = rows[:, 1] - rows[:, 0]
    if len(y) < 2 or np.ptp(saved) == 0:
        return Bound(None, None, "too few rows that differ")
    gain = _rmse_gain if metric == "rmse" else _r2_gain
    scale = float(np.sqrt(rows[:, 0].mean()) + np.sqrt(rows[:, 1].mean())) if metric == "rmse" else float(y.var())
    if scale == 0:
        return Bound(None, None, "true values that do not vary")
    if len(y) > LARGE or groups is not None or not _can_resample(confidence, RESAMPLES):
        bound = linear(_linear_contributions(rows, gain), saved / scale - margin, margin, confidence, rng, groups)
        return replace(bound, method=f"delta method, {bound.method}")
    bound = _resample_rows(rows, gain, confidence, rng)
    return hold_back(bound, swap_test(saved / scale - margin, rng, 1 - confidence), margin, confidence)


def _resample_rows(rows: Floats, gain: Callable[[Floats], Floats], confidence: float, rng: np.random.Generator) -> Bound:
    n = len(rows)
    resampled = []
    for size in _batches(RESAMPLES, n):
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        resampled.append(gain(weights @ rows / n))
    return _percentile(np.concatenate(resampled), confidence, RESAMPLES)


def _tango_score(won: int, lost: int, rows: int, delta: float) -> float:
    """Returns Tango's z for the hypothesis that the difference is `delta` (his eq. 14)."""
    a = 2 * rows
    b = -won - lost + (2 * rows - won + lost) * delta
    c = -lost * delta * (1 - delta)
    lost_share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    spread = rows * (2 * lost_share + delta * (1 - delta))
    distance = won - lost - rows * delta
    return distance / math.sqrt(spread) if spread > 0 else math.copysign(math.inf, distance) if distance else 0.0


def _placements(positive: NDArray[np.bool_], score: Floats) -> Floats:
    """Returns each row's weight in the AUC: the share of the other side that it outranks, divided by its side's share of rows.

    Their mean over the positives, and over the negatives, is the AUC: DeLong's structural components, divided by the share.
    """
    from scipy.stats import rankdata

    parts = np.empty(len(score))
    all_ranks = rankdata(score)
    for side, others in ((positive, ~positive), (~positive, positive)):
        below = (all_ranks[side] - rankdata(score[side])) / others.sum()
        parts[side] = (below if side is positive else 1 - below) / side.mean()
    return parts


def _groups(index: NDArray[np.int64], weight: NDArray[Any], classes: int) -> Any:
    """Returns a sparse `(cells, classes)` matrix that turns counts of cells into counts of classes."""
    from scipy.sparse import csr_array

    return csr_array((weight.astype(np.float64), (np.arange(len(index)), index)), shape=(len(index), classes))


def _f1(truth: Floats, predicted: Floats, both: Floats) -> Floats:
    """Returns macro F1 of each resample over the classes that occur in it, from counts `(resamples, classes)`."""
    occurs = truth + predicted > 0
    scores = np.divide(2 * both, truth + predicted, out=np.zeros_like(both), where=occurs)
    macro: Floats = scores.sum(axis=1) / occurs.sum(axis=1)
    return macro


def _rmse_gain(means: Floats) -> Floats:
    """Returns the gain from means `(..., 4)` of both squared errors, the centred truth and its square."""
    gain: Floats = np.sqrt(means[..., 1]) - np.sqrt(means[..., 0])
    return gain


def _r2_gain(means: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        gain: Floats = (means[..., 1] - means[..., 0]) / (means[..., 3] - means[..., 2] ** 2)
    return gain


def _linear_contributions(rows: Floats, gain: Callable[[Floats], Floats]) -> Floats:
    """Returns the first-order contribution of each row: numbers `(rows,)` whose mean is the gain."""
    means = rows.mean(axis=0)
    step = 1e-6 * np.maximum(np.abs(means), 1e-12)
    slopes = [(gain(means + step * unit) - gain(means - step * unit)) / (2 * step @ unit) for unit in np.eye(len(means))]
    linear: Floats = gain(means) + (rows - means) @ np.array(slopes)
    return linear


def _percentile(resampled: Floats, confidence: float, resamples: int) -> Bound:
    kept = resampled[np.isfinite(resampled)]
    lower, upper = np.quantile(kept, [1 - confidence, confidence])
    return Bound(float(lower), float(upper), f"paired percentile bootstrap, {resamples} resamples")


def _batches(resamples: int, width: int) -> list[int]:
    """Returns sizes of batches whose arrays have at most CELLS_AT_ONCE numbers."""
    size = max(1, CELLS_AT_ONCE // width)
    return [min(size, resamples - start) for start in range(0, resamples, size)]
