"""Counts what two versions answer, from the records that replicas write beside their usage.

Each request has one vote, shared by its answers: rows of one request are often alike (a file sorted by class), so they are no
independent observations. Values are counted between quantiles of the champion's own answers; of several values in an answer,
the first is counted.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PATTERN = "answers-*.jsonl"
TAIL_BYTES = 2 * 1024 * 1024
"""What is read of each replica's records from before a trial."""
BINS = 10
"""Intervals of values between the champion's quantiles."""
ENOUGH_REQUESTS = 1_000
"""Once the champion has answered this many requests with values, the intervals stay as they are."""
MAX_WAITING = 100_000
"""Requests with values that are kept while the champion answers too few; further ones are not counted."""
Votes = dict[str, float]
"""Requests by answer; the shares of one request add up to 1."""


class AnswerReader:
    """Reads the answers that replicas record from now on.

    Args:
        folders: where each replica records its answers.
        with_past: also reads what they recorded last, at most `TAIL_BYTES` of each file.
    """

    def __init__(self, folders: Sequence[Path], with_past: bool = False) -> None:
        self._folders, self._with_past = folders, with_past
        self._offsets = {path: self._start(path) for path in self._files()}

    def read(self) -> Iterator[list[Any]]:
        """Yields the answers of each request that was recorded since the last call."""
        for path in self._files():
            for line in self._new_lines(path):
                yield line["answers"]

    def _files(self) -> list[Path]:
        return [path for folder in self._folders for path in sorted(folder.glob(PATTERN))]

    def _start(self, path: Path) -> int:
        """Returns the first byte to read: the end of the file, or the beginning of a line in its last part."""
        with path.open("rb") as handle:
            end = handle.seek(0, 2)
            if not self._with_past or end <= TAIL_BYTES:
                return 0 if self._with_past else end
            handle.seek(end - TAIL_BYTES)
            handle.readline()
            return handle.tell()

    def _new_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open("rb") as handle:
                handle.seek(self._offsets.get(path, 0))
                for line in handle:
                    if not line.endswith(b"\n"):  # it is being written at this moment
                        break
                    self._offsets[path] = self._offsets.get(path, 0) + len(line)
                    yield json.loads(line)
        except FileNotFoundError:
            return  # the replica has removed its oldest file


class ComparedAnswers:
    """The votes of a new version and of the champion since both readers began."""

    def __init__(self, new: AnswerReader, champion: AnswerReader) -> None:
        self._readers = {"new": new, "champion": champion}
        self._votes: dict[str, Votes] = {"new": {}, "champion": {}}
        self._values: dict[str, list[list[float]]] = {"new": [], "champion": []}
        """Requests with values, until the intervals are fixed."""
        self._edges: list[float] | None = None

    def votes(self) -> tuple[Votes, Votes]:
        """Reads what was recorded since the last call, and returns the votes of the new version and of the champion."""
        for name, reader in self._readers.items():
            for answers in reader.read():
                self._add(name, answers)
        if self._edges is None and self._values["champion"]:
            edges = quantile_edges(self._values["champion"])
            if len(self._values["champion"]) < ENOUGH_REQUESTS:
                return self._with_values("new", edges), self._with_values("champion", edges)
            self._edges = edges
            for name, requests in self._values.items():
                self._votes[name] = self._with_values(name, edges)
                requests.clear()
        return dict(self._votes["new"]), dict(self._votes["champion"])

    def _add(self, name: str, answers: list[Any]) -> None:
        if not answers:
            return
        answers = [next(iter(answer.values()), 0.0) if isinstance(answer, dict) else answer for answer in answers]
        if all(type(answer) is float for answer in answers):
            if self._edges is None:
                if len(self._values[name]) < MAX_WAITING:
                    self._values[name].append(answers)
                return
            answers = [interval_of(value, self._edges) for value in answers]
        for answer, count in Counter(map(str, answers)).items():
            _vote(self._votes[name], answer, count / len(answers))

    def _with_values(self, name: str, edges: Sequence[float]) -> Votes:
        votes = dict(self._votes[name])
        for values in self._values[name]:
            for value in values:
                _vote(votes, interval_of(value, edges), 1 / len(values))
        return votes


def quantile_edges(requests: Sequence[Sequence[float]]) -> list[float]:
    """Returns at most `BINS` - 1 ascending bounds that divide the values of requests into equal parts, each request counting
    once. Values that many answers share are a bound of their own."""
    weighted = sorted((value, 1 / len(values)) for values in requests for value in values)
    edges: list[float] = []
    passed, wanted = 0.0, 1
    for value, weight in weighted:
        passed += weight
        while wanted < BINS and passed > wanted * len(requests) / BINS:
            if not edges or value > edges[-1]:
                edges.append(value)
            wanted += 1
    return edges


def interval_of(value: float, edges: Sequence[float]) -> str:
    """Returns the name of the interval of a value: its lower bound, which belongs to it.

    >>> interval_of(3.0, [1.0, 5.0]), interval_of(0.5, [1.0, 5.0]), interval_of(5.0, [1.0, 5.0])
    ('1.0 and above', 'below 1.0', '5.0 and above')
    """
    at = bisect_right(edges, value)
    if not edges:
        return "all values"
    return f"{edges[at - 1]!r} and above" if at else f"below {edges[0]!r}"


def _vote(votes: Votes, answer: str, weight: float) -> None:
    votes[answer] = votes.get(answer, 0.0) + weight


def records(usage: Path, replica: str) -> Iterator[Mapping[str, Any]]:
    """Yields all that a replica recorded and still keeps: `id`, `tenant`, `answers`."""
    for answered in sorted((usage / replica).glob(PATTERN)):
        with answered.open("rb") as handle:
            for line in handle:
                if line.endswith(b"\n"):  # else it is being written at this moment
                    yield json.loads(line)
