"""Fetches files from web servers and object stores."""

from __future__ import annotations

import errno
import importlib
import ssl
from collections.abc import Callable
from pathlib import Path

from headrace.data.sources.addresses import redacted
from headrace.errors import SourceError, SourceUnreachable

Progress = Callable[[int, int | None], None]

CONNECT_SECONDS = 20.0
READ_SECONDS = 60.0
"""Longest time without any bytes from a server."""
CHUNK_BYTES = 1 << 20


def from_http(
    uri: str,
    sha256: str | None,
    to: Path,
    progress: Progress,
    verify: ssl.SSLContext | bool = True,
    proxy: str | None = None,
    allow_plain: bool = False,
) -> None:
    """Downloads `uri` to the file `to`.

    Args:
        sha256: what the caller compares the file with; without one, every address up to the last redirect has to be encrypted.
        verify: how certificates are verified.
        proxy: address of a proxy; by default the environment's.
        allow_plain: whether addresses may be without encryption.

    Raises:
        SourceError: the server refuses, or an address is not encrypted.
        SourceUnreachable: the server does not answer.
    """
    import httpx

    def require_encryption(request: httpx.Request) -> None:
        if request.url.scheme == "http" and sha256 is None and not allow_plain and not is_loopback_host(request.url.host):
            came = (
                f"{redacted(uri)} redirects to {redacted(str(request.url))}, which"
                if str(request.url) != uri
                else redacted(uri)
            )
            raise SourceError(
                f"{came} is not encrypted, so its sha256 has to be known",
                where="data.source",
                hint="use https://, or give data.sha256",
            )

    try:
        with (
            httpx.Client(
                headers={"accept-encoding": "identity"},  # the sha256 is of the uncompressed file
                follow_redirects=True,
                timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
                event_hooks={"request": [require_encryption]},  # also called for each redirect
                verify=verify,
                proxy=proxy,
            ) as client,
            client.stream("GET", uri) as reply,
            to.open("wb") as file,
        ):
            reply.raise_for_status()
            total = int(reply.headers["content-length"]) if "content-length" in reply.headers else None
            for chunk in reply.iter_raw(CHUNK_BYTES):
                file.write(chunk)
                progress(file.tell(), total)
            if total is not None and file.tell() != total:
                raise SourceUnreachable(
                    f"{redacted(uri)} ended after {file.tell()} of {total} bytes",
                    where="data.source",
                    hint="run the command again",
                )
    except httpx.HTTPStatusError as error:
        error_class = (
            SourceUnreachable if error.response.status_code in (408, 429) or error.response.status_code >= 500 else SourceError
        )
        raise error_class(
            f"{redacted(uri)} returned {error.response.status_code} {error.response.reason_phrase}",
            where="data.source",
            hint="correct data.source in the recipe, or ask for access",
        ) from None
    except httpx.InvalidURL as error:
        raise SourceError(
            f"{redacted(uri)} is not a valid address: {error}", where="data.source", hint="correct data.source"
        ) from None
    except httpx.HTTPError as error:
        raise SourceUnreachable(
            f"{redacted(uri)} cannot be fetched: {error or type(error).__name__}",
            where="data.source",
            hint="check the address and the network, then run the command again",
        ) from None


def is_loopback_host(host: str) -> bool:
    """Whether an address with this host stays on this machine."""
    return host in ("localhost", "127.0.0.1", "::1")


STORES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure"), "abfs": ("adlfs", "azure")}
"""The package of an object store, and the extra of Headrace that installs it."""
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}


def from_object_store(uri: str, to: Path, progress: Progress) -> None:
    """Downloads an object of S3, Google Cloud Storage or Azure to the file `to`. Credentials come from the environment.

    Raises:
        SourceError: the package for the store is missing, or the object does not exist.
        SourceUnreachable: the store refuses, or does not answer.
    """
    scheme = uri.partition("://")[0].lower()
    package, extra = STORES[scheme]
    try:
        import fsspec

        importlib.import_module(package)
        refusals = _refusals(scheme)
    except ImportError:
        raise SourceError(
            f"{scheme}:// needs the package {package}", where="data.source", hint=f"pip install 'headrace[{extra}]'"
        ) from None
    timeouts = {"config_kwargs": {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}} if scheme == "s3" else {}
    try:
        # Credentials and endpoint come from the environment, as for any client of the store.
        storage = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **timeouts)
        total = int(storage.size(uri))
        with storage.open(uri, "rb", block_size=8 * CHUNK_BYTES) as remote, to.open("wb") as file:
            while chunk := remote.read(CHUNK_BYTES):
                file.write(chunk)
                progress(file.tell(), total)
    except FileNotFoundError:
        raise SourceError(
            f"{redacted(uri)} does not exist", where="data.source", hint="correct data.source in the recipe"
        ) from None
    except refusals as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SourceUnreachable(
            f"{redacted(uri)} cannot be fetched: {str(error) or type(error).__name__}",
            where="data.source",
            hint=f"check the address and the credentials ({CREDENTIALS[scheme]})",
        ) from None


def _refusals(scheme: str) -> tuple[type[Exception], ...]:
    """Returns the errors of a store's client, which are not all of one class."""
    if scheme == "s3":
        from botocore.exceptions import BotoCoreError, ClientError

        return (OSError, BotoCoreError, ClientError)
    return (Exception,)
