"""Betting against "nothing has changed": the evidence of one feature, window after window, as an e-process.

An e-process is a wealth that starts at 1 and is not expected to grow while the null hypothesis is true, whatever is looked at
and whenever one stops: the chance that it ever reaches 1/α is at most α (Ville 1939; Ramdas et al. 2023, *Game-theoretic
statistics*). Several bettors each guess the distribution of the next window from the windows before it, and win if they guess
better than the null. Their mean is an e-process too.

**Null hypotheses.** `exchangeable` (no tolerance): the rows and the reference sample are exchangeable, so that buckets follow
Pólya's urn (`headrace.monitoring.ranks`). That is exact for any size of the reference. `tolerance`: given the past, each row
has buckets of *some* distribution within a total variation distance of the reference distribution, not always the same. The bet
g on bucket k then pays g(k) / b, where b bounds the mean of g over that ball (Huber 1965) and over a confidence region of the
reference distribution: Σ (p − p̂)²/(p̂ + 20/n) ≤ radius², which fails with a small probability that is taken from α.

**Dependence within a window.** Rows of an hour that depend on each other are not independent evidence. With `correlated`, the
mean of the rows' payments replaces their product: it is valid under any dependence within a window, and slower.

**When.** A change may begin at any window. Wealth is put aside for each start: window s gets log a (1/log(s − 1 + a) − 1/log(s
+ a)), in total at most 1 for ever, as in Shin, Ramdas & Rinaldo 2022 (*E-detectors*, there without the limit on the total).

Arrays have any leading axes (features, simulations), then bettors or memories, then buckets. All logarithms are natural.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HALF_LIVES = (1.0, 24.0, 168.0)
"""Windows after which the weight of a window halves, in each memory."""
BETTORS = (
    ("window", 0),
    ("all", 0),
    ("all", 1),
    ("all", 2),
    ("smooth", 1),
    ("smooth", 2),
)
"""How a bettor guesses, and from which memory: `window` learns within the window, for sudden large changes; `all` shrinks the
shares of all buckets (James & Stein 1961); `smooth` sees location and spread only, and needs fewer rows (Neyman 1937)."""
WINDOW_STRENGTH = 50.0
"""Rows that the reference counts for, for the bettor that learns within the window."""
FIRST_WINDOWS = 24.0
"""The constant a of the wealth put aside: larger values favour later starts."""
MOST_SHRUNK = 0.98
"""A bettor keeps at least 2 % of the reference, so that no bucket has probability 0."""
CAPS = (1.1, 1.3, 2.0, 10.0)
POWERS = (0.5, 1.0)
POWERS_OF_MEANS = (0.5, 1.0, 2.0, 4.0)
"""For correlated rows: a mean of many rows varies less than one row, and bears larger bets."""
"""Bets with a tolerance are (guess / reference) to one of these powers, capped at one of the factors above and their
inverse."""
PADDING = 20.0
"""Added to the rows of each bucket in the confidence region, whose radius buckets of one row would make twice as large."""
NOTHING = -1e300
"""The logarithm of an empty wealth."""


@dataclass(frozen=True)
class Reference:
    """The null hypothesis: gaps `(…, buckets)`, and what bettors need to know of them."""

    gaps: Floats
    tolerance: float = 0.0
    correlated: bool = False
    radius: Floats = field(default_factory=lambda: np.zeros(()))
    """Of the confidence region of the reference distribution `(…)`; used with a tolerance, or for correlated rows."""

    @property
    def exchangeable(self) -> bool:
        """Whether the null hypothesis is that rows and reference are exchangeable."""
        return self.tolerance == 0 and not self.correlated

    @cached_property
    def basis(self) -> Floats:
        """Location and spread as orthonormal functions of the buckets, `(…, 2, buckets)`."""
        return _basis(self.gaps)


@dataclass
class Evidence:
    """The state of a feature's bets."""

    seen: Floats
    """Rows so far in each bucket `(…, buckets)`."""
    memories: Floats
    """Rows in each bucket with the weights of each memory `(…, memories, buckets)`."""
    squares: Floats
    """Sums of the rows' squared weights `(…, memories)`."""
    log_wealth: Floats
    """Wealth in play of each bettor `(…, bettors)`."""

    @classmethod
    def empty(cls, gaps: Floats) -> Evidence:
        """Returns the state before the first window."""
        shape, buckets = gaps.shape[:-1], gaps.shape[-1]
        return cls(
            seen=np.zeros(gaps.shape),
            memories=np.zeros((*shape, len(HALF_LIVES), buckets)),
            squares=np.zeros((*shape, len(HALF_LIVES))),
            log_wealth=np.full((*shape, len(BETTORS)), NOTHING),
        )


