"""Loads a version as a replica does, with the code of its custom class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError
from headrace.installation import add_bentos_to_import_path
from headrace.plugins import add_to_import_path

if TYPE_CHECKING:
    from bentos.models.served_model import ServedModel


def load_model(folder: Path, root: Path, code: Path | None) -> ServedModel:
    """Returns the model in `folder`, which has predicted its sample.

    Args:
        root: the project; it has the module of a custom class, unless `code` is given.
        code: the folder of the code in the version's bento.

    Raises:
        HeadraceError: its class cannot be imported, or its files do not fit together.
    """
    add_bentos_to_import_path()
    from bentos.models.onnx_model import NotServable, load

    if code is None:
        add_to_import_path(root)
    else:
        sys.path.insert(0, str(code))  # headrace and bentos are imported already, and stay those of this Headrace
    try:
        return load(folder)
    except NotServable as error:
        raise HeadraceError(str(error), where=str(folder), hint="headrace history shows other versions") from None
    finally:
        if code is not None:
            sys.path.remove(str(code))
