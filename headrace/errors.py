"""Every error a user can meet, as one tree. Each says what happened, with which value, where, and what mends it.

HeadraceError                     exit code 1
├── UsageError                    2   the command line
│   └── RecipeError               2   recipes/*.yaml: file, field, value
│       └── SettingsError         2   headrace.toml or HEADRACE_...
├── DataError                     3   a source, a file, a batch
│   ├── SourceError               3   cannot be read, or its sha256 differs
│   │   └── SourceUnreachable     3   did not answer this time; worth another try
│   └── DataRejected              3   the data gate refused a batch
├── TrainingError                 1   the training itself failed
├── ExportError                   1   the exported graph disagrees with torch
├── ModelRefused                  4   the model gate refused a candidate
│   ├── AwaitsApproval            4   a person has to approve it first
│   ├── RolloutAborted               4   it served, was watched, and was taken back
│   └── RolledBack                 4   it was taken back before, and nothing has changed since
├── NotReproduced                 4   a version trained again differs
├── ServiceError                  5   a server, a port, an engine, a database
│   ├── PortTaken                 5
│   ├── EngineMissing             5
│   └── RegistryError             5
├── Busy                          6   another release of the same recipe is under way
├── DamagedFile                   1   a file that Headrace wrote is not readable any more
├── DiskFull                      7
└── Interrupted                   130 Ctrl-C
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class HeadraceError(Exception):
    """What happened (`message`), where (`where`), and the command or field that mends it (`hint`)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.message}" if self.where else self.message]
        if self.hint:
            parts.append(f"  hint: {self.hint}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`, and for handing an error from a stage's process to the process that called it."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> HeadraceError:
        """The inverse of `to_dict`; an unknown class becomes a plain `HeadraceError`."""
        cls = {c.__name__: c for c in _tree(HeadraceError)}.get(fields["error"], HeadraceError)
        return cls(fields["message"], where=fields["where"], hint=fields["hint"])


class UsageError(HeadraceError):
    exit_code = 2


class RecipeError(UsageError):
    """A recipe that is missing, malformed, or says something that cannot be."""


class SettingsError(RecipeError):
    """`headrace.toml` or a `HEADRACE_...` variable says something that cannot be."""


class DataError(HeadraceError):
    exit_code = 3


class SourceError(DataError):
    """A source that cannot be fetched, read, or whose sha256 differs from the recipe's."""


class SourceUnreachable(SourceError):
    """A source that did not answer, or broke off: another try may succeed."""


class DataRejected(DataError):
    """The data gate refused a batch; it lies in quarantine with its report."""


class TrainingError(HeadraceError):
    """Training cannot go on: a NaN loss, one class only, no rows left."""


class ExportError(HeadraceError):
    """The exported graph does not give what torch gives."""


class ModelRefused(HeadraceError):
    """The model gate refused the candidate; the champion goes on serving."""

    exit_code = 4


class AwaitsApproval(ModelRefused):
    """The candidate passed the gate, and the recipe asks for a person's approval."""


class RolloutAborted(ModelRefused):
    """The new version left its bounds while it was watched; what served before serves on. `facts` are the numbers."""

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.facts = facts or {}


class RolledBack(ModelRefused):
    """The candidate is a version that was taken back: by a person, or because it left its bounds."""


class NotReproduced(HeadraceError):
    """A version trained again from its own code and data came out otherwise."""

    exit_code = 4


class ServiceError(HeadraceError):
    """A server, engine or database that is needed does not answer."""

    exit_code = 5


class PortTaken(ServiceError):
    """Another program listens on a port that is needed."""


class EngineMissing(ServiceError):
    """No container engine answers, and one was asked for."""


class RegistryError(ServiceError):
    """MLflow's database is locked, read-only or out of reach."""


class Busy(HeadraceError):
    """Another process does the same work at this moment."""

    exit_code = 6


class DamagedFile(HeadraceError):
    """A file of Headrace exists, but its content cannot be read."""


class DiskFull(HeadraceError):
    """No space is left where something has to be written."""

    exit_code = 7


class Interrupted(HeadraceError):
    """A person stopped the work; running the same command again completes it."""

    exit_code = 130


def near_miss(name: str, choices: Iterable[str]) -> str:
    """A clause that offers the closest known name, or lists them when none is close.

    >>> near_miss("digts", ["digits", "flights"])
    "did you mean 'digits'?"
    >>> near_miss("zebra", ["digits", "flights"])
    'known: digits, flights'
    """
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known) if known else "none is known yet"


def _tree(cls: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]