def update(evidence: Evidence, reference: Reference, counts: NDArray[Any], number: int) -> Evidence:
    """Returns the evidence after one more window.

    Args:
        counts: rows of the window in each bucket `(…, buckets)`.
        number: of this window since the start, from 1.
    """
    counts = counts.astype(np.float64)
    factors = log_payoffs(evidence, reference, counts)
    decay = 0.5 ** (1 / np.array(HALF_LIVES))
    rows = counts.sum(axis=-1)
    return Evidence(
        seen=evidence.seen + counts,
        memories=decay[:, None] * evidence.memories + counts[..., None, :],
        squares=decay**2 * evidence.squares + rows[..., None],
        log_wealth=factors + np.logaddexp(evidence.log_wealth, np.log(put_aside(number))),
    )


def log_evidence(evidence: Evidence, number: int) -> Floats:
    """Returns the logarithm of the e-process `(…)` after window `number`: the bettors' mean wealth, and what is still put
    aside."""
    in_play = np.logaddexp.reduce(evidence.log_wealth, axis=-1) - np.log(len(BETTORS))
    found: Floats = np.logaddexp(in_play, np.log(reserve(number)))
    return found


def put_aside(number: int) -> float:
    """Returns the wealth for a change that begins at window `number`, from 1."""
    return reserve(number - 1) - reserve(number)


def reserve(number: int) -> float:
    """Returns the wealth that is put aside for changes that begin after window `number`."""
    return float(np.log(FIRST_WINDOWS) / np.log(number + FIRST_WINDOWS))


def log_payoffs(evidence: Evidence, reference: Reference, counts: Floats) -> Floats:
    """Returns the logarithm of the factor by which a window changes the wealth of each bettor `(…, bettors)`.

    Its exponential has an expectation of at most 1 under the null hypothesis, given the windows before.
    """
    if reference.exchangeable:
        return _urn_payoffs(evidence, reference, counts)
    p = reference.gaps / reference.gaps.sum(axis=-1, keepdims=True)
    total = reference.gaps.sum(axis=-1)
    return _bounded_payoffs(_guesses(evidence, p, total, reference.basis), p, reference, counts)


def _urn_payoffs(evidence: Evidence, reference: Reference, counts: Floats) -> Floats:
    """The likelihood ratio of two urns: the bettor's, and that of the reference with all rows so far."""
    urn = reference.gaps + evidence.seen
    total = urn.sum(axis=-1)
    p = urn / total[..., None]
    guessed = _guesses(evidence, p, total, reference.basis)
    bettors = total[..., None, None] * guessed
    first = [i for i, (kind, _) in enumerate(BETTORS) if kind == "window"]
    bettors[..., first, :] = WINDOW_STRENGTH * p[..., None, :]
    found: Floats = _log_urn(bettors, counts[..., None, :]) - _log_urn(urn, counts)[..., None]
    return found


def _log_urn(urn: Floats, counts: Floats) -> Floats:
    """Returns the log probability of drawing `counts` in one given order from Pólya's urn with these weights."""
    from scipy.special import gammaln

    buckets = (gammaln(urn + counts) - gammaln(urn)).sum(axis=-1)
    total, rows = urn.sum(axis=-1), counts.sum(axis=-1)
    found: Floats = buckets - gammaln(total + rows) + gammaln(total)
    return found


