"""Which pictures a source has, and their labels: by their folders, or by a table of paths."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from headrace.data.assembly import read_options
from headrace.data.formats.files import read_file
from headrace.data.pictures.checks import ENDINGS, is_picture
from headrace.data.pictures.containers import Container, Folder, is_archive, open_container
from headrace.data.tables import drop_excluded_rows, select
from headrace.errors import DataError, near_miss
from headrace.recipe.data import PART
from headrace.recipe.pictures import PATH, STORED

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.data import DataConfig

TABLE_ENDINGS = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
"""Tables that are looked for in an archive."""


@dataclass
class Listing:
    """The pictures of one file of a source."""

    container: Container
    rows: pa.Table
    """One row per picture: `path` in the container, the label, and further columns."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Pictures that are not in `rows`, by path, and why."""
    ignored: list[str] = field(default_factory=list)
    """Files that are not pictures."""


def list_pictures(place: Path, data: DataConfig, part: str | None, files: Path | None) -> Listing:
    """Lists the pictures of a folder, an archive or a table, without reading them.

    Args:
        place: the folder, archive or table.
        part: name of the part of the source.
        files: where the pictures of a table are; by default its folder or archive.

    Raises:
        DataError: there are none, or a table has not the recipe's columns.
    """
    assert data.pictures is not None
    found = _by_folder(place, data) if data.pictures.path is None else _by_table(place, data, files)
    if data.parts:
        found.rows = _with_column(found.rows, PART, part)
    return found


def _with_column(rows: pa.Table, name: str, value: str | None) -> pa.Table:
    import pyarrow as pa

    if name in rows.column_names:
        rows = rows.drop_columns([name])
    return rows.append_column(name, pa.repeat(pa.scalar(value, pa.string()), rows.num_rows))


# --- a folder for each class ------------------------------------------------------------------------------------------


def folder_labels(paths: list[str]) -> dict[str, str | None]:
    """Returns the label of each picture: the first folder below those that all pictures share. None for a picture that is in
    no folder of a class."""
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    shared = 0
    if folders:
        first, last = min(folders), max(folders)
        while shared < min(len(first), len(last)) and first[shared] == last[shared]:
            shared += 1
        if all(len(folder) == shared for folder in folders):  # all in one folder, which is then the only class
            shared = max(0, shared - 1)
    return {path: folder[shared] if len(folder) > shared else None for path, folder in zip(paths, folders, strict=True)}


def _by_folder(place: Path, data: DataConfig) -> Listing:
    import pyarrow as pa

    container = open_container(place)
    names = container.names()
    labels = folder_labels([name for name in names if is_picture(name)])
    kept = [name for name, label in labels.items() if label is not None]
    left_out = {name: "in no folder of a class" for name, label in labels.items() if label is None}
    if not kept:
        tables = [name for name in names if name.lower().endswith(TABLE_ENDINGS)]
        beside = f"; it has the table {tables[0]}: name it in data.source, with data.image.path" if tables else ""
        raise DataError(
            f"no folder with pictures ({', '.join(ENDINGS)}) among {len(names):,} files{beside}",
            where=str(place),
            hint="use a folder with a folder of pictures for each class, or a table of paths and labels (data.image.path)",
        )
    rows = pa.table({PATH: pa.array(kept, pa.string()), data.target: pa.array([labels[name] for name in kept], pa.string())})
    return Listing(container, rows, left_out, [name for name in names if name not in labels])


# --- a table of paths -------------------------------------------------------------------------------------------------


def _by_table(place: Path, data: DataConfig, files: Path | None) -> Listing:
    assert data.pictures is not None and data.pictures.path is not None
    table, base = _table_and_base(place, data)
    container = open_container(files) if files is not None else open_container(base)
    table = table.rename_columns([data.rename.get(name, name) for name in table.column_names])
    path = data.rename.get(data.pictures.path, data.pictures.path)
    table = drop_excluded_rows(_selected(table, path, data, place), data, place).table
    wanted = [str(value) if value is not None else "" for value in table[path].to_pylist()]
    resolved = _resolved(wanted, container, "" if files is not None else _folder_in_archive(place, base))
    missing = {asked or "(no path)": "no such file" for asked, name in zip(wanted, resolved, strict=True) if name is None}
    return Listing(container, _with_paths(table, path, resolved), missing)


def _table_and_base(place: Path, data: DataConfig) -> tuple[pa.Table, Path]:
    """Returns the table, and the folder or archive that its paths begin in."""
    if not is_archive(place):
        return read_table(place, data), place.parent
    name = table_in(open_container(place))
    ((_, raw),) = open_container(place).read([name])
    if not isinstance(raw, bytes):
        raise DataError(f"{name}: {raw}", where=str(place), hint="unpack the archive, and name the table in it")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(name).name
        copy.write_bytes(raw)
        return read_table(copy, data), place


