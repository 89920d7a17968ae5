"""Exit codes of training workers, and the files in which they report errors to their launcher."""

from __future__ import annotations

import signal
from pathlib import Path

ROLE = "training"
FAILED, PEER_LOST, INTERRUPTED = 1, 75, 128 + signal.SIGTERM
"""Exit codes of a worker: the training failed and would fail again; another process was lost; SIGTERM, which the agent sends
to the processes that are left when one has died."""


def error_file(folder: Path) -> Path:
    """Returns the file in which a worker saves an error that the user can fix."""
    return folder / "error.json"


def log_file(folder: Path, rank: int) -> Path:
    """Returns the file in which a worker saves the traceback of any other error."""
    return folder / f"process-{rank + 1}.log"
