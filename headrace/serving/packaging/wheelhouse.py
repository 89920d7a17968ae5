"""Downloads the wheels of the serving image once, with this machine's pip settings, so that images build offline."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.packaging.code_files import REQUIREMENTS

GLIBC = ("2_17", "2_27", "2_28", "2_31", "2_34", "2_36")
"""manylinux tags that Debian 12 can load; `manylinux2014` is 2_17 under its other name."""
STAMP = "requirements.sha256"


def make_wheelhouse(project: Project) -> Path:
    """Downloads the packages of `deploy/serving/requirements-serving.txt` if needed. Returns the folder.

    Raises:
        ServiceError: a package cannot be downloaded.
    """
    if is_current(project.wheelhouse):
        return project.wheelhouse
    beside = project.wheelhouse.with_name(f".{project.wheelhouse.name}-{os.getpid()}.part")
    beside.mkdir(parents=True)
    try:
        _download(beside)
        (beside / STAMP).write_text(_digest(beside) + "\n")
        shutil.rmtree(project.wheelhouse, ignore_errors=True)
        beside.rename(project.wheelhouse)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return project.wheelhouse


def is_current(wheelhouse: Path) -> bool:
    """Whether the folder has the wheels that were downloaded for these requirements. Its stamp is written after all wheels."""
    stamp = wheelhouse / STAMP
    return stamp.is_file() and stamp.read_text().strip() == _digest(wheelhouse)


def _digest(wheelhouse: Path) -> str:
    """A hash of the requirements, this machine's kind, and the name and content of each wheel."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + platform.machine().encode())
    for wheel in sorted(wheelhouse.glob("*.whl")):
        with wheel.open("rb") as file:
            digest.update(f"{wheel.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _download(folder: Path) -> None:
    """Downloads wheels for Python 3.11 on Linux, whichever Python runs this."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    platforms = [f"manylinux_{version}_{machine}" for version in GLIBC] + [f"manylinux2014_{machine}", f"linux_{machine}"]
    arguments = [
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--abi",
        "abi3",
        "--abi",
        "none",
        *[part for name in platforms for part in ("--platform", name)],
        "--dest",
        str(folder),
        "--requirement",
        str(REQUIREMENTS),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([*_pip(Path(scratch)), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(
            f"pip failed to download the serving packages:\n{done.stderr.strip()[-2000:]}",
            where=str(REQUIREMENTS),
            hint="check the network and pip's settings, then run the same command",
        )


def _pip(scratch: Path) -> list[str]:
    """The command of this environment's pip, or of a new one in `scratch`: an environment made by uv has no pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    environment = scratch / "venv"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(environment)], capture_output=True, text=True, check=True)
        return [str(environment / "bin" / "python"), "-m", "pip"]
    except subprocess.CalledProcessError as error:
        raise ServiceError(
            f"pip is missing and cannot be installed: {error.stderr.strip()[-500:]}",
            where=sys.executable,
            hint="install pip in this environment: python -m ensurepip",
        ) from None
