"""Marks values of a parameter that only `make test-all` runs."""

from __future__ import annotations

from typing import Any

import pytest


def exhaustive(*values: Any) -> Any:
    """The values of one parametrized test, which `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)
