"""Uniform random samples of a stream whose length is not known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random


class Reservoir:
    """Chooses `size` of the items of a stream, each with the same probability: Algorithm L of K.-H. Li, "Reservoir-sampling
    algorithms of time complexity O(n(1 + log(N/n)))", ACM Transactions on Mathematical Software 20(4), 1994.

    It draws how many items are skipped until the next one is taken, so that a skipped item costs one comparison:
    `seen + items <= next_taken`. Of n items about size * (1 + log(n / size)) are taken.
    """

    __slots__ = ("_random", "_threshold", "next_taken", "seen", "size")

    def __init__(self, size: int, random: Random) -> None:
        self.size = size
        self.seen = 0
        """Items so far."""
        self.next_taken = 0
        """Index of the next item that is taken."""
        self._random = random
        self._threshold = 1.0
        """If each item had a uniform random number and those with the smallest ones were kept: the largest of the kept."""

    def take(self, items: int) -> Iterator[tuple[int, int]]:
        """Sees `items` more, and yields the place among them of each one that is taken, with the slot that it gets. An
        earlier item in this slot is not in the sample any more."""
        first, self.seen = self.seen, self.seen + items
        while self.next_taken < self.seen:
            taken = self.next_taken
            yield taken - first, taken if taken < self.size else self._random.randrange(self.size)
            self._skip(taken)

    def shrink(self, size: int) -> list[int]:
        """Lowers the size, and returns the slots that are kept, in the order of their new numbers.

        A random part of a uniform sample is one. The threshold is drawn again: it is the `size`-th smallest of `seen` uniform
        numbers, which has a beta distribution.
        """
        filled = min(self.size, self.seen)
        kept = self._random.sample(range(filled), min(size, filled))
        self.size = size
        if filled > size:
            self._threshold = self._random.betavariate(size, self.seen - size + 1)
            self.next_taken = self.seen - 1
            self._advance()
        return kept

    def _skip(self, taken: int) -> None:
        if taken < self.size - 1:  # the first items fill the slots
            self.next_taken = taken + 1
            return
        self._threshold *= math.exp(math.log(self._uniform()) / self.size)
        self._advance()

    def _advance(self) -> None:
        """Draws the next item that is taken, after `next_taken`."""
        kept_out = math.log1p(-self._threshold) if self._threshold < 1.0 else -math.inf
        skipped = math.log(self._uniform()) / kept_out if kept_out < 0.0 else math.inf
        self.next_taken += 1 + int(min(skipped, 2.0**62))

    def _uniform(self) -> float:
        """Returns a number above 0 and at most 1."""
        return 1.0 - self._random.random()
