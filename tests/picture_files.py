"""Small pictures in files, in folders, archives and tables, for tests."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def noisy(colour: tuple[int, int, int], height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pixels `(height, width, 3)` around one colour."""
    noise = np.random.default_rng(seed).integers(-30, 30, (height, width, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def file_of(pixels: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(held, kind, **options)
    return held.getvalue()


def class_folders(root: Path, each: int = 6, seed: int = 0) -> list[str]:
    """Writes `each` pictures of every colour, of mixed sizes and formats, into a folder for each class; returns their paths."""
    rng, found = np.random.default_rng(seed), []
    for name, colour in COLOURS.items():
        for i in range(each):
            kind = list(KINDS)[i % 3]
            height, width = rng.integers(12, 40, 2)
            path = f"{name}/{i}.{KINDS[kind]}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(file_of(noisy(colour, height, width, seed * 1000 + i), kind))
            found.append(path)
    return sorted(found)


def packed(root: Path, to: Path, below: str = "") -> Path:
    """Packs a folder into a zip, or a tar compressed as its name says, below another folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = [f"{below}{path.relative_to(root).as_posix()}" for path in files]
    if to.suffix == ".zip":
        with zipfile.ZipFile(to, "w") as archive:
            for path, name in zip(files, names, strict=True):
                archive.write(path, name)
    else:
        with tarfile.open(to, "w:gz" if to.name.endswith("gz") else "w") as tar:
            for path, name in zip(files, names, strict=True):
                tar.add(path, name)
    return to