def _bounded_payoffs(guessed: Floats, p: Floats, reference: Reference, counts: Floats) -> Floats:
    """Returns the logarithm of what bets pay whose mean is bounded under the null hypothesis, `(…, bettors)`."""
    found = np.zeros(guessed.shape[:-1])
    bets = np.abs(guessed - p[..., None, :]).max(axis=-1) > 1e-12  # the others expect no change, and do not bet

    def each(values: Floats, axes: int = 0) -> Floats:
        """Returns the values of each bettor that bets, `(bets, …)`."""
        wanted = bets.shape + values.shape[values.ndim - axes :]
        of_bets: Floats = np.broadcast_to(np.expand_dims(values, -1 - axes), wanted)[bets]
        return of_bets

    expected, rows, shares = each(p, 1), each(counts.sum(axis=-1)), each(counts, 1)
    limits = Limits(
        each(np.broadcast_to(reference.radius, p.shape[:-1])), each(reference.gaps.sum(axis=-1)), reference.tolerance
    )
    log_bets = _bets(guessed[bets], expected, limits, rows if reference.correlated else None)
    if not reference.correlated:
        found[bets] = (shares * log_bets).sum(axis=-1)
        return found
    mean = (shares * np.exp(log_bets)).sum(axis=-1) / np.maximum(rows, 1)
    found[bets] = np.log(np.where(rows > 0, mean, 1.0))
    return found


@dataclass(frozen=True)
class Limits:
    """What bounds the mean of each bet `(bets,)`."""

    radius: Floats
    reference_rows: Floats
    tolerance: float


def _bets(guessed: Floats, p: Floats, limits: Limits, rows: Floats | None) -> Floats:
    """Returns the logarithm of what the best bet for each guess pays on each bucket, `(bets, buckets)`; 0 for no bet.

    The best bet has the largest growth, if the guess is right. For correlated rows, growth is that of the mean of as many
    independent rows as the square root of their number: between one and all of them.

    Args:
        rows: of the window `(bets,)`, if they are correlated.
    """
    log_ratio = np.log(guessed / p)
    best_growth = np.zeros(len(guessed))
    best = np.zeros(guessed.shape)
    for power in POWERS if rows is None else POWERS_OF_MEANS:
        for cap in CAPS:
            log_bet = np.clip(power * log_ratio, -np.log(cap), np.log(cap))
            pays = log_bet - np.log(_largest_mean(np.exp(log_bet), p, limits))[:, None]
            growth = (guessed * pays).sum(axis=-1) if rows is None else _growth_of_mean(guessed, pays, rows)
            better = growth > best_growth
            best_growth = np.where(better, growth, best_growth)
            best = np.where(better[:, None], pays, best)
    return best


def _growth_of_mean(guessed: Floats, pays: Floats, rows: Floats) -> Floats:
    """Returns the expected logarithm of a mean payment, to second order, `(bets,)`."""
    payment = np.exp(pays)
    mean = (guessed * payment).sum(axis=-1)
    variance = (guessed * payment**2).sum(axis=-1) - mean**2
    found: Floats = np.log(mean) - variance / (2 * mean**2 * np.sqrt(np.maximum(rows, 1)))
    return found


def _largest_mean(bet: Floats, p: Floats, limits: Limits) -> Floats:
    """Returns a bound on the mean of each bet under every distribution that the null hypothesis allows, `(bets,)`."""
    mean = (p * bet).sum(axis=-1)
    scale = p + PADDING / limits.reference_rows[:, None]
    centre = (scale * bet).sum(axis=-1) / scale.sum(axis=-1)
    # by Cauchy-Schwarz; a constant can be subtracted from the bet, because p and its estimate have the same sum
    deviation = np.sqrt((scale * (bet - centre[:, None]) ** 2).sum(axis=-1))
    spread = bet.max(axis=-1) - bet.min(axis=-1)
    found: Floats = mean + limits.radius * deviation + limits.tolerance * spread
    return found


