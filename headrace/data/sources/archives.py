"""Takes members out of a wheel, zip or tar, as bytes: nothing is unpacked to a path that the archive names."""

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
"""A member that unpacks to more is refused; so are all members of a pattern together."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member of a zip that we write."""

Opener = Callable[[], IO[bytes]]


def extract(archive: Path, member: str, to: Path) -> None:
    """Writes the member `member` of `archive` to the file `to`; of a pattern, a zip of all members that match. Paths may
    begin below the archive's one top folder.

    Raises:
        SourceError: no such member (with the near miss), it is no plain file, too large, or the archive is damaged.
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
                    shutil.copyfileobj(source, file, 1 << 20)  # both archives stop at the size they declare
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{archive.name} is damaged: {error}", where="data.source", hint="run the command again") from None


def is_pattern(path: str) -> bool:
    """Whether `path` stands for any number of files."""
    return "*" in path


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that `pattern` stands for, sorted; `*` stands for any characters, also `/`."""
    known = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return sorted(name for name in names if known.fullmatch(name))


def pack_files(files: Iterable[tuple[str, Opener]], to: Path) -> None:
    """Writes a zip that depends on names and contents alone."""
    with zipfile.ZipFile(to, "w", compresslevel=1) as packed:
        for name, opener in files:
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            with opener() as source, packed.open(info, "w", force_zip64=True) as file:
                shutil.copyfileobj(source, file, 1 << 20)


def listing_sha256(packed: Path) -> str:
    """Of many files: the sha256 of what `sha256sum` prints for them, sorted by path."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(packed) as files:
        for name in files.namelist():
            with files.open(name) as file:
                digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())  # type: ignore[arg-type]
    return digest.hexdigest()


def _members(archive: Path, stack: ExitStack) -> dict[str, tuple[int, Opener]]:
    """Plain files of an archive: name to size and how to open it."""
    if zipfile.is_zipfile(archive):
        zipped = stack.enter_context(zipfile.ZipFile(archive))
        return {info.filename: (info.file_size, _zip_opener(zipped, info)) for info in zipped.infolist() if not info.is_dir()}
    if tarfile.is_tarfile(archive):
        tarred = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 (the stack closes it)
        # Links are left out: a link could point anywhere.
        files = [info for info in tarred.getmembers() if info.isfile()]
        return {info.name.removeprefix("./"): (info.size, _tar_opener(tarred, info)) for info in files}
    raise SourceError(
        f"{archive.name} is neither a zip nor a tar", where="data.source", hint="name a package that holds the file"
    )


def _zip_opener(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> Opener:
    return lambda: zipped.open(info)


def _tar_opener(tarred: tarfile.TarFile, info: tarfile.TarInfo) -> Opener:
    def opener() -> IO[bytes]:
        opened = tarred.extractfile(info)
        assert opened is not None  # a plain file always opens
        return opened

    return opener


def _pack(pattern: str, members: dict[str, tuple[int, Opener]], archive: Path, to: Path) -> None:
    below = {name.partition("/")[2]: name for name in members}
    found = {name: name for name in matching(pattern, members)} or {name: below[name] for name in matching(pattern, below)}
    if not found:
        raise SourceError(
            f"{archive.name} holds nothing like {pattern!r}; {_near(pattern.rpartition('/')[0], list(members))}",
            where="data.source",
            hint="correct the pattern in data.source; `*` stands for any characters",
        )
    _refuse_large(sum(members[name][0] for name in found.values()), pattern)
    pack_files(((shown, members[name][1]) for shown, name in found.items()), to)


def _near(folder: str, names: list[str]) -> str:
    """The folder that was probably meant."""
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
        f"{archive.name} holds no {member!r}; {hint}", where="data.source", hint="correct the path in data.source"
    )


def _refuse_large(size: int, member: str) -> None:
    if size > MEMBER_LIMIT_BYTES:
        raise SourceError(
            f"{member} unpacks to {size} bytes, more than {MEMBER_LIMIT_BYTES >> 30} GiB",
            where="data.source",
            hint="name a smaller file, or fetch it by hand and name its path",
        )
