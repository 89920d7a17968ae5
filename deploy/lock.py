"""Writes the lock files from what `uv pip compile --universal --generate-hashes` resolved: `python deploy/lock.py RESOLVED`
(`make lock`).

One lock is for all of `PYTHONS`: a package that only some of them need has a marker. What no Linux needs is left out.

On Linux, torch's default build needs CUDA's packages and a CPU build does not. So they are in a file of their own, and torch
has the hashes of both: those of the default build from the index, those of CPU builds from the wheels in PIP_FIND_LINKS, and
those that the lock had for the same version.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parent.parent
LOCK, CUDA = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
SERVING = ROOT / "deploy" / "serving" / "requirements-serving.txt"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
OF_CUDA = re.compile(r"(nvidia|cuda)-|triton$")
NOT_OF_CUDA = {"nvidia-ml-py"}
"""bentoml needs it on every machine."""


@dataclass(frozen=True)
class Pin:
    """A package with its version, and the sha256 of each of its files."""

    name: str
    version: str
    marker: str = ""
    hashes: frozenset[str] = frozenset()

    def __str__(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join(
            [f"{self.name}=={self.version}{marker}", *(f"--hash=sha256:{one}" for one in sorted(self.hashes))]
        )


def read(text: str) -> dict[str, Pin]:
    """The pins of a requirements file, by name."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        parts = re.fullmatch(r"([\w.-]+)==([^\s;+]+)(?:\+\w+)?\s*(?:;\s*(.*?))?\s*((?:--hash=sha256:[0-9a-f]{64}\s*)*)", line)
        if parts is not None:
            name, version, marker, hashes = parts.groups()
            found[name] = Pin(name, version, marker or "", frozenset(re.findall("[0-9a-f]{64}", hashes)))
    return found


def simplified(pin: Pin) -> Pin | None:
    """The pin without a marker that is true on every machine that Headrace supports; None where it is true on none."""
    if not pin.marker:
        return pin
    marker = Marker(pin.marker)
    found = {
        marker.evaluate(
            {
                "python_version": python,
                "python_full_version": f"{python}.{patch}",
                "platform_machine": machine,
                "sys_platform": "linux",
                "platform_system": "Linux",
                "os_name": "posix",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }
        )
        for python in PYTHONS
        for patch in (0, 20)
        for machine in MACHINES
    }
    if found == {True}:
        return Pin(pin.name, pin.version, "", pin.hashes)
    return pin if True in found else None


def write(pins: Iterable[Pin], comment: str = "") -> str:
    """A requirements file."""
    return comment + "".join(f"{pin}\n" for pin in sorted(pins, key=lambda pin: pin.name))


def split(resolved: dict[str, Pin], before: dict[str, Pin], cpu_hashes: Iterable[str]) -> tuple[list[Pin], list[Pin]]:
    """The packages of every machine, and those that only torch's CUDA build needs.

    Args:
        before: the lock that is replaced.
        cpu_hashes: sha256 of wheels of CPU builds.
    """
    cuda = [pin for name, pin in resolved.items() if OF_CUDA.match(name) and name not in NOT_OF_CUDA]
    torch, earlier = resolved["torch"], before.get("torch")
    kept = earlier.hashes if earlier is not None and earlier.version == torch.version else frozenset()
    torch = Pin(torch.name, torch.version, torch.marker, torch.hashes | kept | frozenset(cpu_hashes))
    return [torch, *(pin for pin in resolved.values() if pin not in cuda and pin.name != "torch")], cuda


def with_hashes(serving: str, lock: dict[str, Pin]) -> str:
    """The serving requirements with the versions and hashes of the lock; their comments and their choice of packages stay. They
    have no markers: pip would evaluate one for the Python that fetches the wheels, not for that of the image."""
    comment = "".join(f"{line}\n" for line in serving.splitlines() if line.startswith("#"))
    return write((replace(lock[name], marker="") for name in read(serving)), comment)


def wheels(version: str) -> list[str]:
    """The sha256 of torch's wheels of this version in the folder PIP_FIND_LINKS."""
    folder = Path(os.environ.get("PIP_FIND_LINKS") or "/nonexistent")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(f"torch-{version}[+-]*.whl"))]


def main(resolved: Path) -> None:
    pins = map(simplified, read(resolved.read_text(encoding="utf-8")).values())
    found = {pin.name: pin for pin in pins if pin is not None}
    lock, cuda = split(found, read(LOCK.read_text(encoding="utf-8")), wheels(found["torch"].version))
    LOCK.write_text(write(lock), encoding="utf-8")
    CUDA.write_text(write(cuda), encoding="utf-8")
    SERVING.write_text(with_hashes(SERVING.read_text(encoding="utf-8"), {pin.name: pin for pin in lock}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
