"""Proposes a recipe for a folder, or an archive, with a folder of text files for each class."""

from __future__ import annotations

import codecs
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.pictures.containers import Container, is_archive, open_container
from headrace.data.pictures.listing import folder_labels, shuffled_order
from headrace.errors import UsageError
from headrace.scaffold.encodings import recognised_encoding
from headrace.scaffold.parts import (
    class_lines,
    divided,
    gate_of,
    head_of,
    label_of_folders,
    labels_expectation,
    require_classes,
    split_line,
    yaml_text,
)
from headrace.scaffold.tables import TABLE_FORMATS, source_of

if TYPE_CHECKING:
    from headrace.project import Project

ENDINGS = (".txt", ".text", ".md")
OTHER_FILES = (*TABLE_FORMATS, ".json", ".xml", ".yaml", ".yml", ".py", ".pdf", ".docx", ".doc")
"""Files that are not texts of their own, or whose text a recipe cannot read."""
SAMPLE = 500
"""Texts that are looked at."""
SAMPLE_BYTES = 2**16
"""How much of each text is read."""
FALLBACKS = ("cp1252", "latin-1")
"""For texts in several encodings; the last one reads everything."""
RECOGNISED = 20
"""Texts that are not UTF-8 of which the encoding is recognised."""
LONGEST = 256
"""Most tokens that a proposed recipe reads of a text."""


def text_recipe(
    name: str, data: Path, targets: Sequence[str], project: Project
) -> tuple[list[str], str, dict[str, Any]] | None:
    """Returns lines for the terminal, the recipe, and facts for `--json`; None where the data is not a folder of texts,
    and no archive of one.

    Raises:
        UsageError: an archive has other files too, or texts are in folders below those of the classes.
        DataError: there is nothing to learn from.
    """
    if not data.is_dir() and not is_archive(data):
        return None
    files = open_container(data)
    paths = _texts_in(files)
    if not paths:
        return None
    if not data.is_dir():
        _require_texts_only(files, paths, data)
    labels = folder_labels(paths)
    parts = divided(sorted({str(label) for label in labels.values()}))
    if parts is not None and not data.is_dir():
        raise UsageError(
            "the archive is divided into folders for training and testing",
            where=str(data),
            hint="unpack it, and name its folder in --data: then each becomes a part of the source",
        )
    if parts is not None:
        for folder in parts:
            below = [path for path in paths if path.startswith(f"{folder}/")]
            labels |= {
                f"{folder}/{k}": v for k, v in folder_labels([path.removeprefix(f"{folder}/") for path in below]).items()
            }
    _require_one_level(labels, data)
    classes = Counter(label for label in labels.values() if label is not None)
    require_classes(classes, "texts", data)
    endings = Counter(Path(path).suffix for path in paths)
    ending = endings.most_common(1)[0][0] if paths[0].lower().endswith(ENDINGS) else _shared(endings)
    encoding, words = _looked_at(files, paths)
    label, source = label_of_folders(targets, data), source_of(data, project)
    text = _text(
        name,
        _pattern(source, ending, parts) if data.is_dir() else [f"source: {yaml_text(source)}"],
        ["format: texts", *([f"encoding: {encoding}"] if encoding != "utf-8" else []), f"folder: {yaml_text(label)}"],
        ["text", label],
        classes,
        words,
        parts,
        f"{len(paths):,} texts of {len(classes):,} classes",
    )
    lines = [f"{len(paths):,} texts, {encoding}, about {words:.0f} words each", *class_lines(classes)]
    others = {other: count for other, count in endings.items() if ending and other != ending}
    if others and data.is_dir():
        lines.append(f"{sum(others.values()):,} files that do not end in {ending} are left out: {', '.join(sorted(others))}")
    facts = {"texts": len(paths), "classes": dict(classes.most_common()), "encoding": encoding, "words": round(words, 1)}
    return lines, text, facts


def _pattern(source: str, ending: str, parts: dict[str, str] | None) -> list[str]:
    if parts is None:
        return [f"source: {yaml_text(f'{source}/*/*{ending}')}"]
    return ["source:", *(f"  {part}: {yaml_text(f'{source}/{folder}/*/*{ending}')}" for folder, part in parts.items())]


