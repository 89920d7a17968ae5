"""Where the files of Headrace are: in a clone of the repository, or in site-packages, where its wheel was installed.

The wheel has one package at its top, `headrace`. What else a project needs from the repository is in the wheel's folder
`headrace/_bundled` (deploy/wheel.py puts it there): `code/bentos`, which is importable once `add_to_import_path` was called,
and `repository/`, with `dvc.yaml`, `flows/`, `tasks/` and `deploy/serving/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_BUNDLED = PACKAGE / "_bundled"
IS_WHEEL = _BUNDLED.is_dir()
"""Whether this Headrace was installed from its wheel."""
CODE = _BUNDLED / "code" if IS_WHEEL else PACKAGE.parent
"""The folder that holds `bentos`."""
REPOSITORY = _BUNDLED / "repository" if IS_WHEEL else PACKAGE.parent
"""The folder that holds the other files of the repository."""


def path_of(name: str) -> Path:
    """Returns where a file or folder of the repository is, for example `headrace/models`, `bentos` or `deploy/serving`."""
    top = name.partition("/")[0]
    if top == "headrace":
        return PACKAGE.parent / name
    return (CODE if top == "bentos" else REPOSITORY) / name


def add_bentos_to_import_path() -> None:
    """Makes `bentos` importable in this process, before the modules of a project."""
    if IS_WHEEL and str(CODE) not in sys.path:
        sys.path.append(str(CODE))
