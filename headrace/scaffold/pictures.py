"""Looks at a sample of a folder, an archive or a table of pictures, and proposes a recipe for them."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from headrace.data.pictures.checks import ENDINGS, MAX_BYTES, MAX_PIXELS, check_picture, is_picture
from headrace.data.pictures.containers import Container, Folder, is_archive, open_container
from headrace.data.pictures.listing import Listing, list_pictures, shuffled_order, table_in
from headrace.errors import DataError, RecipeError, UsageError, near_miss
from headrace.recipe.data import DataConfig
from headrace.recipe.pictures import PATH
from headrace.runtime.images import InvalidImage, PictureFormat, decode_picture
from headrace.scaffold.parts import divided, head_of, label_of_folders, split_line, yaml_text
from headrace.scaffold.picture_targets import PictureTarget, target_of
from headrace.scaffold.recipe_text import read_fields
from headrace.scaffold.sample import Sample as TableSample
from headrace.scaffold.sample import read_sample
from headrace.scaffold.tables import TABLE_FORMATS, source_of
from headrace.scaffold.targets import split_names

if TYPE_CHECKING:
    import pandas as pd

    from headrace.project import Project

SAMPLE = 1_000
"""Pictures that are looked at."""
COLOUR_SAMPLE = 100
"""Pictures that are decoded to see whether they have colours."""
HEAD_BYTES = 2**20
"""How much of a table is read to see whether it names pictures."""
TABLES = (*TABLE_FORMATS, ".json", ".txt")
PLAIN = (".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson")
"""Tables whose bytes show whether they name pictures."""
LABEL_NAMES = ("label", "class", "category", "target", "y", "tag", "species")
TINY = PictureFormat(height=32, width=32, channels=3, fit="resize", interpolation="box", background=128)
MOST_COLOUR = 12
"""Largest difference of two channels that compression may leave in a grey picture."""


@dataclass
class Sample:
    """What a sample of the pictures looks like."""

    looked_at: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each readable picture."""
    formats: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    colourful: int = 0
    decoded: int = 0

    @property
    def channels(self) -> int:
        return 3 if self.colourful else 1


def picture_recipe(
    name: str, data: Path, targets: Sequence[str], task: str | None, project: Project
) -> tuple[list[str], str, dict[str, Any]] | None:
    """Returns lines for the terminal, the recipe, and facts for `--json`; None where the data has no pictures.

    Args:
        targets: the columns to predict, or the name of that with the folders' names; none: to be recognised.
        task: what the user has chosen.

    Raises:
        UsageError, RecipeError: a table needs a target, or has not the one that is named.
        DataError: there is nothing to learn from.
    """
    found = _find(data, targets)
    if found is None:
        return None
    listings, fields, parts, recognised = found
    predicted = target_of(_targets_of(listings, fields["targets"]), fields["targets"], task, data)
    if "path" not in fields and predicted.task != "image-classification":
        raise UsageError(
            f"{predicted.task} needs a table: the folder of a picture is its only label",
            where=str(data),
            hint="name a table with a column of paths, and columns of what is predicted, in --data",
        )
    sample = _sample(listings)
    if not sample.sizes:
        raise DataError(
            f"none of {sample.looked_at:,} pictures can be read:\n{_some_broken(sample.broken)}",
            where=str(data),
            hint="use JPEG, PNG or WebP files",
        )
    left_out = {path: why for one in listings for path, why in one.left_out.items()} | sample.broken
    ignored = [path for one in listings for path in one.ignored]
    size, fit = _size_and_fit(sample)
    text = _text(name, source_of(data, project), fields, parts, predicted, sample, size, fit)
    total = sum(one.rows.num_rows for one in listings)
    widths, heights = zip(*sample.sizes, strict=True)
    lines = [
        *recognised,
        f"{total:,} pictures, {_formats(sample)}, {'in colour' if sample.channels == 3 else 'grey'}, "
        f"{_range(widths)} × {_range(heights)} pixels; brought to {size[1]} × {size[0]} ({fit})",
        *predicted.lines(),
    ]
    if left_out:
        of = f" of {sample.looked_at:,} looked at" if sample.looked_at < total else ""
        lines.append(f"{_counted(len(left_out), 'picture')}{of} left out:\n{_some_broken(left_out)}")
    if ignored:
        names = ", ".join(ignored[:3]) + (", …" if len(ignored) > 3 else "")
        lines.append(f"{_counted(len(ignored), 'other file')} ignored: {names}")
    if parts:
        lines.append("test pictures are those of the folder " + next(k for k, v in parts.items() if v == "test"))
    facts = {
        "pictures": total,
        **predicted.facts(),
        "looked_at": sample.looked_at,
        "formats": dict(sample.formats),
        "channels": sample.channels,
        "width": {"min": min(widths), "median": median(widths), "max": max(widths)},
        "height": {"min": min(heights), "median": median(heights), "max": max(heights)},
        "size": list(size),
        "broken": left_out,
        "ignored": len(ignored),
    }
    return lines, text, facts


