"""Writes a recipe for files in folders: pictures or texts with a folder for each class, a table of pictures, or an archive."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from headrace.data.pictures.checks import is_picture
from headrace.data.pictures.containers import is_archive, open_container
from headrace.errors import DataError, UsageError
from headrace.files import write_text
from headrace.permissions import tracked_mode
from headrace.project import Project
from headrace.recipe.recipe import load_recipe, parse_recipe
from headrace.scaffold.parts import Scaffold
from headrace.scaffold.pictures import picture_recipe
from headrace.scaffold.tables import TABLE_FORMATS
from headrace.scaffold.texts import text_recipe
from headrace.scaffold.write import check_name

ENDINGS_SHOWN = 5


def write_folder_recipe(
    name: str, data: Path, targets: Sequence[str], project: Project, task: str | None = None, model: str | None = None
) -> Scaffold | None:
    """Writes `recipes/<name>.yaml` for a folder, an archive or a table of pictures, or a folder or an archive of texts; None
    for other data.

    Args:
        targets: the columns to predict, or one name for that of the folders; none: to be recognised.
        task: what the user has chosen, for pictures.
        model: what the user has chosen, for a table.

    Raises:
        UsageError: the name is invalid, or the recipe exists; or the files are not ordered in folders of classes.
        DataError: there is nothing to learn from: no files, one class, too few files.
    """
    path = check_name(name, project)
    if is_picture(str(data)):
        raise UsageError(
            "a folder of pictures is needed, not a picture or a pattern",
            where=str(data),
            hint="name the folder that has a folder of pictures for each class, or a table of paths and labels",
        )
    if ":" in str(data) or "*" in str(data):  # an address or a pattern
        return None
    if not data.exists():
        return None
    made = picture_recipe(name, data, targets, task, project) or text_recipe(name, data, targets, project)
    if made is None:
        _require_table(data)
        return None
    if model is not None:
        raise UsageError(
            f"{model} is chosen for tables of numbers and categories, not for pictures or texts",
            where="--model",
            hint="remove --model, and edit the recipe's section `model`",
        )
    lines, text, facts = made
    parse_recipe(text, f"recipes/{name}.yaml")  # an invalid recipe is not written
    write_text(path, text, tracked_mode(path))
    load_recipe(name, project)
    return Scaffold(path, lines, facts)


def _require_table(data: Path) -> None:
    """
    Raises:
        DataError: the folder, or the archive, has neither tables, nor pictures or texts in folders of classes.
    """
    if not data.is_dir() and not is_archive(data):
        return
    names = open_container(data).names()
    tables = [name for name in names if name.lower().endswith(TABLE_FORMATS)]
    if tables if data.is_dir() else zipfile.is_zipfile(data) and len(names) == 1:
        return
    what, hint = "folder", "use a table, or a folder with a folder of pictures or of text files for each class"
    if not data.is_dir():
        what, hint = "archive", "unpack it, and name a table or a folder of it in --data"
    endings = Counter(PurePosixPath(name).suffix or "without an ending" for name in names)
    shown = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(ENDINGS_SHOWN))
    found = f"the {what} has {len(names):,} files ({shown}), but no" if names else f"the {what} is empty: no"
    table = "single table" if tables else "table"
    raise DataError(f"{found} {table}, and no folders of pictures or of texts", where=str(data), hint=hint)
