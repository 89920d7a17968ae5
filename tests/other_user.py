"""Runs a function as another user of this machine, in a child process."""

from __future__ import annotations

import encodings.idna  # noqa: F401 (the other user may not be able to read the library)
import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

import pytest

NOBODY = 65534
T = TypeVar("T")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def as_other_user(function: Callable[[], T]) -> T:
    """Returns what `function` returns as the user `nobody`; it may use what this process has imported."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            result: tuple[bool, object] = (True, function())
        except BaseException:
            result = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as out:
            pickle.dump(result, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        succeeded, value = pickle.load(answer)
    os.waitpid(child, 0)
    assert succeeded, value
    return value  # type: ignore[no-any-return]
