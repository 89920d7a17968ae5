"""What a file is by its content, whatever its name says; and its bytes, decompressed within limits."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from headrace.scoring.rows import BadFile
from headrace.spreadsheets import OLE

Content = Literal["parquet", "zip", "workbook", "text"]
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""How compressed files begin."""
OTHERS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it first",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"ORC": "an ORC file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
    b"SQLite format 3": "a SQLite database; export a table as CSV",
    b"\x89PNG": "a picture; send it alone as the body of a request, or several in a zip",
    b"\xff\xd8\xff": "a picture; send it alone as the body of a request, or several in a zip",
    b"%PDF": "a PDF file; rows are in CSV, JSON lines or Parquet",
    b"7z\xbc\xaf": "a 7z archive; use zip or gzip",
    b"Rar!": "a RAR archive; use zip or gzip",
}
"""How files that are not taken begin, and what to do with them."""
MOST_TIMES = 500
"""A file that unpacks to this many times its size, and to more than `FREE_BYTES`, is refused: a decompression bomb."""
FREE_BYTES = 64 * 1024 * 1024
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
READ_BYTES = 1 << 20
OPENDOCUMENT = b"application/vnd.oasis.opendocument.spreadsheet"
"""What an OpenDocument sheet says of itself."""


def content_of(path: Path) -> Content:
    """Returns what the file is: compressed text is `text` too.

    Raises:
        BadFile: it is of a kind that is not taken.
    """
    with path.open("rb") as handle:
        start = handle.read(16)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"PK\x03\x04"):
        return "workbook" if _is_workbook(path) else "zip"
    if start.startswith(OLE):
        return "workbook"
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in start)
    for magic, what in OTHERS.items():
        if start.startswith(magic) and not (magic == b"ORC" and is_text):  # the name of a column may begin so
            raise BadFile("unknown_format", f"the file is {what}")
    return "text"


def _is_workbook(path: Path) -> bool:
    with archive_errors(), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if names & {"xl/workbook.xml", "xl/workbook.bin"}:
            return True
        return "mimetype" in names and archive.getinfo("mimetype").file_size < 100 and archive.read("mimetype") == OPENDOCUMENT


@contextmanager
def unpacked(path: Path, member: str | None = None) -> Iterator[io.BufferedReader]:
    """Gives the bytes of a text file, decompressed while they are read; `member` is the name of one in a zip.

    Raises:
        BadFile: it is truncated or damaged, or unpacks to far too much.
    """
    with archive_errors(), _opened(path, member) as handle:
        yield io.BufferedReader(_Limited(handle, path.stat().st_size), READ_BYTES)


@contextmanager
def archive_errors() -> Iterator[None]:
    """Raises the errors of damaged compressed files as a `BadFile`."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise BadFile("damaged_file", f"the compressed file is truncated or damaged: {str(error)[:200]}") from None
    except OSError as error:  # bz2; without a number, which errors of the disk have
        if error.errno is not None:
            raise
        raise BadFile("damaged_file", f"the compressed file is truncated or damaged: {str(error)[:200]}") from None
    except RuntimeError as error:  # zipfile: an encrypted member, or a compression that it does not know
        raise BadFile("damaged_file", f"the archive cannot be read: {str(error)[:200]}") from None


def _opened(path: Path, member: str | None) -> Any:
    if member is not None:
        archive = zipfile.ZipFile(path)
        return archive.open(member)
    with path.open("rb") as handle:
        start = handle.read(8)
    opener = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
    return path.open("rb") if opener is None else opener(path, "rb")


class _Limited(io.RawIOBase):
    """Reads from another file, and refuses what unpacks to far more than its size."""

    def __init__(self, handle: IO[bytes], packed: int) -> None:
        self._handle, self._most, self._read = handle, max(FREE_BYTES, packed * MOST_TIMES), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._handle.read(len(buffer))
        self._read += len(found)
        if self._read > self._most:
            message = f"the file unpacks to more than {MOST_TIMES} times its size; send it unpacked, or as Parquet"
            raise BadFile("too_large", message)
        buffer[: len(found)] = found
        return len(found)


def encoding_of(path: Path, member: str | None) -> str:
    """Returns the encoding of a text file: by its byte order mark, UTF-8 if all of it is, otherwise cp1252 or latin-1."""
    with unpacked(path, member) as handle:
        start = handle.peek(READ_BYTES)[:4096]
        if bom := next((encoding for mark, encoding in BOMS.items() if start.startswith(mark)), None):
            return bom
        pairs = max(1, len(start) // 2)
        if start[1::2].count(0) > 0.7 * pairs:  # a text without accents has a zero in every other byte
            return "utf-16-le"
        if start[::2].count(0) > 0.7 * pairs:
            return "utf-16-be"
        left = {"utf-8": codecs.getincrementaldecoder("utf-8")(), "cp1252": codecs.getincrementaldecoder("cp1252")()}
        while chunk := handle.read(READ_BYTES):
            for encoding in list(left):
                try:
                    left[encoding].decode(chunk)
                except UnicodeDecodeError:
                    del left[encoding]
        try:
            left.get("utf-8", left.get("cp1252", codecs.getincrementaldecoder("latin-1")())).decode(b"", final=True)
        except UnicodeDecodeError:  # cut within a character
            left.pop("utf-8", None)
    return next(iter(left), "latin-1")
