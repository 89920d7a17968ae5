"""Pictures in a folder or a zip, one row each. The result is CSV with the name of each file."""

from __future__ import annotations

import base64
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from headrace.runtime.contract import Contract
from headrace.runtime.images import MAX_FILE_BYTES
from headrace.runtime.input_field import InputField
from headrace.scoring.answers import answer_columns
from headrace.scoring.columns import listed
from headrace.scoring.content import archive_errors
from headrace.scoring.dialect import Dialect
from headrace.scoring.rows import CSV, AnswerWriter, BadFile, Chunk, Line, RowsFile, bad_row, in_chunks

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")
"""Names of pictures end like this; the model refuses those that it does not take."""
MAX_MEMBERS = 1_000_000
"""Most files in a folder or an archive."""


def picture_field(contract: Contract) -> InputField | None:
    """Returns the only field of the model if it takes pictures."""
    needed = [field for field in contract.inputs if not field.nullable and field.default is None]
    return needed[0] if len(needed) == 1 and needed[0].dtype == "uint8" and needed[0].shape else None


class PicturesFile(RowsFile):
    """A folder or a zip of pictures."""

    media_type = CSV

    def __init__(self, path: Path, contract: Contract) -> None:
        """
        Raises:
            BadFile: there are no pictures, or the model takes none.
        """
        super().__init__(contract, "keep")
        self._path, field = path, picture_field(contract)
        if field is None:
            names = ", ".join(one.name for one in contract.inputs)[:300]
            raise BadFile("unknown_format", f"{contract.model} does not take pictures; send a table with the columns {names}")
        self._field = field
        with _members(path) as members:
            self._names = sorted(name for name in members.names if name.lower().endswith(PICTURES))
            others = sorted(set(members.names) - set(self._names))
        if not self._names:
            raise BadFile("no_rows", f"it has no picture ({', '.join(PICTURES)}); it has {listed(others) or 'no files'}")
        self.note(f"{len(others):,} other files are left out: {listed(others)}" if others else "")

    def count(self) -> int:
        return len(self._names)

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        with _members(self._path) as members:
            yield from in_chunks(self._picture(members, name) for name in self._names[skip:])

    def writer(self, handle: BinaryIO) -> AnswerWriter:
        return _NamesWriter(self.contract, handle)

    def _picture(self, members: _Members, name: str) -> tuple[Any, str, str, int]:
        raw = members.read(name)
        value = raw if isinstance(raw, dict) else {self._field.name: base64.b64encode(raw).decode()}
        return value, name, name, len(raw)


class _Members:
    """The files of a folder or an archive."""

    def __init__(self, names: list[str], opened: Any) -> None:
        if len(names) > MAX_MEMBERS:
            raise BadFile("too_large", f"it has {len(names):,} files; at most {MAX_MEMBERS:,} are taken, so send it in parts")
        self.names = [name for name in names if not _is_hidden(name)]
        self._opened = opened

    def read(self, name: str) -> Any:
        """Returns the bytes of a file, or a `BadRow`."""
        try:
            with self._opened(name) as handle:
                raw = handle.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError, RuntimeError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
            return bad_row("bad_picture", f"the file cannot be read: {str(error)[:200]}")
        if len(raw) > MAX_FILE_BYTES:
            return bad_row("too_large", f"the file exceeds {MAX_FILE_BYTES:,} bytes; send a smaller picture")
        return raw


@contextmanager
def _members(path: Path) -> Iterator[_Members]:
    if path.is_dir():
        names = [str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()]
        yield _Members(names, lambda name: (path / name).open("rb"))
        return
    with archive_errors(), zipfile.ZipFile(path) as archive:
        yield _Members([info.filename for info in archive.infolist() if not info.is_dir()], archive.open)


def _is_hidden(name: str) -> bool:
    """Whether an operating system made the file for itself."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/")) or name.endswith("Thumbs.db")


class _NamesWriter(AnswerWriter):
    def __init__(self, contract: Contract, handle: BinaryIO) -> None:
        self._handle, self._dialect, self._columns = handle, Dialect(), answer_columns(contract, ("file",))
        self._put(["file", *(column.name for column in self._columns)])

    def write(self, chunk: Chunk, lines: list[Line]) -> None:
        for name, line in zip(chunk.sources, lines, strict=True):
            values = [column.value(line) for column in self._columns]
            self._put([name, *("" if value is None else str(value) for value in values)])

    def _put(self, cells: list[str]) -> None:
        self._handle.write((self._dialect.joined(cells) + "\n").encode(errors="replace"))