Found = tuple[list[Listing], dict[str, Any], dict[str, str] | None, list[str]]
"""Listings, the fields of the recipe that describe the source (`targets`, `path`, `table`, and how the table is read), folders
that are parts, and lines about the table."""


def _targets_of(listings: list[Listing], names: list[str]) -> pd.DataFrame:
    """Returns these columns of all pictures."""
    import pandas as pd

    found: pd.DataFrame = pd.concat([one.rows.select(names).to_pandas() for one in listings], ignore_index=True)
    return found


def _find(data: Path, targets: Sequence[str]) -> Found | None:
    if data.is_dir():
        return _in_folder(data, targets)
    if is_archive(data):
        return _in_archive(data, targets)
    return _in_table(data, targets, None) if data.name.lower().endswith(TABLES) else None


def _in_folder(data: Path, targets: Sequence[str]) -> Found | None:
    names = Folder(data).names()
    pictures = [name for name in names if is_picture(name)]
    if not pictures:
        return None
    if len({name.split("/")[0] for name in pictures if "/" in name}) >= 2 or not _tables(names):
        label = label_of_folders(targets, data)
        listing = list_pictures(data, _config([label]), None, None)
        folders = sorted({path.split("/")[0] for path in listing.rows[PATH].to_pylist()})
        parts = divided(folders)
        if parts is None:
            return [listing], {"targets": [label]}, None, []
        listings = [list_pictures(data / folder, _config([label]), None, None) for folder in folders]
        return listings, {"targets": [label]}, parts, []
    tables = _tables(names)
    if len(tables) > 1:
        raise UsageError(
            f"{len(tables)} tables beside the pictures: {', '.join(tables[:10])}",
            where=str(data),
            hint=f"name the one with the labels: --data {data / tables[0]}",
        )
    return _in_table(data / tables[0], targets, None, tables[0])


