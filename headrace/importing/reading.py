"""Reads a model's file in a process of its own before this one does: a damaged file can end the process of the library."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from headrace.importing.errors import damaged

READ = """
import sys
from headrace.errors import first_line
try:
    {}
except Exception as error:
    print(first_line(error))
    sys.exit(1)
"""
PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""The time and the line of its source with which XGBoost's messages begin."""
READERS = {
    "xgboost": "import xgboost; xgboost.Booster().load_model(sys.argv[1])",
    "lightgbm": "import lightgbm; lightgbm.Booster(model_file=sys.argv[1])",
}


def require_readable(path: Path, library: str, shown: str) -> None:
    """Refuses a file that `library` cannot read, and one that ends its process: XGBoost 3 copies from beyond the end of a
    truncated `.ubj`, and whether that is an error or a segmentation fault depends on what lies there in memory.

    Raises:
        ImportRefused: with the library's message, or the signal.
    """
    command = [sys.executable, "-P", "-c", READ.format(READERS[library]), str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        raise damaged(shown, f"{library} was ended by {signal.Signals(-done.returncode).name} while it read the file")
    if done.returncode:
        said = done.stdout.strip().rpartition("\n")[2]
        raise damaged(shown, PLACE.sub("", said) or f"{library} could not be started")
