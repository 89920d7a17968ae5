"""Fetches files from web servers and object stores."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from headrace.data.sources.addresses import redacted
from headrace.errors import SourceError, SourceUnreachable

Progress = Callable[[int, int | None], None]

CONNECT_SECONDS = 20.0
READ_SECONDS = 60.0
"""Longest time without any bytes from a server."""
CHUNK_BYTES = 1 << 20


def from_http(uri: str, sha256: str | None, to: Path, progress: Progress) -> None:
    import httpx

    host = urlsplit(uri).hostname or ""
    if uri.startswith("http:") and sha256 is None and host not in ("localhost", "127.0.0.1", "::1"):
        raise SourceError(
            f"{redacted(uri)} is not encrypted, so its sha256 has to be known",
            where="data.source",
            hint="use https://, or give data.sha256",
        )
    try:
        with (
            httpx.stream(
                "GET",
                uri,
                headers={"accept-encoding": "identity"},  # the sha256 is of the uncompressed file
                follow_redirects=True,
                timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            ) as reply,
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


def from_s3(uri: str, to: Path, progress: Progress) -> None:
    try:
        import fsspec
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise SourceError("s3:// needs the package s3fs", where="data.source", hint="install headrace[s3]") from None
    try:
        # Credentials and endpoint come from the environment (AWS_...), as for any S3 client.
        storage = fsspec.filesystem(
            "s3",
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS},
        )
        total = int(storage.size(uri))
        with storage.open(uri, "rb", block_size=8 * CHUNK_BYTES) as remote, to.open("wb") as file:
            while chunk := remote.read(CHUNK_BYTES):
                file.write(chunk)
                progress(file.tell(), total)
    except FileNotFoundError:
        raise SourceError(
            f"{redacted(uri)} does not exist", where="data.source", hint="correct data.source in the recipe"
        ) from None
    except (OSError, BotoCoreError, ClientError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SourceUnreachable(
            f"{redacted(uri)} cannot be fetched: {str(error) or type(error).__name__}",
            where="data.source",
            hint="check the address and the credentials (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3)",
        ) from None
