"""Where backups are kept: a file of this machine, or an object store by fsspec (`s3://…`, `gs://…`, `file://…`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

from headrace.data.sources.addresses import redacted
from headrace.errors import HeadraceError, ServiceError, UsageError
from headrace.files import atomic_write, is_disk_full

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

PACKAGES = {
    "s3": "headrace[s3]",
    "gs": "headrace[gcs]",
    "gcs": "headrace[gcs]",
    "az": "headrace[azure]",
    "abfs": "headrace[azure]",
}
"""What to install for a protocol of fsspec."""


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file, readable by this user only, that appears at `path` once it is complete.

    Raises:
        UsageError: there is a file of this name already.
        DiskFull: no space is left; no partial file stays.
    """
    if path.exists():
        raise UsageError("the file exists", where=str(path), hint="choose another name; a backup replaces no file")
    if not path.parent.is_dir():
        raise UsageError("the folder does not exist", where=str(path.parent), hint=f"mkdir -p '{path.parent}'")
    with atomic_write(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # the file may exist from a killed process
            yield file


@contextmanager
def new_object(url: str) -> Iterator[BinaryIO]:
    """Yields a new object of an object store, which appears once it is complete.

    Raises:
        UsageError: the protocol is unknown or its package is not installed, or there is an object of this name already.
        ServiceError: the store does not take it.
    """
    storage = _file_system(url)
    with _errors(url):
        if storage.exists(url):
            raise UsageError("the object exists", where=redacted(url), hint="choose another name; a backup replaces no object")
        with storage.transaction, storage.open(url, "wb") as stream:
            yield cast("BinaryIO", stream)


@contextmanager
def existing(source: str) -> Iterator[BinaryIO]:
    """Yields a backup to read, by its path or its address.

    Raises:
        UsageError: there is none.
        ServiceError: the store does not respond.
    """
    missing = UsageError(
        "no such backup", where=redacted(source), hint="name a file or an address that a backup was written to"
    )
    if not is_address(source):
        try:
            file = Path(source).open("rb")  # noqa: SIM115 (closed below)
        except (FileNotFoundError, IsADirectoryError):
            raise missing from None
        with file:
            yield file
        return
    storage = _file_system(source)
    with _errors(source):
        if not storage.exists(source):
            raise missing
        with storage.open(source, "rb") as stream:
            yield cast("BinaryIO", stream)


def is_address(name: str) -> bool:
    """Whether a name is an address of an object store instead of a path."""
    return "://" in name


def _file_system(url: str) -> AbstractFileSystem:
    import fsspec

    protocol = urlsplit(url).scheme
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(protocol)
        hint = f"pip install '{package}'" if package else "s3://BUCKET/NAME, or another protocol of fsspec"
        raise UsageError(f"{protocol}:// cannot be used: {error}", where=redacted(url), hint=hint) from None


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turns errors of a store, of each library's own kinds, into one that names the address."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        if is_disk_full(error) or not _is_of_store(error):
            raise
        raise ServiceError(
            f"the object store failed: {str(error) or type(error).__name__}",
            where=redacted(url),
            hint="check the address, the network and the credentials (for s3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3)",
        ) from None


def _is_of_store(error: Any) -> bool:
    if isinstance(error, OSError):
        return error.filename is None  # else it is about a file of the project
    return type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp", "fsspec")