def table_in(container: Container) -> str:
    """Returns the path of the only table of paths in an archive, of which those nearest to its root count.

    Raises:
        DataError: there is none, or there are several.
    """
    found: dict[int, list[str]] = defaultdict(list)
    for name in container.names():
        if name.lower().endswith(TABLE_ENDINGS):
            found[name.count("/")].append(name)
    nearest = found[min(found)] if found else []
    if len(nearest) == 1:
        return nearest[0]
    raise DataError(
        f"{len(nearest)} tables in the archive{': ' + ', '.join(nearest[:10]) if nearest else ''}; data.image.path needs one",
        where=str(container.place),
        hint="name the table in data.source and the archive in data.image.files",
    )


def read_table(path: Path, data: DataConfig) -> pa.Table:
    """Reads a table of paths; one that ends in `.json` is an array of objects, whose plain fields are kept.

    Raises:
        DataError: as `read_file`; or it is not an array of objects.
    """
    options = read_options(data)
    if path.suffix.lower() != ".json" or data.format is not None:
        return read_file(path, options if data.columns is None or not data.header else replace(options, names=None))
    import pyarrow as pa

    try:
        objects = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(str(error.strerror), where=str(path), hint="correct data.source") from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(path), hint="use an array of objects, one for each picture") from None
    if not isinstance(objects, list) or not objects or not all(isinstance(one, dict) for one in objects):
        raise DataError("not an array of objects", where=str(path), hint="use an array of objects, one for each picture")
    names = list(dict.fromkeys(name for one in objects for name in one))
    columns = {name: [one.get(name) for one in objects] for name in names}
    columns = {name: _as_json(values) if name in data.label_lists else values for name, values in columns.items()}
    return pa.table({name: _plain_column(values) for name, values in columns.items() if _is_plain(values)})


def _as_json(values: list[Any]) -> list[Any]:
    """Returns lists of labels as they are stored, in JSON; other values as they are."""
    return [json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in values]


def _is_plain(values: list[Any]) -> bool:
    return not any(isinstance(value, list | dict) for value in values)


def _plain_column(values: list[Any]) -> Any:
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array(values, pa.float64())
    return pa.array([None if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values], pa.string())


def _selected(table: pa.Table, path: str, data: DataConfig, place: Path) -> pa.Table:
    """Returns the columns that are stored: path, label, those that divide the rows, and `data.columns`."""
    split = [name for name in data.split.columns if name != PART or not data.parts]
    names = list(dict.fromkeys([path, *data.targets, *split, *data.drop_missing, *(data.columns or [])]))
    if lost := [name for name in data.targets if name not in table.column_names]:
        raise DataError(
            f"no target column {lost[0]!r}; {near_miss(lost[0], table.column_names)}",
            where=str(place),
            hint="correct data.target in the recipe",
        )
    taken = sorted(set(names) & set(STORED) - {path})
    if taken:
        raise DataError(
            f"column {taken[0]!r} has the name of a column that every table of pictures gets",
            where=str(place),
            hint=f"rename it (data.rename: {{{taken[0]}: NAME}}), or leave it out of data.columns",
        )
    return select(table, names, place)


def _folder_in_archive(place: Path, base: Path) -> str:
    """Returns the folder of the table in an archive, which its paths may be relative to."""
    return str(PurePosixPath(table_in(open_container(place))).parent) if base == place and place.is_file() else ""


def _is_file(path: Path) -> bool:
    """Whether there is such a file; also for names that are too long for one."""
    try:
        return path.is_file()
    except OSError:
        return False


def _resolved(wanted: list[str], container: Container, folder: str) -> list[str | None]:
    """Returns the path in the container of each wanted picture, which the table may give relative to the table, from the root,
    without its ending, or as a name that only one picture has."""
    if isinstance(container, Folder) and all(_is_file(container.place / path) for path in wanted[:100] if path):
        return [path if path and _is_file(container.place / path) else None for path in wanted]
    names = container.names()
    known = set(names)
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if is_picture(name):
            for key in (PurePosixPath(name).name, PurePosixPath(name).stem):
                by_name[key].append(name)

    def resolve(path: str) -> str | None:
        plain = path.replace("\\", "/").removeprefix("./")
        for one in (plain, f"{folder}/{plain}" if folder not in ("", ".") else plain):
            for ending in ("", *ENDINGS):
                if one + ending in known:
                    return one + ending
        named = by_name.get(PurePosixPath(plain).name, []) if plain else []
        close = [
            name for name in named if f"/{name}".endswith(f"/{plain}") or f"/{name}".rpartition(".")[0].endswith(f"/{plain}")
        ]
        return next(iter(close or named)) if len(close or named) == 1 else None

    return [resolve(path) if path else None for path in wanted]


def _with_paths(table: pa.Table, path: str, resolved: list[str | None]) -> pa.Table:
    """Replaces the column `path` by the paths in the container, in front, without the rows that have none."""
    import pyarrow as pa

    found = {PATH: pa.chunked_array([pa.array(resolved, pa.string())])}
    found |= {name: table[name] for name in table.column_names if name != path}
    return pa.table(found).filter(pa.array([name is not None for name in resolved]))


def shuffled_order(paths: list[str]) -> list[int]:
    """Returns an order that depends on the paths alone and mixes the classes: training reads blocks of consecutive rows."""
    keys = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in paths]
    return sorted(range(len(paths)), key=lambda i: (keys[i], paths[i]))
