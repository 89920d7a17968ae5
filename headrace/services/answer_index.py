"""Which file of recorded answers has a request's answer, without reading the files.

Each file of a replica has an index: the sorted hashes of the request ids in it, 8 bytes for each. Records are appended, so an
index covers the first bytes of its file, and the rest, which is small, is searched. An index that is lost is made again.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
import time
from array import array
from bisect import bisect_left
from pathlib import Path

from headrace.errors import DiskFull
from headrace.files import write_with

REST_BYTES = 4 * 1024 * 1024
"""Records beyond this size are indexed; those of a file that is not written any more, whatever their size."""
QUIET_SECONDS = 60.0
WORD = struct.Struct("=Q")
REQUEST_ID = re.compile(rb'"id":\s*"([^"]*)"')


class AnswerIndex:
    """The indexes of all files, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def search_from(self, path: Path, request_id: str) -> int:
        """Returns the position in a file of answers from which on it has to be searched for this id.

        Raises:
            FileNotFoundError: the file was removed meanwhile.
        """
        found = path.stat()
        index = self._folder / f"{path.parent.name}-{path.stem}.ids"
        covered = _covered(index)
        rest = found.st_size - covered
        if rest > REST_BYTES or (rest > 0 and time.time() - found.st_mtime > QUIET_SECONDS):
            covered = self._extend(index, path, covered)
        return 0 if _contains(index, request_id) else covered

    def remove_others(self, paths: list[Path]) -> None:
        """Removes the indexes of files that are gone."""
        kept = {f"{path.parent.name}-{path.stem}.ids" for path in paths}
        for index in self._folder.glob("*.ids"):
            if index.name not in kept:
                index.unlink(missing_ok=True)

    def _extend(self, index: Path, path: Path, covered: int) -> int:
        """Adds the complete lines after `covered`, and returns how much of the file is covered then."""
        with path.open("rb") as handle:
            handle.seek(covered)
            content = handle.read()
        end = content.rfind(b"\n") + 1
        ids = {match[1] for line in content[:end].splitlines() if (match := REQUEST_ID.search(line))}
        words = array("Q", index.read_bytes()[WORD.size :] if covered else b"")
        words = array("Q", sorted([*words, *map(_hash, ids)]))
        try:
            write_with(index, lambda beside: beside.write_bytes(WORD.pack(covered + end) + words.tobytes()))
        except (OSError, DiskFull):  # the file is searched instead
            return covered
        return covered + end


def _covered(index: Path) -> int:
    """Returns how many bytes of its file an index covers; 0 if the index is missing, or a damaged one."""
    try:
        with index.open("rb") as handle:
            head, size = handle.read(WORD.size), index.stat().st_size
    except FileNotFoundError:
        return 0
    return int(WORD.unpack(head)[0]) if len(head) == WORD.size and size % WORD.size == 0 else 0


def _contains(index: Path, request_id: str) -> bool:
    wanted = _hash(request_id.encode())
    try:
        with index.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            count = len(content) // WORD.size - 1
            place = bisect_left(range(count), wanted, key=lambda number: _word(content, number))
            return place < count and _word(content, place) == wanted
    except (FileNotFoundError, ValueError):  # none, or an empty one
        return False


def _word(content: mmap.mmap, number: int) -> int:
    return int(WORD.unpack_from(content, (number + 1) * WORD.size)[0])


def _hash(request_id: bytes) -> int:
    return int(WORD.unpack(hashlib.blake2b(request_id, digest_size=WORD.size).digest())[0])
