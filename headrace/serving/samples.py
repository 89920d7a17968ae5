"""Reads the samples of requests that replicas keep (`bentos/telemetry/samples.py`): the rows of a model in a span of time.

Each row has a weight: how many of the rows that were answered in its hour, by its replica, it stands for. Files that cannot be
read are left out, and reported.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.project import Project
from headrace.runtime.sample_file import HOUR_SECONDS, PATTERN, InvalidSampleFile, SampleHead, begin_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

Report = Callable[[str], object]
MAX_FILE_BYTES = 64 * 1024 * 1024
"""A larger file is not a sample: replicas keep them far below."""
MOST_ROWS = 100_000
"""Rows of a window that are in memory by default."""
FIELDS = {"at", "id", "row", "tenant", "inputs", "answer", "confidence"}
log = logging.getLogger("headrace.serving.samples")


class RowKey(NamedTuple):
    """What identifies an answered row, also in feedback."""

    tenant: str
    request_id: str
    row: int


@dataclass(frozen=True)
class Window:
    """Sampled rows of one version of a model. All parts have the same rows in the same order."""

    model: str
    version: str
    inputs: pd.DataFrame
    """A column for each field that is kept. `FIELD.characters` is the length of the text in FIELD, of which the beginning is
    kept; a picture is `FIELD.brightness`, `FIELD.contrast`, `FIELD.width`, `FIELD.height` and `FIELD.thumbnail`
    (`headrace.runtime.thumbnail`); a part of a graph is `FIELD.size`. Missing values are None or NaN."""
    answers: pd.DataFrame
    """The column `answer`: a label, a number, a list of labels, or the beginning of a text with `answer.characters`. For
    several values a column for each target instead."""
    confidences: NDArray[np.float64]
    """`(rows,)`: the probability of the answer, from 0 to 1; NaN where the model gives none."""
    probabilities: list[list[float] | None]
    """Of all labels in the contract's order; None where the model gives none, or has very many labels."""
    weights: NDArray[np.float64]
    """`(rows,)`: answered rows that each row stands for, at least 1."""
    times: NDArray[np.float64]
    """`(rows,)`: when each row was answered, in seconds since 1970."""
    keys: list[RowKey]

    def __len__(self) -> int:
        return len(self.keys)


class _File(NamedTuple):
    path: Path
    head: SampleHead


def sampled_versions(project: Project, model: str, since: float, until: float, report: Report = log.warning) -> dict[str, int]:
    """Returns the versions of a model with a sample between two times, and how many rows were answered in these hours."""
    found: Counter[str] = Counter()
    for file in _files(project, model, None, since, until, report):
        found[file.head.version] += file.head.seen
    return dict(found)


def sampled_hours(project: Project, model: str, version: str, report: Report = log.warning) -> list[float]:
    """Returns the hours (UTC) of which there are samples of a version, each by its begin in seconds since 1970, in order."""
    files = _files(project, model, version, float("-inf"), float("inf"), report)
    return sorted({begin for file in files if (begin := begin_of(file.path)) is not None})


def read_samples(
    project: Project, model: str, version: str, since: float, until: float, report: Report = log.warning
) -> Iterator[Window]:
    """Yields the rows between two times (seconds since 1970; `until` is excluded) of all replicas, one file at a time: at most
    a few megabytes.

    Args:
        report: called with a line about each file that is left out, or of which rows are.
    """
    for file in _files(project, model, version, since, until, report):
        found = _read(file, since, until, report)
        if found is not None and len(found):
            yield found


def read_window(
    project: Project,
    model: str,
    version: str,
    since: float,
    until: float,
    *,
    most_rows: int = MOST_ROWS,
    seed: int = 0,
    report: Report = log.warning,
) -> Window:
    """Returns all rows between two times, or about `most_rows` of them, chosen at random and with higher weights."""
    import numpy as np

    kept = sum(file.head.kept for file in _files(project, model, version, since, until, lambda line: None))
    share = min(1.0, most_rows / kept) if kept else 1.0
    random = np.random.default_rng(seed)
    parts = []
    for part in read_samples(project, model, version, since, until, report):
        chosen = np.flatnonzero(random.random(len(part)) < share) if share < 1.0 else np.arange(len(part))
        parts.append(_rows_of(part, chosen, share))
    return _joined(model, version, parts)


