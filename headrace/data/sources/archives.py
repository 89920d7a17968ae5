"""Extracts members of a wheel, zip or tar to given files: nothing is unpacked to a path from the archive."""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from headrace.errors import SourceError, near_miss

MEMBER_LIMIT_BYTES = 8 << 30
"""Size limit of an unpacked member, and of all members of a pattern together."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The timestamp of every member of a zip that we write."""

Opener = Callable[[], IO[bytes]]


def extract(archive: Path, member: str, to: Path) -> None:
    """Writes the member `member` of `archive` to the file `to`; for a pattern, a zip of all members that match. Paths may
    start below the archive's top folder.

    Raises:
        SourceError: the member does not exist (the message has a close match), it is not a regular file or is too large, or
            the archive is damaged.
    """
    try:
        with ExitStack() as stack:
            members = _members(archive, stack)
            if is_pattern(member):
                _pack(member, members, archive, to)
            else:
                size, opener = members[_find(member, members, archive)]
                _refuse_large(size, member)
                with opener() as source, to.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)  # both formats stop at the declared size
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{archive.name} is damaged: {error}", where="data.source", hint="run the command again") from None


def is_pattern(path: str) -> bool:
    """Returns whether `path` is a pattern for any number of files."""
    return "*" in path


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Returns the `names` that match `pattern`, sorted; `*` matches any characters, `/` included."""
    known = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return sorted(name for name in names if known.fullmatch(name))


def pack_files(files: Iterable[tuple[str, Opener]], to: Path) -> None:
    """Writes a zip whose bytes depend on names and contents only."""
    with zipfile.ZipFile(to, "w", compresslevel=1) as packed:
        for name, opener in files:
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            with opener() as source, packed.open(info, "w", force_zip64=True) as file:
                shutil.copyfileobj(source, file, 1 << 20)


def listing_sha256(packed: Path) -> str:
    """Returns the sha256 of the output of `sha256sum` for the files in a zip, sorted by path."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(packed) as files:
        for name in files.namelist():
            with files.open(name) as file:
                digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())  # type: ignore[arg-type]
    return digest.hexdigest()


def _members(archive: Path, stack: ExitStack) -> dict[str, tuple[int, Opener]]:
    """Returns size and opener of each regular file of an archive."""
    if zipfile.is_zipfile(archive):
        zipped = stack.enter_context(zipfile.ZipFile(archive))
        return {info.filename: (info.file_size, _zip_opener(zipped, info)) for info in zipped.infolist() if not info.is_dir()}
    if tarfile.is_tarfile(archive):
        tarred = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 (the stack closes it)
        # Links are skipped: a link could point anywhere.
        files = [info for info in tarred.getmembers() if info.isfile()]
        return {info.name.removeprefix("./"): (info.size, _tar_opener(tarred, info)) for info in files}
    raise SourceError(
        f"{archive.name} is neither a zip nor a tar", where="data.source", hint="use a package that contains the file"
    )


def _zip_opener(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> Opener:
    return lambda: zipped.open(info)


def _tar_opener(tarred: tarfile.TarFile, info: tarfile.TarInfo) -> Opener:
    def opener() -> IO[bytes]:
        opened = tarred.extractfile(info)
        assert opened is not None  # a regular file can always be opened
        return opened

    return opener


def _pack(pattern: str, members: dict[str, tuple[int, Opener]], archive: Path, to: Path) -> None:
    below = {name.partition("/")[2]: name for name in members}
    found = {name: name for name in matching(pattern, members)} or {name: below[name] for name in matching(pattern, below)}
    if not found:
        raise SourceError(
            f"nothing in {archive.name} matches {pattern!r}; {_near(pattern.rpartition('/')[0], list(members))}",
            where="data.source",
            hint="correct the pattern in data.source; `*` matches any characters",
        )
    _refuse_large(sum(members[name][0] for name in found.values()), pattern)
    pack_files(((shown, members[name][1]) for shown, name in found.items()), to)


def _near(folder: str, names: list[str]) -> str:
    """Suggests the folder that was probably meant."""
    folders = {name.rpartition("/")[0] for name in names}
    folders |= {path.partition("/")[2] for path in folders}
    close = difflib.get_close_matches(folder, sorted(folders), n=1)
    return f"did you mean {close[0]!r}?" if close else near_miss(folder, sorted(folders - {""}, key=len)[:10])


def _find(member: str, members: dict[str, tuple[int, Opener]], archive: Path) -> str:
    if member in members:
        return member
    below = [name for name in members if name.partition("/")[2] == member]
    if len(below) == 1:
        return below[0]
    same = [name for name in members if name.rsplit("/", 1)[-1] == member.rsplit("/", 1)[-1]]
    hint = f"did you mean {same[0]!r}?" if same else near_miss(member, list(members)[:30])
    raise SourceError(
        f"{archive.name} does not contain {member!r}; {hint}", where="data.source", hint="correct the path in data.source"
    )


def _refuse_large(size: int, member: str) -> None:
    if size > MEMBER_LIMIT_BYTES:
        raise SourceError(
            f"{member} unpacks to {size} bytes, more than {MEMBER_LIMIT_BYTES >> 30} GiB",
            where="data.source",
            hint="use a smaller file, or download it and use its path",
        )
