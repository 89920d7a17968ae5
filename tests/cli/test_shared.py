"""Errors of the machine that a command meets: one line with a hint instead of a traceback."""

from __future__ import annotations

import errno
import json
import os

import pytest

from headrace.cli.shared import report_error


@pytest.mark.parametrize(
    ("number", "message", "hint", "exit_code"),
    [
        (errno.EROFS, "the file system is read-only", "mount it writable, then run the same command", 1),
        (errno.EIO, "the disk cannot be read or written", "check the disk", 1),
        (errno.EMFILE, "too many open files in this process", "ulimit -n", 1),
        (errno.ENFILE, "too many open files on this machine", "end other programs", 1),
        (errno.ENOSPC, "no space left", "free some space", 7),
        (errno.EACCES, "permission denied", "grant this user write access to a.lock", 1),
    ],
)
def test_an_error_of_the_machine_has_its_file_and_a_hint(
    number: int, message: str, hint: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, os.strerror(number), "a.lock")
    assert report_error(error, as_json=False) == exit_code
    printed = capsys.readouterr().err
    assert f"error a.lock: {message}" in printed and hint in " ".join(printed.split())
    assert report_error(error, as_json=True) == exit_code
    assert json.loads(capsys.readouterr().out)["where"] == "a.lock"


def test_any_other_error_of_a_system_call_is_a_bug_and_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        report_error(OSError(errno.EBADF, os.strerror(errno.EBADF)), as_json=False)
