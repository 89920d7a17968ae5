"""`python -m headrace.serving.packaging`: downloads the wheels of the serving image into `wheelhouse/`."""

from __future__ import annotations

import sys

from headrace.errors import HeadraceError
from headrace.project import find_project
from headrace.serving.packaging.wheelhouse import make_wheelhouse

try:
    print(make_wheelhouse(find_project()))  # noqa: T201 (output of a command)
except HeadraceError as error:
    sys.exit(str(error))
