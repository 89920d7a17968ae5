"""Free memory of this machine, or of the container that limits it. Light."""

from __future__ import annotations

from pathlib import Path

GROUP = Path("/sys/fs/cgroup")


def free_memory(group: Path = GROUP) -> int:
    """Returns the bytes of memory that the machine and the container still have for this process.

    Args:
        group: folder of the control group that limits the container.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control groups, or no limit (`max`)
        return free
    return max(0, min(free, most - used))
