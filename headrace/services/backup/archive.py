"""The archive of a backup: a compressed tar of plain files.

The first member is `headrace-backup.json` (format, versions, sizes), the last `manifest.json` (mode and sha256 of each file):
an archive that was cut short is recognised. Equal files are stored once, as hard links.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace import __version__
from headrace.errors import DamagedFile, UsageError
from headrace.services.backup import state

FORMAT = 1
HEADER, MANIFEST = "headrace-backup.json", "manifest.json"
FILES = "files/"
CHUNK_BYTES = 1 << 20
COMPRESSION = 3
"""Most of a backup is compressed already (Parquet, ONNX)."""
Progress = Callable[[int], None]
"""Called with the number of bytes, of `Header.bytes`, that are done."""


class Header(BaseModel):
    """What a backup is, readable without reading all of it."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    headrace: str = __version__
    """Version of Headrace that made it."""
    made_at: str
    root: str
    """The project's folder; absolute paths in MLflow's database are below it."""
    git_commit: str | None
    files: int
    bytes: int
    """Size of all files, uncompressed."""


class Stored(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    mode: int


class Manifest(BaseModel):
    """All files and folders of a backup, by their path relative to the project."""

    model_config = ConfigDict(frozen=True)
    files: dict[str, Stored]
    folders: dict[str, int]
    """The mode of each."""


def write_archive(folder: Path, header: Header, stream: BinaryIO, progress: Progress) -> None:
    """Writes all files of `folder` to `stream`."""
    files: dict[str, Stored] = {}
    folders: dict[str, int] = {}
    names: dict[str, str] = {}
    done = 0
    with (
        gzip.GzipFile(state.ARCHIVE_NAME, "wb", COMPRESSION, stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add_text(tar, HEADER, header.model_dump_json(indent=1))
        for path in sorted(folder.rglob("*")):
            name, mode = path.relative_to(folder).as_posix(), path.stat().st_mode & 0o777
            if path.is_dir():
                folders[name] = mode
                continue
            with path.open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
                info = tarfile.TarInfo(FILES + name)
                info.mode, info.mtime = mode, int(path.stat().st_mtime)
                if sha256 in names and size:
                    info.type, info.linkname = tarfile.LNKTYPE, FILES + names[sha256]
                    tar.addfile(info)
                else:
                    handle.seek(0)
                    reader = _Hashing(handle, size)
                    info.size = size
                    tar.addfile(info, reader)
                    sha256 = reader.sha256  # of what was written, should another process have changed it meanwhile
            names.setdefault(sha256, name)
            files[name] = Stored(sha256=sha256, mode=mode)
            done += size
            progress(done)
        _add_text(tar, MANIFEST, Manifest(files=files, folders=folders).model_dump_json())


class ArchiveReader:
    """Reads an archive from its start to its end."""

    def __init__(self, packed: gzip.GzipFile, tar: tarfile.TarFile, source: str) -> None:
        self._packed, self._tar, self._source = packed, tar, source
        self.header = self._read_header()

    def extract(self, folder: Path, progress: Progress) -> Manifest:
        """Writes all files below the new folder `folder`, private to this user, and compares each with its sha256.

        Raises:
            DamagedFile: the archive is not what was written, has names that lead out of the project, or was cut short.
        """
        folder.mkdir(mode=0o700, parents=True)
        found: dict[str, str] = {}
        done = 0
        while (member := self._next()) is not None:
            if member.name == MANIFEST:
                manifest = self._parse_manifest(member)
                self._compare(manifest, found)
                with self._reading():  # to the end: gzip compares its checksum there
                    while self._packed.read(CHUNK_BYTES):
                        pass
                return manifest
            name = self._safe_name(member.name)
            place = folder / name
            if place.exists() or any(parent.as_posix() in found for parent in PurePosixPath(name).parents):
                raise self._damaged(f"{name} is in it twice, or below a file")
            place.parent.mkdir(parents=True, exist_ok=True)
            if member.islnk():
                original = self._safe_name(member.linkname)
                if original not in found:
                    raise self._damaged(f"{name} is a link to {member.linkname}, which is not in it")
                shutil.copyfile(folder / original, place)
                place.chmod(0o600)
                found[name] = found[original]
            elif member.isreg():
                found[name] = self._write(member, place)
            else:
                raise self._damaged(f"{name} is neither a file nor a link to one of its files")
            done += place.stat().st_size
            progress(done)
        raise self._damaged("it ends before its manifest")

    def _read_header(self) -> Header:
        not_ours = UsageError(
            "not a backup of Headrace", where=self._source, hint="name a file that headrace backup has written"
        )
        try:
            member = self._tar.next()
            if member is None or member.name != HEADER:
                raise not_ours
            content = self._content(member)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error):
            raise not_ours from None
        except EOFError:
            raise self._damaged("it is cut short") from None
        found = _format_of(content)
        if found > FORMAT:
            raise UsageError(
                f"the backup has format {found}; this Headrace ({__version__}) reads formats up to {FORMAT}",
                where=self._source,
                hint="restore it with the version of Headrace that made it, or a newer one",
            )
        try:
            return Header.model_validate_json(content)
        except ValidationError as error:
            raise self._damaged(f"{HEADER} cannot be read: {error.errors()[0]['msg']}") from None

    def _next(self) -> tarfile.TarInfo | None:
        with self._reading():
            return self._tar.next()

    def _content(self, member: tarfile.TarInfo) -> bytes:
        handle = self._tar.extractfile(member) if member.isreg() else None
        return handle.read() if handle is not None else b""

    def _write(self, member: tarfile.TarInfo, place: Path) -> str:
        digest = hashlib.sha256()
        with place.open("xb") as file:
            place.chmod(0o600)
            handle = self._tar.extractfile(member)
            assert handle is not None  # a regular file
            while chunk := self._chunk(handle):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def _chunk(self, handle: IO[bytes]) -> bytes:
        with self._reading():
            return handle.read(CHUNK_BYTES)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._damaged(f"it is damaged or cut short ({error})") from None

    def _parse_manifest(self, member: tarfile.TarInfo) -> Manifest:
        try:
            with self._reading():
                return Manifest.model_validate_json(self._content(member))
        except ValidationError as error:
            raise self._damaged(f"{MANIFEST} cannot be read: {error.errors()[0]['msg']}") from None

    def _compare(self, manifest: Manifest, found: dict[str, str]) -> None:
        for name in sorted(manifest.files.keys() ^ found.keys()):
            raise self._damaged(f"{name} is {'missing' if name in manifest.files else 'not in its manifest'}")
        for name, stored in manifest.files.items():
            if found[name] != stored.sha256:
                raise self._damaged(f"{name} has sha256 {found[name][:12]}…, and {stored.sha256[:12]}… in the manifest")
        for name in manifest.folders:
            self._safe_name(FILES + name)

    def _safe_name(self, name: str) -> str:
        """The path relative to the project, of a member that stays inside of it and outside of git's and Python's folders."""
        relative = name.removeprefix(FILES)
        parts = PurePosixPath(relative).parts
        is_plain = name.startswith(FILES) and relative == "/".join(parts) and "\\" not in name and "\0" not in name
        if not is_plain or not parts or parts[0] in ("/", *state.NEVER) or {".", "..", ".git"} & {*parts}:
            raise self._damaged(f"it has a member with the name {name!r}, which no backup has")
        return relative

    def _damaged(self, what: str) -> DamagedFile:
        return DamagedFile(f"the backup is refused: {what}", where=self._source, hint="nothing was changed; use another backup")


@contextmanager
def open_archive(stream: BinaryIO, source: str) -> Iterator[ArchiveReader]:
    """Opens an archive.

    Args:
        source: the file's name or address, for messages.

    Raises:
        UsageError: it is not a backup, or has a newer format.
    """
    packed = gzip.GzipFile(fileobj=stream, mode="rb")
    try:
        tar = tarfile.open(fileobj=packed, mode="r|")  # noqa: SIM115 (closed below)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error):
        raise UsageError(
            "not a backup of Headrace", where=source, hint="name a file that headrace backup has written"
        ) from None
    with tar:
        yield ArchiveReader(packed, tar, source)


class _Hashing(io.RawIOBase):
    """Reads exactly `size` bytes of a file, also when it grows or shrinks meanwhile, and hashes them."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self._handle, self._left, self._digest = handle, size, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        chunk = self._handle.read(wanted)
        chunk += b"\0" * (wanted - len(chunk))
        self._left -= wanted
        self._digest.update(chunk)
        return chunk

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text.encode()), 0o600
    tar.addfile(info, io.BytesIO(text.encode()))


def _format_of(content: bytes) -> int:
    """The number of the format, also of a header whose other fields are of a newer one; 0 where there is none."""

    class Numbered(BaseModel):
        format: int

    try:
        return Numbered.model_validate_json(content).format
    except ValidationError:
        return 0
