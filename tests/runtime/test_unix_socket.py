"""Sockets of servers are only where no other user can enter, and never take the place of one that is in use."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from headrace.runtime.unix_socket import bind, short_path
from tests.other_user import NOBODY, needs_root


def is_refused(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, short_path(path) as address:
        try:
            client.connect(address)
        except ConnectionRefusedError:
            return True
        return False


@pytest.mark.parametrize("name", ["sockets", "x" * 120], ids=["short", "long"])
def test_a_socket_of_a_killed_server_is_replaced_and_one_in_use_is_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "server.sock"
    bind(path).close()
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    with bind(path) as bound:
        assert is_refused(path), "it does not listen yet"
        bound.listen()
        assert not is_refused(path)
        with pytest.raises(FileExistsError, match="another server listens there"):
            bind(path)
        assert not is_refused(path)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777, 0o1777])
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PermissionError, match=f"has mode {mode:o}, which lets other users in; expected 700"):
        bind(folder / "server.sock")
    assert list(folder.iterdir()) == []


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "sockets").symlink_to("elsewhere")
    with pytest.raises(PermissionError, match="is a link or a file"):
        bind(tmp_path / "sockets" / "server.sock")


@needs_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"belongs to user {NOBODY}"):
        bind(folder / "server.sock")
