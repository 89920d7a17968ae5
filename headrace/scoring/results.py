"""Writes the result of a file once all its rows are answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

from headrace.scoring.refusals import Refusals
from headrace.scoring.rows import Line, RowsFile
from headrace.scoring.unseen import UnseenCounts


@dataclass
class Summary:
    """What is counted of the answers to the rows of a file."""

    refusals: Refusals = field(default_factory=Refusals)
    unseen: UnseenCounts = field(default_factory=UnseenCounts)

    def add(self, line: Line, place: str | None = None) -> None:
        """Counts the line of a row; `place` is where the row is in the file."""
        self.refusals.add(line, place)
        self.unseen.add(line)


def write_result(file: RowsFile, handle: BinaryIO, lines: Iterable[Line]) -> Summary:
    """Writes the result in the format of the file, and counts the answers; `lines` are the answers in order."""
    writer, following, summary = file.writer(handle), iter(lines), Summary()
    for chunk in file.chunks():
        answers = [next(following) for _ in chunk.values]
        for place, line in enumerate(answers):
            summary.add(line, chunk.places[place] if chunk.places else None)
        writer.write(chunk, answers)
    writer.close()
    return summary
