"""Addresses of sources: their schemes, the paths of local ones, and how they are displayed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.data.sources.archives import is_pattern, matching
from headrace.errors import SourceError, near_miss

OBJECT_STORES = ("s3", "gs", "az", "abfs")
DATABASES = ("postgresql", "postgres", "mysql", "mariadb", "sqlite")
SCHEMES = ("pypi", "npm", "https", "http", "file", *OBJECT_STORES, *DATABASES)


def scheme_of(uri: str) -> str:
    """Returns the scheme of `uri`, or an empty text for a path.

    Raises:
        SourceError: an unknown scheme.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if found is None:
        return ""
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        raise SourceError(
            f"unknown source {scheme}://; {near_miss(scheme, SCHEMES)}",
            where="data.source",
            hint="use a path, or pypi://, npm://, https://, s3://, gs://, az://, postgresql://, mysql:// or sqlite:///",
        )
    return scheme


def with_lower_scheme(uri: str) -> str:
    """Returns the address with its scheme in lower case: upper case means the same, but not to every client.

    Raises:
        SourceError: an unknown scheme.
    """
    scheme = scheme_of(uri)
    return scheme + uri[len(scheme) :]


def redacted(uri: str) -> str:
    """Returns the address for messages and logs: without a password, and without a query, which may contain a signature."""
    if "://" not in uri or uri.lower().startswith(("pypi://", "npm://")):  # here `@` and `==` precede a version
        return uri
    until = "[^?]*" if uri.lower().startswith(tuple(f"{scheme}://" for scheme in DATABASES)) else "[^/?]*"
    return re.sub(f"(?<=://){until}@", "", uri, count=1).partition("?")[0]


def file_name(uri: str) -> str:
    """Returns a safe file name for `uri`, with the extension of its format."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(urlsplit(uri).path).rsplit("/", 1)[-1]) or "file"
    return f"{name}.zip" if is_pattern(uri) else name


def is_local(uri: str) -> bool:
    return scheme_of(uri) in ("", "file")


def local_file(uri: str, project_root: Path) -> Path:
    """Returns the path of a local source, whether it exists or not."""
    return project_root / (unquote(urlsplit(uri).path) if scheme_of(uri) else Path(uri).expanduser())


def local_files(uri: str, project_root: Path) -> list[Path]:
    """Returns the files of a local source: the one at its path, or all that match its pattern, sorted."""
    path = local_file(uri, project_root)
    if not is_pattern(str(path)):
        return [path]
    folder = Path(f"{str(path).partition('*')[0]}*").parent
    return [Path(name) for name in matching(str(path), (str(p) for p in folder.rglob("*") if p.is_file()))]