def _texts_in(files: Container) -> list[str]:
    """Returns the text files in folders: those whose names end as texts do; if there is none, all files that hold text."""
    names = [name for name in files.names() if "/" in name]
    texts = [name for name in names if name.lower().endswith(ENDINGS)]
    if texts or not names or any(name.lower().endswith(OTHER_FILES) for name in names):
        return texts
    chosen = [names[i] for i in shuffled_order(names)[:SAMPLE]]
    return names if all(isinstance(raw, bytes) and _is_text(raw[:SAMPLE_BYTES]) for _, raw in files.read(chosen)) else []


def _is_text(raw: bytes) -> bool:
    return b"\0" not in raw or raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _require_texts_only(files: Container, paths: list[str], data: Path) -> None:
    """
    Raises:
        UsageError: the archive has other files too, which the recipe would read.
    """
    others = sorted(set(files.names()) - set(paths))
    if others:
        raise UsageError(
            f"the archive has other files beside the texts ({len(others):,}), such as {others[0]}",
            where=str(data),
            hint="unpack it, and name its folder in --data",
        )


def _require_one_level(labels: dict[str, str | None], data: Path) -> None:
    """
    Raises:
        UsageError: a text is in a folder below that of its class, where the recipe would take another folder for the class.
    """
    deeper = [path for path, label in labels.items() if label is not None and Path(path).parent.name != label]
    if deeper:
        raise UsageError(
            f"{len(deeper):,} texts are in folders below those of the classes, such as {deeper[0]}",
            where=str(data),
            hint="move them up into the folder of their class, or name the folder whose folders are the classes in --data",
        )


def _shared(endings: Counter[str]) -> str:
    return next(iter(endings)) if len(endings) == 1 else ""


def _looked_at(files: Container, paths: list[str]) -> tuple[str, float]:
    """Returns the encoding of a sample of the texts, and the mean of their words."""
    chosen = [paths[i] for i in shuffled_order(paths)[:SAMPLE]]
    raws = [raw[:SAMPLE_BYTES] for _, raw in files.read(chosen) if isinstance(raw, bytes)]
    encoding = _encoding(raws)
    words = [len(raw.decode(encoding, errors="replace").split()) for raw in raws]
    return encoding, sum(words) / max(1, len(words))


def _encoding(raws: list[bytes]) -> str:
    """Returns the encoding that all texts can be read in."""
    others = [raw for raw in raws if b"\0" in raw or not _is(raw, "utf-8")]
    if not others:
        return "utf-8"
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for raw in others[:RECOGNISED]:
            (place := Path(folder) / "text").write_bytes(raw)
            found[recognised_encoding(place)] += 1
    known = [name for name, _ in found.most_common() if name != "utf-8"]
    return next(name for name in [*known, *FALLBACKS] if all(_is(raw, name) for raw in raws))


def _is(raw: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(
            raw, final=len(raw) < SAMPLE_BYTES
        )  # else its last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def _text(
    name: str,
    source: list[str],
    options: list[str],
    columns: list[str],
    classes: Counter[Any],
    words: float,
    parts: dict[str, str] | None,
    found: str,
) -> str:
    text, target = columns
    total = sum(classes.values())
    tokens = {"column": text, "tokens": "words", "vocabulary": 10000, "length": max(16, min(LONGEST, 2 * round(words)))}
    batch = next(batch for batch in (16, 32, 64) if total < 100 * batch or batch == 64)
    return "\n".join(
        [
            *head_of(name, "text-classification", found),
            "data:",
            *(f"  {line}" for line in [*source, *options]),
            f"  target: {yaml_text(target)}",
            f"  text: {yaml_text(tokens)}",
            split_line(parts),
            *labels_expectation(target, classes),
            "model: {name: recurrent, embedding: 64, hidden: 48, dropout: 0.4}",
            f"train: {{epochs: {max(3, min(20, 40_000 // total))}, batch_size: {batch}, learning_rate: 0.004, "
            "early_stopping: {patience: 3}}",
            *gate_of(classes),
            "serve: {replicas: 2}",
            "",
        ]
    )
