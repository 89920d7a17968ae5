"""Names and first lines of the files in which replicas keep samples of their requests. Light.

A file has the sample of one hour (UTC): a line about the sample, and a line for each row. It is written as a whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PATTERN = "samples-*.jsonl"
SCHEMA_VERSION = 1
HOUR_SECONDS = 3600.0
DAY_SECONDS = 86400.0
TEXT_CHARACTERS = 1000
"""Characters of a text that a sample keeps, and that monitoring reads of a training row."""
NAME = re.compile(r"samples-([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2})-[0-9a-f]+\.jsonl")
HOUR = "%Y-%m-%dT%H"


class InvalidSampleFile(ValueError):
    """A file that is not a sample, or one of a later version of Headrace; the message says which."""


@dataclass(frozen=True)
class SampleHead:
    """The first line of a file: what the sample was taken of."""

    model: str
    version: str
    replica: str
    hour: str
    """The UTC hour, as `2026-11-24T14`."""
    seen: int
    """Rows that were answered in this hour by this process; each row of the sample stands for `seen / kept` of them."""
    kept: int
    """Rows of the sample."""
    left_out: int
    """Rows that were chosen and are not in the sample, because they are too large or could not be read."""

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_line(cls, line: bytes) -> SampleHead:
        """
        Raises:
            InvalidSampleFile: the line is cut, has other fields, or is of a later schema version.
        """
        try:
            found = json.loads(line)
            version = found.pop("schema_version")
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise InvalidSampleFile(f"schema version {version}, and this Headrace knows versions up to {SCHEMA_VERSION}")
            head = cls(**found)
            datetime.strptime(head.hour, HOUR)
            if min(head.kept, head.seen, head.left_out) < 0:
                raise ValueError("negative counts")
        except InvalidSampleFile:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidSampleFile(f"its first line is damaged ({str(error)[:100]})") from None
        return head


def hour_of(seconds: float) -> str:
    """Returns the UTC hour of a moment in seconds since 1970.

    >>> hour_of(1795487115.7)
    '2026-11-24T02'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime(HOUR)


def file_name(hour: str, unique: str) -> str:
    """Returns the name of a file; `unique` are hexadecimal digits, so that a restarted process does not replace the file of
    the one before."""
    return f"samples-{hour}-{unique}.jsonl"


def begin_of(path: Path) -> float | None:
    """Returns when the hour of a file begins, in seconds since 1970; None if its name is not that of a sample."""
    found = NAME.fullmatch(path.name)
    if found is None:
        return None
    try:
        return datetime.strptime(found[1], HOUR).replace(tzinfo=UTC).timestamp()
    except ValueError:  # for example a month 13
        return None


def is_expired(path: Path, now: float, days: float) -> bool:
    """Whether the hour of a file ended more than `days` ago."""
    begin = begin_of(path)
    return begin is not None and begin + HOUR_SECONDS < now - days * DAY_SECONDS
