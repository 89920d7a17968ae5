"""Mean and variance of numbers that are read in chunks."""

from __future__ import annotations


class Moments:
    """Mean and variance of numbers that are added chunk by chunk (Chan, Golub, LeVeque 1983,
    https://doi.org/10.1080/00031305.1983.10483115, eq. 2.1). The result is as exact as over all numbers at once, up to
    rounding."""

    def __init__(self) -> None:
        self.rows = 0
        self.mean = 0.0
        self.variance = 0.0

    def add(self, rows: int, mean: float, variance: float) -> None:
        """Adds a chunk of `rows` numbers with this mean and (population) variance."""
        total = self.rows + rows
        if not self.rows:
            self.rows, self.mean, self.variance = rows, mean, variance
        elif rows:
            weight, distance = rows / total, mean - self.mean
            self.mean += distance * weight
            self.variance = self.variance * (1 - weight) + variance * weight + distance**2 * weight * (1 - weight)
            self.rows = total
