"""How the gate's benchmark writes down what it measured: shares with intervals, tables, hardware."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = Sequence[str]


def section(title: str, prose: str, header: Row, rows: Iterable[Row]) -> str:
    """A heading, a paragraph and a table."""
    return f"## {title}\n\n{textwrap.fill(' '.join(prose.split()), 124)}\n\n{markdown(header, rows)}"


def rate(happened: NDArray[np.bool_]) -> str:
    """A share with its 95 % Clopper-Pearson interval, for independent trials."""
    from scipy.stats import binomtest

    interval = binomtest(int(happened.sum()), len(happened)).proportion_ci(0.95, method="exact")
    return f"{100 * happened.mean():.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def plain(happened: NDArray[np.bool_]) -> str:
    return f"{100 * happened.mean():.1f} %"


def markdown(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hardware() -> str:
    """This machine and the versions that matter, in words."""
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
