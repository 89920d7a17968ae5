"""Bytes of a file as text: decompressed, decoded, and refused with the line of the first wrong byte."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

from headrace.errors import DataError, first_line

UNPACKED_LIMIT_BYTES = 8 << 30
"""A compressed file that unpacks to more is refused: a zip bomb, or a table that should be Parquet."""


def as_utf8(raw: bytes, encoding: str, path: Path) -> bytes:
    """Converts `raw` from `encoding` to UTF-8.

    Raises:
        DataError: a byte that is invalid in `encoding`; the message names the byte and its line.
    """
    if encoding.lower().replace("-", "").replace("_", "") == "utf8":
        return raw  # checked when columns are decoded, so that the message can name the column
    try:
        return raw.decode(encoding).encode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte 0x{raw[error.start]:02x} is not valid {encoding} text: {raw[max(0, error.start - 20) : error.start + 20]!r}",
            where=f"{path}, line {line}",
            hint="set data.encoding to the encoding of the file, for example cp1252, mac_roman or latin-1",
        ) from None


def unpacked(path: Path, kind: str) -> bytes:
    """Returns the bytes of a file, decompressed if its extension is of gzip or zip.

    Raises:
        DataError: it is truncated or damaged (both formats have checksums), or unpacks to too much.
    """
    try:
        if kind.endswith(".gz"):
            with gzip.open(path) as packed:
                raw = packed.read(UNPACKED_LIMIT_BYTES + 1)
        elif kind.endswith(".zip"):
            raw = _unzipped(path)
        else:
            return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(
            f"the compressed file is truncated or damaged: {first_line(error)}",
            where=str(path),
            hint="fetch or export it again",
        ) from None
    if len(raw) > UNPACKED_LIMIT_BYTES:
        raise DataError(f"unpacks to more than {UNPACKED_LIMIT_BYTES >> 30} GiB", where=str(path), hint="write it as Parquet")
    return raw


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [
            m for m in archive.infolist() if not m.is_dir() and m.filename.lower().endswith((".csv", ".tsv", ".tab", ".jsonl"))
        ]
        if len(members) != 1:
            raise DataError(
                f"the zip contains {len(members)} tables instead of one",
                where=str(path),
                hint="unpack it and use the path of one table",
            )
        with archive.open(members[0]) as packed:
            return packed.read(UNPACKED_LIMIT_BYTES + 1)


def decoded(raw: bytes, encoding: str, path: Path) -> str:
    """Returns `raw` as text, with line ends as `\\n`.

    Raises:
        DataError: it is not text in `encoding`; the message names the line.
    """
    try:
        text = as_utf8(raw, encoding, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8 text: {raw[error.start : error.start + 40]!r}",
            where=f"{path}, line {line}",
            hint="set data.encoding, for example to cp1252",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
