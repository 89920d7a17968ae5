"""Writes the result of a file once all its rows are answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from headrace.scoring.refusals import Refusals
from headrace.scoring.rows import Line, RowsFile


def write_result(file: RowsFile, handle: BinaryIO, lines: Iterable[Line]) -> Refusals:
    """Writes the result in the format of the file, and returns the refused rows; `lines` are the answers in order."""
    writer, following, refusals = file.writer(handle), iter(lines), Refusals()
    for chunk in file.chunks():
        answers = [next(following) for _ in chunk.values]
        for place, line in enumerate(answers):
            refusals.add(line, chunk.places[place] if chunk.places else None)
        writer.write(chunk, answers)
    writer.close()
    return refusals
