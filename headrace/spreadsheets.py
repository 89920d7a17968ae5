"""Workbooks, Excel (xlsx, xlsm, xlsb, xls) and OpenDocument (ods): opened in bounded memory, and their cells as text.

A workbook of 2 KB with two cells far apart, or with one that is repeated a million times, takes gigabytes once it is read, and
the process ends when they are not there. So a process with a limit of its memory reads it first: `python -m
headrace.spreadsheets FILE`.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import DataError, first_line

if TYPE_CHECKING:
    from python_calamine import CalamineSheet, CalamineWorkbook

ENDINGS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
OLE = b"\xd0\xcf\x11\xe0"
"""The first bytes of xls files."""
UNPACKED_LIMIT_BYTES = 1 << 30
"""A workbook is read as a whole; one whose parts unpack to more is refused."""
MOST_CELLS = 40_000_000
"""Most cells of the range of a sheet; each takes 24 bytes."""
EXACT = 2**53
"""Workbooks hold numbers as floats: whole numbers up to this are exact."""
MEMORY_BYTES = 2 << 30
"""Most memory that reading a workbook may take."""
MOST_SECONDS = 600
SMALLER = "remove the cells far to the right or far below, or export the sheet as CSV"
DAMAGED = "save it again as xlsx without a password, or export the sheet as CSV"


def open_workbook(path: Path) -> CalamineWorkbook:
    """Opens a workbook whose sheets fit into memory.

    Raises:
        DataError: it is not a workbook, has no sheet, or needs too much memory.
    """
    from python_calamine import CalamineWorkbook

    with reading_errors(path):
        _refuse_a_bomb(path)
        status = path.stat()
        found = _measured(str(path), status.st_size, status.st_mtime_ns, _memory())
    if found.get("error"):
        raise DataError(f"not a workbook that can be read: {found['error']}", where=str(path), hint=DAMAGED)
    if found.get("too_large"):
        raise DataError(f"reading the workbook {found['too_large']}", where=str(path), hint=SMALLER)
    if not found["cells"]:
        raise DataError("the workbook has no sheet", where=str(path), hint="save it again with a sheet")
    if (cells := max(found["cells"])) > MOST_CELLS:
        raise DataError(f"a sheet spans {cells:,} cells, more than {MOST_CELLS:,}", where=str(path), hint=SMALLER)
    with reading_errors(path):
        return CalamineWorkbook.from_path(str(path))


def sheet_of(workbook: CalamineWorkbook, name: str, path: Path) -> CalamineSheet:
    """Returns a sheet of a workbook that `open_workbook` has opened.

    Raises:
        DataError: it cannot be read.
    """
    with reading_errors(path):
        return workbook.get_sheet_by_name(name)


def cell_text(value: Any, decimal: str = ".") -> str:
    """Returns a cell as text: whole numbers without a decimal sign."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if is_whole(value) else str(value).replace(".", decimal)
    return str(value)


def is_whole(value: float) -> bool:
    """Returns whether a number is an exact whole number."""
    return float(value).is_integer() and abs(value) <= EXACT


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Raises the errors of a damaged workbook as a `DataError`."""
    from python_calamine import CalamineError

    try:
        yield
    except (CalamineError, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"not a workbook that can be read: {first_line(error)}", where=str(path), hint=DAMAGED) from None


def _refuse_a_bomb(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > UNPACKED_LIMIT_BYTES:
        raise DataError(
            f"the workbook unpacks to {size / 2**30:.1f} GiB, more than {UNPACKED_LIMIT_BYTES >> 30} GiB",
            where=str(path),
            hint="export the sheet as CSV",
        )


def _memory() -> int:
    """Returns what reading may take: half of what this process may have, as it reads the workbook again."""
    own = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return MEMORY_BYTES if own == resource.RLIM_INFINITY else min(MEMORY_BYTES, own // 2)


@functools.lru_cache(maxsize=16)
def _measured(path: str, size: int, changed_ns: int, memory: int) -> dict[str, Any]:
    """Returns the cells of each sheet, or why the workbook cannot be read, from a process with limited memory."""
    # -P: no file of the current folder is taken for a module of Python
    command = [sys.executable, "-P", "-m", "headrace.spreadsheets", str(Path(path).resolve()), str(memory)]
    places = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    try:
        done = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return {"too_large": f"takes more than {MOST_SECONDS} seconds"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    said = done.stderr.decode(errors="replace")
    if done.returncode < 0 or "MemoryError" in said or "memory allocation" in said:
        return {"too_large": f"needs more than {memory / 2**30:g} GiB of memory"}
    return {"error": (said.strip().splitlines() or ["the reader ended"])[-1][:200]}


def measure(path: str) -> dict[str, Any]:
    """Returns the cells of the range of each sheet, or the error of the reader."""
    from python_calamine import CalamineError, CalamineWorkbook

    cells = []
    try:
        workbook = CalamineWorkbook.from_path(path)
        for name in workbook.sheet_names:
            last = workbook.get_sheet_by_name(name).end
            cells.append((last[0] + 1) * (last[1] + 1) if last else 0)
            if cells[-1] > MOST_CELLS:
                break
    except (CalamineError, OSError) as error:
        return {"error": first_line(error)}
    return {"cells": cells}


def main() -> None:
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(json.dumps(measure(sys.argv[1])))


if __name__ == "__main__":
    main()
