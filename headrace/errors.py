"""All errors that a user can meet, as one tree. Each has a message with the value at fault, the place, and a hint.

HeadraceError                     exit code 1
├── UsageError                    2   wrong input: the command line, or
│   ├── RecipeError               2   recipes/*.yaml: file, field, value
│   └── SettingsError             2   headrace.toml or HEADRACE_... variables
├── DataError                     3   a source, a file, a batch
│   ├── SourceError               3   cannot be read, or its sha256 differs
│   │   └── SourceUnreachable     3   did not respond; a retry may succeed
│   └── DataRejected              3   the data gate refused a batch
├── TrainingError                 1   training failed
├── ExportError                   1   the exported graph differs from torch
├── NotReleased                   4   a candidate is not released; the version that serves keeps serving
│   ├── ModelRefused              4   the model gate refused it
│   ├── AwaitsApproval            4   it passed the gate and awaits manual approval
│   ├── Rejected                  4   a person rejected it
│   ├── RolloutAborted            4   it exceeded its bounds during the roll-out
│   └── RolledBack                4   it was rolled back earlier, and nothing has changed since
├── NotReproduced                 4   a version that was trained again differs
├── ServiceError                  5   a server, a port, an engine, a database
│   ├── PortTaken                 5
│   ├── EngineMissing             5
│   └── RegistryError             5
├── Busy                          6   another release of the same recipe is running
├── DamagedFile                   1   a file that Headrace wrote cannot be read
├── NewerFile                     1   a newer version of Headrace wrote a file
├── DiskFull                      7
└── Interrupted                   130 Ctrl-C

The Python client adds `CallFailed` (headrace/client/errors.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class HeadraceError(Exception):
    """An error with a message, the place it is about (`where`), and the command or field that resolves it (`hint`)."""

    exit_code: ClassVar[int] = 1
    fields: ClassVar[tuple[str, ...]] = ()
    """Names of further keyword arguments, which are kept as attributes and in `to_dict`."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    @property
    def headline(self) -> str:
        """The error without its hint."""
        return f"{self.where}: {self.message}" if self.where else self.message

    def __str__(self) -> str:
        return f"{self.headline}\n  hint: {self.hint}" if self.hint else self.headline

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values, for `--json` and for passing the error from a process to the one that started it."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "exit_code": self.exit_code,
            **{name: getattr(self, name) for name in self.fields},
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> HeadraceError:
        """The inverse of `to_dict`. An unknown class becomes a plain `HeadraceError`.

        Reads dictionaries of versions before 0.2 too, which `headrace reproduce` meets: their hint has another key.
        """
        cls = {c.__name__: c for c in _tree(HeadraceError)}.get(values["error"], HeadraceError)
        further = {name: values[name] for name in cls.fields if name in values}
        known = {"error", "message", "where", "exit_code", *further}
        hint = values["hint"] if "hint" in values else next((value for key, value in values.items() if key not in known), None)
        return cls(values["message"], where=values["where"], hint=hint, **further)


class UsageError(HeadraceError):
    """Wrong input of the user."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, malformed or inconsistent."""


class SettingsError(UsageError):
    """A setting in `headrace.toml` or in a `HEADRACE_...` variable is unknown or invalid."""


class DataError(HeadraceError):
    """Data cannot be read or used."""

    exit_code = 3


class SourceError(DataError):
    """A source cannot be fetched or read, or its sha256 differs from the recipe's."""


class SourceUnreachable(SourceError):
    """A source did not respond, or the connection broke: a retry may succeed."""


class DataRejected(DataError):
    """The data gate refused a batch, which is now in quarantine with its report."""


class TrainingError(HeadraceError):
    """Training cannot continue: a NaN loss, a single class, no rows left."""


class ExportError(HeadraceError):
    """The outputs of the exported graph differ from torch's."""


class NotReleased(HeadraceError):
    """A candidate is not released; the version that serves keeps serving."""

    exit_code = 4


class ModelRefused(NotReleased):
    """The model gate refused the candidate."""


class AwaitsApproval(NotReleased):
    """The candidate passed the gate, and the recipe asks for manual approval."""


class Rejected(NotReleased):
    """A person rejected the candidate, and nothing has changed since."""


class RolloutAborted(NotReleased):
    """The candidate exceeded its bounds while it was watched, and was rolled back. `facts` holds the measurements."""

    fields = ("facts",)

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.facts = facts or {}


class RolledBack(NotReleased):
    """The candidate is a version that was rolled back earlier: by a user, or because it exceeded its bounds."""


class NotReproduced(HeadraceError):
    """A version that was trained again from its own code and data differs from the registered one."""

    exit_code = 4


class ServiceError(HeadraceError):
    """A server, engine or database does not respond."""

    exit_code = 5


class PortTaken(ServiceError):
    """A required port is in use by another program."""


class EngineMissing(ServiceError):
    """A container engine is required and does not respond."""


class RegistryError(ServiceError):
    """MLflow's database is locked, read-only or unreachable."""


class Busy(HeadraceError):
    """Another process is doing the same work."""

    exit_code = 6


class DamagedFile(HeadraceError):
    """A file that Headrace wrote exists, but its content cannot be read."""


class NewerFile(HeadraceError):
    """A newer version of Headrace, or of a package, wrote a file in a format that this one does not know."""


class DiskFull(HeadraceError):
    """No disk space is left."""

    exit_code = 7


class Interrupted(HeadraceError):
    """The user interrupted the command; the same command continues the work."""

    exit_code = 130


MOST_NAMES = 20
"""Names that an error lists."""


def near_miss(name: str, choices: Iterable[str]) -> str:
    """Returns a clause with the closest known name, or with the first names when none is close.

    >>> near_miss("digts", ["digits", "flights"])
    "did you mean 'digits'?"
    >>> near_miss("zebra", ["digits", "flights"])
    'known: digits, flights'
    """
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return "known: " + ", ".join(known[:MOST_NAMES]) + more if known else "there are none yet"


def _tree(cls: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough to show; its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