def _tables(names: list[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(TABLES) and "/" not in name]


def _in_archive(data: Path, targets: Sequence[str]) -> Found | None:
    container = open_container(data)
    names = container.names()
    if not any(is_picture(name) for name in names):
        return None
    try:
        table = table_in(container)
    except DataError:
        label = label_of_folders(targets, data)
        listing = list_pictures(data, _config([label]), None, None)
        if divided(sorted(set(listing.rows[label].to_pylist()))):
            raise UsageError(
                "the archive is divided into folders for training and testing",
                where=str(data),
                hint="unpack it, and name its folder in --data: then each becomes a part of the source",
            ) from None
        return [listing], {"targets": [label]}, None, []
    ((_, raw),) = container.read([table])
    return _in_table(data, targets, raw if isinstance(raw, bytes) else b"", table)


def _in_table(data: Path, targets: Sequence[str], raw: bytes | None, name: str | None = None) -> Found | None:
    """Reads the head of a table, and finds the column with paths of pictures and those that are predicted."""
    labels = [*targets, *split_names(targets, ())]
    rows, table = _head_rows(data, raw, name or data.name, labels)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    paths = [column for column in columns if _are_paths([row.get(column) for row in rows])]
    if not paths:
        return None
    others = [column for column in columns if column != paths[0]]
    chosen = split_names(targets, columns) or [_label_column(others, rows, data)]
    if lost := [one for one in chosen if one not in columns]:
        raise RecipeError(
            f"unknown column {lost[0]!r}; {near_miss(lost[0], columns)}", where=str(data), hint="name a column: --target COLUMN"
        )
    reading = _reading(table)
    fields = {"targets": chosen, "path": paths[0], "table": name if raw is None else None, "reading": reading}
    recognised = [", ".join([f"{name or data.name}: a table of pictures", *table.recognised])] if table and reading else []
    return [list_pictures(data, _config(chosen, paths[0], reading), None, None)], fields, None, recognised


def _head_rows(data: Path, raw: bytes | None, name: str, labels: list[str]) -> tuple[list[dict[str, Any]], TableSample | None]:
    """Returns rows of a table, none if it does not name pictures, and how it is read; None: as its name says."""
    if name.lower().endswith(".json"):
        return _rows_of_json(data.read_bytes() if raw is None else raw), None
    if name.lower().endswith(PLAIN) and not _names_pictures(data, raw):
        return [], None
    try:
        table = _table_sample(data, raw, name, labels)
    except DataError:
        return [], None  # what is wrong is said when it is read as any other table
    rows = table.table.slice(0, SAMPLE).to_pylist()
    return rows, table


def _rows_of_json(raw: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(raw)
    except ValueError:
        return []
    return [one for one in (found if isinstance(found, list) else [])[:SAMPLE] if isinstance(one, dict)]


def _names_pictures(data: Path, raw: bytes | None) -> bool:
    """Whether the head of a text table, in any encoding, has a name of a picture."""
    if raw is None:
        with data.open("rb") as file:
            raw = file.read(HEAD_BYTES)
    head = raw[:HEAD_BYTES].replace(b"\0", b"").lower()
    return any(ending.encode() in head for ending in ENDINGS)


def _table_sample(data: Path, raw: bytes | None, name: str, labels: list[str]) -> TableSample:
    if raw is None:
        return read_sample(data, {}, labels=labels)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(name).name
        copy.write_bytes(raw)
        return read_sample(copy, {}, labels=labels)


def _reading(table: TableSample | None) -> dict[str, Any]:
    """Returns the fields of `data` that say how the table is read, where it is not as the name of its file says."""
    if table is None:
        return {}
    read = read_fields(table.read) if table.read is not None else {}
    fields: dict[str, Any] = {}
    if not table.header:
        fields["header"] = False
        read["names"] = table.names
    if table.format is not None:
        fields["format"] = table.format
    is_plain = {name: value for name, value in read.items() if value not in (",", "utf-8")} == {}
    return fields if is_plain and not fields else {**fields, "read": read}


def _are_paths(values: list[Any]) -> bool:
    """Whether nearly all values are names of picture files."""
    texts = [value for value in values if isinstance(value, str) and value]
    named = sum(value.lower().endswith(ENDINGS) for value in texts)
    return bool(texts) and named >= 0.9 * len(texts)


def _label_column(columns: list[str], rows: list[dict[str, Any]], data: Path) -> str:
    """Returns the column that is the label by its name, or the only one with few distinct values.

    Raises:
        UsageError: several columns or none could be it.
    """
    named = [column for column in columns if column.lower() in LABEL_NAMES]
    few = [column for column in columns if 2 <= len({str(row.get(column)) for row in rows}) <= max(2, len(rows) // 4)]
    for found in (named, few):
        if len(found) == 1:
            return found[0]
    raise UsageError(
        f"the table has the columns {', '.join(columns) or 'of the paths alone'}; which one is the label?",
        where=str(data),
        hint=f"name it: --target {(few or named or columns or ['COLUMN'])[0]}",
    )


def _config(targets: list[str], path: str | None = None, reading: dict[str, Any] | None = None) -> DataConfig:
    image = {"size": [32, 32], "path": path}
    return DataConfig.model_validate(
        {"source": "-", "target": targets if len(targets) > 1 else targets[0], "image": image, **(reading or {})}
    )


def _sample(listings: list[Listing]) -> Sample:
    sample = Sample()
    for listing in listings:
        paths = listing.rows[PATH].to_pylist()
        chosen = [paths[i] for i in shuffled_order(paths)[: SAMPLE // len(listings)]]
        _look_at(listing.container, chosen, sample)
    return sample


def _look_at(container: Container, paths: list[str], sample: Sample) -> None:
    for path, raw in container.read(list(dict.fromkeys(paths))):
        sample.looked_at += 1
        try:
            if isinstance(raw, InvalidImage):
                raise raw
            sample.sizes.append(check_picture(raw))
            if sample.decoded < COLOUR_SAMPLE:
                pixels = decode_picture(raw, TINY, MAX_PIXELS, MAX_BYTES)[0].astype(int)
                sample.decoded += 1
                sample.colourful += int((pixels.max(axis=2) - pixels.min(axis=2)).max() > MOST_COLOUR)
        except InvalidImage as error:
            sample.broken[path] = str(error)
            continue
        kind = "PNG" if raw[:1] == b"\x89" else "JPEG" if raw[:1] == b"\xff" else "WebP"
        sample.formats[kind] += 1


def _size_and_fit(sample: Sample) -> tuple[tuple[int, int], str]:
    """Proposes a small size, which trains in minutes on a CPU, and a fit: pictures of one shape are only scaled."""
    if len(set(sample.sizes)) == 1 and max(sample.sizes[0]) <= 64:
        width, height = sample.sizes[0]
        return (height, width), "resize"
    side = 32 if median(min(size) for size in sample.sizes) <= 40 else 64
    shapes = sorted(width / height for width, height in sample.sizes)
    low, *_, high = quantiles(shapes, n=20) if len(shapes) > 1 else [shapes[0]] * 2
    if high / low < 1.1:
        return (side, side), "resize"
    return (side, side), "crop" if high / low < 2.5 else "pad"


def _text(
    name: str,
    source: str,
    fields: dict[str, Any],
    parts: dict[str, str] | None,
    predicted: PictureTarget,
    sample: Sample,
    size: tuple[int, int],
    fit: str,
) -> str:
    total = len(predicted.frame)
    image: dict[str, Any] = {"size": list(size), "channels": sample.channels, "fit": fit}
    if fields.get("path"):
        image["path"] = fields["path"]
    if fields.get("table") and not source.endswith(str(fields["table"])):
        source = f"{source}/{fields['table']}"
    lines = head_of(name, predicted.task, f"{total:,} pictures {predicted.summary}")
    lines.append("data:")
    if parts is None:
        lines.append(f"  source: {yaml_text(source)}")
    else:
        lines += ["  source:", *(f"    {part}: {yaml_text(f'{source}/{folder}')}" for folder, part in parts.items())]
    lines += [
        *(f"  {name}: {yaml_text(value)}" for name, value in (fields.get("reading") or {}).items()),
        *predicted.data_lines(),
        f"  image: {yaml_text(image)}   # height and width; larger ones take longer to train, and may do better",
        split_line(parts),
        *predicted.expect_lines(),
        *_model_and_training(total, size, predicted.is_numbers),
        *predicted.gate_lines(),
        "serve: {replicas: 2}",
        "",
    ]
    return "\n".join(lines)


def _model_and_training(pictures: int, size: tuple[int, int], is_numbers: bool) -> list[str]:
    """Returns the sections `model` and `train`, for some minutes on a CPU."""
    batch = next(batch for batch in (16, 32, 64, 128) if pictures < 100 * batch or batch == 128)
    epochs = max(3, min(40, 60_000 // max(1, pictures)))
    model = "{name: cnn, channels: [16, 32, 64], convolutions: 2, batch_norm: true, pooling: average}"
    if max(size) > 32:
        model = "{name: resnet, width: 16, depth: 1, stages: 3, stem: large}"
    augment = "{shift: 0.05, crop: 0.15, brightness: 0.2, contrast: 0.2}   # and flip: horizontal, if sides do not matter"
    if is_numbers:  # a number may be a place or a size in the picture
        augment = "{brightness: 0.2, contrast: 0.2}   # and shift, crop and flip, if the numbers do not depend on the place"
    return [
        f"model: {model}",
        "train:",
        f"  epochs: {epochs}",
        f"  batch_size: {batch}",
        "  learning_rate: 0.005",
        "  early_stopping: {patience: 8}",
        f"  augment: {augment}",
    ]


def _formats(sample: Sample) -> str:
    return ", ".join(kind for kind, _ in sample.formats.most_common())


def _range(values: tuple[int, ...]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def _some_broken(broken: dict[str, str]) -> str:
    """Returns a line for each of the first ten, and the number of the others."""
    paths = sorted(broken)
    lines = [f"  {path}: {broken[path]}" for path in paths[:10]]
    return "\n".join([*lines, *([f"  and {len(paths) - 10:,} more"] if len(paths) > 10 else [])])


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
