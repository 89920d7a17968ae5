"""Writes single stages into `dvc.lock`. DVC itself parses and writes the whole file again after each stage, which takes half a
second for three recipes and two for thirteen."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from headrace.files import write_with
from headrace.permissions import tracked_mode

ENTRY = re.compile(r"^  (?=[^\s#-])", re.MULTILINE)
"""Where a stage begins."""
HEAD = re.compile(r"schema: '2\.0'\nstages:\n")
Modify = Callable[..., contextlib.AbstractContextManager[dict[str, Any]]]


@contextlib.contextmanager
def quick_lock_file() -> Iterator[None]:
    """Within the block, what DVC changes in `dvc.lock` is written as DVC would write it; the other stages stay as they are."""
    from dvc import dvcfile

    by_dvc: Modify = dvcfile.modify_yaml

    @contextlib.contextmanager
    def modify(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
        known = _load(Path(path)) if Path(path).name == "dvc.lock" else None
        if known is None:
            with by_dvc(path, fs=fs) as data:
                yield data
            return
        text, before = known
        after = copy.deepcopy(before)
        yield after
        changed = {name: stage for name, stage in after["stages"].items() if before["stages"].get(name) != stage}
        written = _with_stages(text, changed)
        if written is not None and _says(written, after):
            write_with(Path(path), lambda beside: beside.write_text(written, encoding="utf-8"), tracked_mode(Path(path)))
            return
        with by_dvc(path, fs=fs) as data:  # what YAML 1.1 reads in another way, for example the text `yes`
            data["stages"].update(changed)

    dvcfile.modify_yaml = modify
    try:
        yield
    finally:
        dvcfile.modify_yaml = by_dvc


def _load(path: Path) -> tuple[str, dict[str, Any]] | None:
    """The text of the file and what it says; None for one that DVC should read, for example a damaged one."""
    try:
        text = path.read_text(encoding="utf-8")
        data = _parse(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return (text, data) if HEAD.match(text) and isinstance(data, dict) and data.keys() == {"schema", "stages"} else None


def _says(text: str, data: dict[str, Any]) -> bool:
    try:
        return bool(_parse(text) == data)
    except yaml.YAMLError:
        return False


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)


def _with_stages(text: str, changed: dict[str, Any]) -> str | None:
    """The text with other entries for these stages; None where a part of it is not an entry of a stage."""
    head = HEAD.match(text)
    assert head is not None, "as `_load` has seen"
    first, *entries = ENTRY.split(text[head.end() :])
    if first or not text.endswith("\n"):  # cut off in an entry
        return None
    by_name = {entry.partition(":")[0]: entry for entry in entries}
    by_name |= {name: _dumped(name, stage) for name, stage in changed.items()}
    return head[0] + "".join(f"  {entry}" for entry in by_name.values())


def _dumped(name: str, stage: Any) -> str:
    """The entry of a stage, as DVC writes it."""
    from dvc.utils.serialize import dumps_yaml

    stream = io.StringIO(dumps_yaml({"stages": {name: stage}}))
    next(stream)  # `stages:`
    return stream.read()[2:]
