"""Markdown for the benchmark pages: wrapped text, tables, shares with intervals, and the hardware."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = Sequence[str]
LINE_CHARACTERS = 120


def section(title: str, prose: str, header: Row, rows: Iterable[Row]) -> str:
    """Returns a heading, a paragraph and a table."""
    return f"## {title}\n\n{wrap(prose)}\n\n{markdown(header, rows)}"


def wrap(text: str) -> str:
    """Returns the paragraphs of `text`, with lines of at most 120 characters."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))
    return "\n\n".join(textwrap.fill(paragraph, LINE_CHARACTERS, break_on_hyphens=False) for paragraph in paragraphs)


def rate(happened: NDArray[np.bool_]) -> str:
    """Returns a share with its 95 % Clopper-Pearson interval; the trials have to be independent."""
    from scipy.stats import binomtest

    interval = binomtest(int(happened.sum()), len(happened)).proportion_ci(0.95, method="exact")
    return f"{100 * happened.mean():.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def percent(happened: NDArray[np.bool_]) -> str:
    """Returns a share without an interval."""
    return f"{100 * happened.mean():.1f} %"


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """Returns a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hardware() -> str:
    """Returns the CPU, the operating system and the versions of the numerical libraries, for a sentence."""
    import scipy
    import sklearn
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    return (
        f"{os.cpu_count()} cores ({cpu}), {platform.system()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}"
    )
