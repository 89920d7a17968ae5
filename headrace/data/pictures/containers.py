"""Where the files of pictures are: a folder, a zip or a tar. Archives are read in place, nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from headrace.data.pictures.checks import MAX_BYTES
from headrace.errors import DataError
from headrace.runtime.images import InvalidImage

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".ods")
"""Tables that are zips of other files."""
TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
"""What a damaged tar raises."""
Found = bytes | InvalidImage
"""The bytes of a file, or why it cannot be read."""


class Container(Protocol):
    """Files with paths below a common root, with `/` between folders."""

    place: Path

    def names(self) -> list[str]:
        """Returns the paths of all files, sorted, without hidden ones."""
        ...

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Found]]:
        """Yields the files `names`, each once: in the given order, or in that of a tar."""
        ...


def open_container(path: Path) -> Container:
    """Opens a folder or an archive, whatever its name ends in.

    Raises:
        DataError: it is neither, or damaged.
    """
    if path.is_dir():
        return Folder(path)
    if zipfile.is_zipfile(path):
        return Zip(path)
    if path.is_file() and tarfile.is_tarfile(path):
        return Tar(path)
    raise DataError(
        "neither a folder nor a zip or tar of pictures" if path.exists() else "no such file or folder",
        where=str(path),
        hint="name a folder with a folder of pictures for each class, an archive of it, or a table with data.image.path",
    )


def is_archive(path: Path) -> bool:
    """Returns whether the file is a zip or a tar; a workbook is a table."""
    if not path.is_file() or path.name.lower().endswith(WORKBOOKS):
        return False
    return zipfile.is_zipfile(path) or (path.name.lower().endswith(ARCHIVES) and tarfile.is_tarfile(path))


class Folder:
    """A folder on disk."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def names(self) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(self.place):
            folders[:] = [name for name in folders if not _is_hidden(name)]
            below = Path(folder).relative_to(self.place).as_posix()
            found += [name if below == "." else f"{below}/{name}" for name in files if not _is_hidden(name)]
        return sorted(found)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Found]]:
        for name in names:
            yield name, _file_bytes(self.place / name)


class Zip:
    """A zip."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def names(self) -> list[str]:
        with self._opened() as archive:
            found = [info.filename for info in archive.infolist() if not info.is_dir()]
        return sorted(name for name in found if not _is_hidden_below(name))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Found]]:
        with self._opened() as archive:
            for name in names:
                yield name, _member_bytes(archive, name)

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.place)
        except (zipfile.BadZipFile, EOFError) as error:
            raise _damaged(self.place, error) from None


class Tar:
    """A tar, compressed or not. It is read from its beginning to its end, because a compressed one has no index."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def names(self) -> list[str]:
        return sorted(name for name, _, _ in self._members() if not _is_hidden_below(name))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Found]]:
        wanted = set(names)
        for name, archive, member in self._members():
            if name in wanted:
                wanted.discard(name)  # a tar may hold a file twice
                yield name, _too_large(member.size) if member.size > MAX_BYTES else self._bytes(archive, member)

    def _bytes(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        opened = archive.extractfile(member)
        assert opened is not None  # a regular file can always be opened
        try:
            return opened.read()
        except TAR_ERRORS as error:
            raise _damaged(self.place, error) from None

    def _members(self) -> Iterator[tuple[str, tarfile.TarFile, tarfile.TarInfo]]:
        try:
            with tarfile.open(self.place) as archive:
                for member in archive:
                    if member.isfile():  # a link could point anywhere
                        yield member.name.removeprefix("./"), archive, member
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
        except TAR_ERRORS as error:
            raise _damaged(self.place, error) from None


def _file_bytes(path: Path) -> Found:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read() if size <= MAX_BYTES else _too_large(size)
    except OSError as error:
        return InvalidImage("no such file" if isinstance(error, FileNotFoundError) else error.strerror or "cannot be read")


def _member_bytes(archive: zipfile.ZipFile, name: str) -> Found:
    try:
        info = archive.getinfo(name)
        if info.file_size > MAX_BYTES:  # a member never gives more than its header says
            return _too_large(info.file_size)
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError) as error:
        return InvalidImage(f"damaged in the archive ({str(error)[:80]})")


def _too_large(size: int) -> InvalidImage:
    return InvalidImage(f"a file of {size:,} bytes; at most {MAX_BYTES:,} are allowed")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _is_hidden_below(name: str) -> bool:
    return any(_is_hidden(part) for part in PurePosixPath(name).parts)


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"the archive is damaged: {error}", where=str(path), hint="fetch or pack it again")