def _files(project: Project, model: str, version: str | None, since: float, until: float, report: Report) -> Iterator[_File]:
    """Yields the files whose hour overlaps a span of time, oldest hour first."""
    found = []
    for path in project.usage.glob(f"*/{PATTERN}"):
        begin = begin_of(path)
        if begin is None:
            report(f"{path}: left out: its name is not that of a sample")
        elif begin < until and begin + HOUR_SECONDS > since:
            found.append((begin, path))
    for _, path in sorted(found):
        try:
            with path.open("rb") as handle:
                if path.stat().st_size > MAX_FILE_BYTES:
                    raise InvalidSampleFile(f"it is larger than {MAX_FILE_BYTES:,} bytes")
                head = SampleHead.from_line(handle.readline())
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, InvalidSampleFile) as error:
            report(f"{path}: left out: {error}")
            continue
        if head.model == model and version in (None, head.version):
            yield _File(path, head)


def _read(file: _File, since: float, until: float, report: Report) -> Window | None:
    import numpy as np
    import pandas as pd

    rows, damaged = [], 0
    try:
        with file.path.open("rb") as handle:
            head = SampleHead.from_line(handle.readline())  # again: the file may have been replaced by a newer one
            for line in handle:
                if (row := _row(line)) is None:
                    damaged += 1
                else:
                    rows.append(row)
    except (FileNotFoundError, InvalidSampleFile):
        return None
    if damaged or len(rows) != head.kept:
        report(f"{file.path}: {damaged} damaged lines; {len(rows)} of {head.kept} rows are used")
    weight = max(1.0, head.seen / max(1, len(rows)))
    rows = [row for row in rows if since <= row["at"] < until]
    return Window(
        model=head.model,
        version=head.version,
        inputs=pd.DataFrame([_flat(row["inputs"]) for row in rows]),
        answers=pd.DataFrame([_flat_answer(row["answer"]) for row in rows]),
        confidences=np.array([row["confidence"] for row in rows], dtype=np.float64),
        probabilities=[row.get("probabilities") for row in rows],
        weights=np.full(len(rows), weight),
        times=np.array([row["at"] for row in rows], dtype=np.float64),
        keys=[RowKey(row["tenant"], row["id"], row["row"]) for row in rows],
    )


def _row(line: bytes) -> dict[str, Any] | None:
    """Parses a line; None for one that is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and row.keys() >= FIELDS and isinstance(row["inputs"], dict)
    return row if is_row and isinstance(row["at"], int | float) else None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Returns one value for each column: `{"notes": {"text": "a", "characters": 1}}` as `notes` and `notes.characters`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, dict):
            found[name] = value
            continue
        for part, inner in value.items():
            found[name if part == "text" else f"{name}.{part}"] = inner
    return found


def _flat_answer(answer: Any) -> dict[str, Any]:
    is_text = isinstance(answer, dict) and "characters" in answer and answer.keys() <= {"text", "characters"}
    return dict(answer) if isinstance(answer, dict) and not is_text else _flat({"answer": answer})


def _rows_of(part: Window, chosen: NDArray[np.int64], share: float) -> Window:
    return Window(
        part.model,
        part.version,
        part.inputs.iloc[chosen],
        part.answers.iloc[chosen],
        part.confidences[chosen],
        [part.probabilities[place] for place in chosen.tolist()],
        part.weights[chosen] / share,
        part.times[chosen],
        [part.keys[place] for place in chosen.tolist()],
    )


def _joined(model: str, version: str, parts: list[Window]) -> Window:
    import numpy as np
    import pandas as pd

    none = np.zeros(0)
    return Window(
        model,
        version,
        pd.concat([part.inputs for part in parts], ignore_index=True) if parts else pd.DataFrame(),
        pd.concat([part.answers for part in parts], ignore_index=True) if parts else pd.DataFrame({"answer": []}),
        np.concatenate([none, *(part.confidences for part in parts)]),
        [one for part in parts for one in part.probabilities],
        np.concatenate([none, *(part.weights for part in parts)]),
        np.concatenate([none, *(part.times for part in parts)]),
        [key for part in parts for key in part.keys],
    )