def _guesses(evidence: Evidence, p: Floats, reference_rows: Floats, basis: Floats) -> Floats:
    """Returns the distribution that each bettor expects in the next window, `(…, bettors, buckets)`."""
    weights = evidence.memories.sum(axis=-1)
    observed = evidence.memories / np.maximum(weights, 1e-300)[..., None]
    difference = np.where(weights[..., None] > 0, observed - p[..., None, :], 0.0)
    rows = weights**2 / np.maximum(evidence.squares, 1e-300)
    rows = 1 / (1 / np.maximum(rows, 1e-300) + 1 / reference_rows[..., None])
    shrunk = _shrunk(difference, p[..., None, :], rows)
    smooth = _smooth(difference, p[..., None, :], rows, basis)
    guesses = {"all": shrunk, "smooth": smooth}
    return np.stack(
        [
            np.broadcast_to(p, shrunk[..., 0, :].shape) if kind == "window" else guesses[kind][..., at, :]
            for kind, at in BETTORS
        ],
        axis=-2,
    )


def _shrunk(difference: Floats, p: Floats, rows: Floats) -> Floats:
    distance = rows * (difference**2 / p).sum(axis=-1)
    kept = 1 - (p.shape[-1] - 1) / np.maximum(distance, 1e-300)
    found: Floats = p + np.clip(kept, 0, MOST_SHRUNK)[..., None] * difference
    return found


def _smooth(difference: Floats, p: Floats, rows: Floats, basis: Floats) -> Floats:
    coefficients = (difference[..., None, :] * basis[..., None, :, :]).sum(axis=-1)
    distance = rows * (coefficients**2).sum(axis=-1)
    kept = np.clip(1 - coefficients.shape[-1] / np.maximum(distance, 1e-300), 0, MOST_SHRUNK)
    tilt = ((kept[..., None] * coefficients)[..., None] * basis[..., None, :, :]).sum(axis=-2)
    tilted = p * np.exp(tilt - tilt.max(axis=-1, keepdims=True))
    found: Floats = tilted / tilted.sum(axis=-1, keepdims=True)
    return found


def _basis(gaps: Floats) -> Floats:
    """Returns location and spread as orthonormal functions of the buckets under the reference, `(…, 2, buckets)`.

    Both are polynomials of the normal scores of the buckets' middle ranks; zeros where there are too few buckets.
    """
    from scipy.special import ndtri

    p = gaps / gaps.sum(axis=-1, keepdims=True)
    scores = ndtri(np.clip(np.cumsum(p, axis=-1) - p / 2, 1e-9, 1 - 1e-9))
    location = _normalised(scores - (p * scores).sum(axis=-1, keepdims=True), p)
    squared = location**2
    spread = squared - (p * squared).sum(axis=-1, keepdims=True)
    spread = spread - (p * squared * location).sum(axis=-1, keepdims=True) * location
    return np.stack([location, _normalised(spread, p)], axis=-2)


def _normalised(values: Floats, p: Floats) -> Floats:
    length = np.sqrt((p * values**2).sum(axis=-1, keepdims=True))
    return np.where(length > 1e-9, values / np.maximum(length, 1e-9), 0.0)


def region_radius(gaps: Floats, level: float, rng: np.random.Generator) -> float:
    """Returns the radius of the confidence region of one reference distribution, which fails with probability `level`.

    By simulation of Dirichlet(gaps). The true distribution and the draws are exchangeable, so that the level holds exactly
    however many draws there are (as in a Monte Carlo test, Barnard 1963); they are independent of the rows.

    Args:
        gaps: `(buckets,)`.
    """
    draws = int(np.ceil(20 / level))
    expected = gaps / gaps.sum()
    distances: list[Floats] = []
    for start in range(0, draws, 10_000):
        weights = rng.standard_gamma(gaps, size=(min(10_000, draws - start), len(gaps)))
        p = weights / weights.sum(axis=1, keepdims=True)
        distances.append(((p - expected) ** 2 / (expected + PADDING / gaps.sum())).sum(axis=1))
    rank = int(np.ceil((1 - level) * (draws + 1)))
    return float(np.sqrt(np.sort(np.concatenate(distances))[rank - 1]))
