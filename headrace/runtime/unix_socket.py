"""Unix sockets of servers: in folders that only this user can enter, so that no other user can connect or take their place.

Uses the standard library alone: bentos of earlier versions, which lack this file, are served with it too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")
"""Open folders as paths, on Linux."""
ADDRESS_BYTES = 100
"""The address of a Unix socket has at most 104 to 108 bytes."""


def bind(path: Path, in_container: bool = False) -> socket.socket:
    """Returns a socket with the address `path` that does not listen yet; one that a killed server left there is replaced.

    Args:
        in_container: the folder is closed to other users outside of the container, where another user's id connects.

    Raises:
        OSError: other users own the folder or can enter it, another server listens there, or the socket cannot be made.
    """
    if not in_container:
        _prepare_folder(path.parent)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as address:
            _remove_unused(path, address)
            bound.bind(address)
        path.chmod(0o666 if in_container else 0o600)  # nobody can connect before it listens
    except BaseException:
        bound.close()
        raise
    return bound


def _prepare_folder(folder: Path) -> None:
    """Makes the folder again where something has removed it.

    Raises:
        PermissionError: this user does not own it, or others can enter it.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        reason = "is a link or a file"
    elif found.st_uid != os.getuid():
        reason = f"belongs to user {found.st_uid}, and this is user {os.getuid()}"
    elif found.st_mode & 0o077:
        reason = f"has mode {stat.S_IMODE(found.st_mode):o}, which lets other users in; expected 700"
    else:
        return
    raise PermissionError(f"cannot listen in the folder {folder}: it {reason}; move it away")


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Yields a path to the same socket that fits into the address of a Unix socket."""
    if len(os.fsencode(path)) < ADDRESS_BYTES:
        yield str(path)
    elif DESCRIPTORS.is_dir():
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"{DESCRIPTORS}/{folder}/{path.name}"
        finally:
            os.close(folder)
    else:
        with tempfile.TemporaryDirectory() as private:
            (Path(private) / "run").symlink_to(path.parent)
            yield f"{private}/run/{path.name}"


def _remove_unused(path: Path, address: str) -> None:
    """
    Raises:
        FileExistsError: a server listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)  # a server whose queue is full is one too
        try:
            client.connect(address)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise FileExistsError(f"cannot listen on {path}: another server listens there")
