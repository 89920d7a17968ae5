"""What `headrace init` or `headrace upgrade` wrote last into a project, with which `upgrade` tells a user's changes apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.version import Version

from headrace import __version__
from headrace.errors import UsageError
from headrace.files import read_cached_json, read_object, write_json
from headrace.permissions import tracked_mode

FILE = ".headrace-scaffold.json"
"""In git beside the files: whoever clones the project can upgrade it."""
SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """The files as Headrace wrote them."""

    name: str
    """The project's."""
    headrace: str
    """Version of Headrace."""
    files: dict[str, str]
    """Texts by path."""
    schema_version: int = SCHEMA


def write_record(root: Path, record: Record) -> None:
    """Writes `.headrace-scaffold.json`."""
    write_json(root / FILE, asdict(record), tracked_mode(root / FILE))


def read_record(root: Path) -> Record | None:
    """Reads `.headrace-scaffold.json`; None when there is none.

    Raises:
        DamagedFile, NewerFile: it cannot be read.
    """
    fields = {"name": str, "headrace": str, "files": dict}
    found = read_object(root / FILE, f"write what git show HEAD:{FILE} prints into it", SCHEMA, **fields)
    return Record(**{key: found[key] for key in fields}) if found else None


def require_no_newer(record: Record) -> None:
    """Raises UsageError when a later Headrace than the installed one wrote the project."""
    if Version(record.headrace) > Version(__version__):
        raise UsageError(
            f"Headrace {record.headrace} wrote this project, and {__version__} is installed",
            where=FILE,
            hint=f"pip install headrace=={record.headrace}, or a later one",
        )


def outdated_note(root: Path) -> str | None:
    """Returns a line about `headrace upgrade` if another Headrace than the installed one wrote the project; else None."""
    found = read_cached_json(root / FILE)
    written_by = found.get("headrace") if isinstance(found, dict) else None
    if written_by in (None, __version__):
        return None
    return f"Headrace {written_by} wrote this project; headrace upgrade shows what {__version__} would write"
