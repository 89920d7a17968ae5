"""Opens files as streams of bytes, decompressed by what the bytes say, and as UTF-8 without the lines that are not rows."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import IO, Any, cast

from headrace.data.formats.encoding import UNPACKED_LIMIT_BYTES
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError, first_line

BLOCK_BYTES = 1 << 20
COMPRESSIONS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst", b"PK\x03\x04": "zip"}
"""The first bytes of compressed files."""
TABLE_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".psv", ".jsonl", ".ndjson", ".json")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, lzma.LZMAError, OSError, ValueError)


def compression(path: Path) -> str | None:
    """Returns how the file is compressed, as its first bytes say: `gz`, `bz2`, `xz`, `zst`, `zip`, or None."""
    with path.open("rb") as file:
        head = file.read(6)
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def open_unpacked(path: Path) -> IO[bytes]:
    """Opens a file for reading, decompressed if it is compressed; of a zip, the one table in it.

    Raises:
        DataError: the zip has no table, or several.
    """
    kind = compression(path)
    if kind is None:
        return path.open("rb")
    return cast("IO[bytes]", io.BufferedReader(_Unpacked(_decompressed(path, kind), path), BLOCK_BYTES))


def _decompressed(path: Path, kind: str) -> IO[bytes]:
    match kind:
        case "gz":
            return cast("IO[bytes]", gzip.open(path))
        case "bz2":
            return bz2.open(path)
        case "xz":
            return lzma.open(path)
        case "zst":
            import pyarrow as pa

            return cast("IO[bytes]", pa.CompressedInputStream(str(path), "zstd"))
        case _:
            return _member(path)


def _member(path: Path) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from None
    files = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
    tables = [m for m in files if m.filename.lower().endswith(TABLE_ENDINGS)] or files
    if len(tables) != 1:
        names = ", ".join(m.filename for m in tables[:10])
        raise DataError(
            f"the zip contains {len(tables)} tables instead of one" + (f": {names}" if names else ""),
            where=str(path),
            hint="unpack it and use the path of one table, or a pattern for several (data.source: 'folder/*.csv')",
        )
    return archive.open(tables[0])


class _Unpacked(io.RawIOBase):
    """A decompressed stream that refuses what is damaged, and what unpacks to too much."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self._source = source
        self._path = path
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._source.read(len(buffer))
        except DAMAGED as error:
            raise _damaged(self._path, error) from None
        self._done += len(found)
        if self._done > UNPACKED_LIMIT_BYTES:
            raise DataError(
                f"unpacks to more than {UNPACKED_LIMIT_BYTES >> 30} GiB",
                where=str(self._path),
                hint="unpack it and use the path of the table, or write it as Parquet",
            )
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._source.close()
        super().close()


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"the compressed file is truncated or damaged: {first_line(error)}", where=str(path), hint="fetch or export it again"
    )


class Utf8Stream(io.RawIOBase):
    """The text of a file as UTF-8, in bounded memory: decoded, without a byte order mark, the lines to skip and comments.

    Arrow reads from it on threads of its own, which lose an exception's attributes: `error` keeps it.
    """

    def __init__(self, source: IO[bytes], path: Path, options: ReadOptions) -> None:
        read = options.read
        self.error: DataError | None = None
        self._source = source
        self._path = path
        self._encoding = options.text_encoding
        self._is_utf8 = codecs.lookup(self._encoding).name in ("utf-8", "utf-8-sig")
        self._decoder = codecs.getincrementaldecoder("utf-8-sig" if self._is_utf8 else self._encoding)("strict")
        self._lines = 0
        self._skip = read.skip_lines if read else 0
        self._hold = read.skip_last if read else 0
        self._comment = read.comment.encode() if read and read.comment else None
        self._quote = read.quote.encode() if read else b'"'
        self._is_within_quotes = False
        self._held: deque[bytes] = deque()
        self._rest = b""
        self._out = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out and not self._ended:
            self._fill()
        found = self._out[: len(buffer)]
        self._out = self._out[len(found) :]
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._source.close()
        super().close()

    def _fill(self) -> None:
        try:
            raw = self._source.read(BLOCK_BYTES)
            text = self._decoded(raw)
        except DataError as error:
            self.error = error
            raise
        self._ended = not raw
        if not (self._skip or self._hold or self._comment):
            self._out = text
            return
        *lines, self._rest = (self._rest + text).splitlines(keepends=True) or [b""]
        if self._rest.endswith(b"\n") or (self._ended and self._rest):  # a lone \r may be the first half of a line's end
            lines, self._rest = [*lines, self._rest], b""
        self._out = b"".join(self._kept(lines))

    def _kept(self, lines: list[bytes]) -> list[bytes]:
        found = []
        for line in lines:
            if self._skip:
                self._skip -= 1
                continue
            if self._comment and not self._is_within_quotes and line.startswith(self._comment):
                continue
            if self._comment and self._quote and line.count(self._quote) % 2:
                self._is_within_quotes = not self._is_within_quotes
            if not self._hold:
                found.append(line)
                continue
            self._held.append(line)
            if len(self._held) > self._hold:
                found.append(self._held.popleft())
        return found

    def _decoded(self, raw: bytes) -> bytes:
        before = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise self._undecodable(before + raw if len(error.object) != len(raw) else raw, error) from None
        self._refuse_nul(text)
        self._lines += text.count("\n")
        return text.encode()

    def _undecodable(self, raw: bytes, error: UnicodeDecodeError) -> DataError:
        line = self._lines + raw.count(b"\n", 0, error.start) + 1
        shown = raw[max(0, error.start - 20) : error.start + 20]
        if self._is_utf8 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "set data.read.encoding: utf-16, or save the file as UTF-8"
        else:
            hint = "set data.read.encoding (headrace new: --encoding) to the file's, for example cp1252, or save it as UTF-8"
        byte = f"byte 0x{raw[error.start]:02x} is not" if error.start < len(raw) else "the end is not"
        return DataError(f"{byte} {self._encoding} text: {shown!r}", where=f"{self._path}, line {line}", hint=hint)

    def _refuse_nul(self, text: str) -> None:
        at = text.find("\0")
        if at >= 0:
            raise DataError(
                f"a NUL byte, which no text file has: {text[max(0, at - 20) : at + 20]!r}",
                where=f"{self._path}, line {self._lines + text.count(chr(10), 0, at) + 1}",
                hint="export the file again; if it is UTF-16, set data.read.encoding: utf-16-le",
            )
