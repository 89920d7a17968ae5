"""Who may read files: what the product writes is for this user alone, and files that git tracks keep the user's umask."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.project import Project

PRIVATE_UMASK = 0o077
USER_UMASK = "HEADRACE_UMASK"
"""Environment variable with the umask that the user had, in octal digits, for the processes that inherit the private one."""
FOR_CONTAINERS = 0o644
"""Mode of a file that a container reads as another user; a folder above it is private."""
DVC_PROTECTED = 0o444
"""DVC's mode of files in its cache; a file with another mode counts as changed. The folders above them are private."""


def set_private_umask() -> None:
    """Makes all that this process writes from now on, and the processes that it starts, readable by this user alone."""
    previous = os.umask(PRIVATE_UMASK)
    os.environ.setdefault(USER_UMASK, f"{previous:03o}")


def tracked_mode(path: Path) -> int | None:
    """The mode for a file that git tracks: that of the existing file, else as the user's umask says.

    Returns:
        None for a new file of a process that still has the user's umask.
    """
    with suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)
    digits = os.environ.get(USER_UMASK, "")
    return 0o666 & ~int(digits, 8) if re.fullmatch("[0-7]{1,4}", digits) else None


@contextmanager
def tracked_files(paths: Iterable[Path]) -> Iterator[None]:
    """Gives those of `paths` that another program, such as DVC, creates meanwhile the mode of files that git tracks."""
    modes = {path: tracked_mode(path) for path in paths if not path.exists()}
    try:
        yield
    finally:
        for path, mode in modes.items():
            if mode is not None:
                with suppress(FileNotFoundError):
                    path.chmod(mode)


def make_private(project: Project) -> None:
    """Corrects the modes of a project that git or an older version made: folders 0700, files without rights for others.

    What containers read and write as another user keeps its mode, below a private folder. Quick where nothing is to be done.

    Raises:
        PermissionError: a folder belongs to another user.
    """
    project.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    dvc = project.root / ".dvc"
    folders = [project.state, project.data, project.mlruns, project.root / "artifacts", dvc / "tmp"]
    if not _is_shared_cache(dvc):
        folders.append(dvc / "cache")
    for folder in folders:
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & PRIVATE_UMASK:
            folder.chmod(0o700)  # first: what is below is closed from here on
            close_to_others(
                folder, {project.token_keys, project.state / "guard", project.usage, project.quotas, project.sockets}
            )


def close_to_others(top: Path, left: AbstractSet[Path] = frozenset()) -> None:
    """Takes the rights of other users from what is below a folder, except below the folders in `left`."""
    for folder, names, files in os.walk(top):
        for name in list(names):
            if Path(folder, name) in left:
                names.remove(name)
                Path(folder, name).chmod(0o755 if name in ("token-keys", "guard") else 0o700)
        for path in (Path(folder, name) for name in [*names, *files]):
            with suppress(FileNotFoundError, PermissionError):  # gone meanwhile, or of another user
                mode = stat.S_IMODE(path.lstat().st_mode)
                if not path.is_symlink() and mode & PRIVATE_UMASK and mode != DVC_PROTECTED:
                    path.chmod(mode & ~PRIVATE_UMASK)


def _is_shared_cache(dvc: Path) -> bool:
    """Whether DVC's configuration shares the cache with a group (`dvc config cache.shared group`)."""
    found = (path.read_text(errors="replace") for name in ("config", "config.local") if (path := dvc / name).is_file())
    return any(re.search(r"^\s*shared\s*=\s*group", text, re.MULTILINE) for text in found)
