"""`python -m headrace.packaging`: fetches the wheels of the serving image into `wheelhouse/`, and says where they are."""

from __future__ import annotations

import sys

from headrace.errors import HeadraceError
from headrace.packaging.wheelhouse import make_wheelhouse
from headrace.project import find_project

try:
    print(make_wheelhouse(find_project()))  # noqa: T201 (a command's answer)
except HeadraceError as error:
    sys.exit(str(error))
