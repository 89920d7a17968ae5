"""`dvc.lock` is written as DVC writes it, byte for byte."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc import dvcfile
from dvc.utils.serialize import modify_yaml

from headrace.pipeline.lock_file import quick_lock_file
from tests.paths import ROOT

LOCKED = (ROOT / "dvc.lock").read_text()
NAME = next(line.strip().removesuffix(":") for line in LOCKED.splitlines() if line.strip().startswith("train@"))
Change = Callable[[dict[str, Any]], object]


def another_hash(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data["stages"][NAME])
    changed["deps"][0]["md5"] = "f" * 32
    data["stages"].update({NAME: changed})


def other_parameters(data: dict[str, Any]) -> None:
    values = {"sha256": "a" * 64, "empty": {}, "list": [1, 2.5, None, True, "a: b", "word " * 30], "none": []}
    data["stages"].update({NAME: {**data["stages"][NAME], "params": {"recipes/x.yaml": {"data": values}}}})


def a_text_that_is_no_text_in_older_yaml(data: dict[str, Any]) -> None:
    data["stages"].update({NAME: {**data["stages"][NAME], "params": {"recipes/x.yaml": {"positive": "yes"}}}})


def a_new_stage(data: dict[str, Any]) -> None:
    data["stages"].update({"train@new": copy.deepcopy(data["stages"][NAME])})


def written(path: Path, modify: Any, change: Change, content: str | None) -> str:
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_text(content)
    with modify(str(path)) as data:
        if not data:
            data.update({"schema": "2.0"})
        data["stages"] = data.get("stages", {}) or {NAME: {"cmd": "true", "deps": [{"path": "a", "md5": "b"}]}}
        change(data)
    return path.read_text()


@pytest.mark.parametrize("change", [dict, another_hash, other_parameters, a_text_that_is_no_text_in_older_yaml, a_new_stage])
@pytest.mark.parametrize(
    "content",
    [
        LOCKED,
        None,
        LOCKED.replace("stages:\n", "# by hand\nstages:\n", 1),
        LOCKED.rstrip("\n"),
        LOCKED.replace("schema: '2.0'", "datasets: []\nschema: '2.0'"),
    ],
    ids=["written by DVC", "no file", "with a comment", "without a last newline", "with data sets"],
)
def test_the_bytes_are_those_of_dvc(change: Change, content: str | None, tmp_path: Path) -> None:
    by_dvc = written(tmp_path / "dvc" / "dvc.lock", modify_yaml, change, content)
    with quick_lock_file():
        ours = written(tmp_path / "ours" / "dvc.lock", dvcfile.modify_yaml, change, content)
    assert ours == by_dvc
    assert dvcfile.modify_yaml is modify_yaml, "only within the block"


def test_texts_of_other_stages_stay_what_they_are(tmp_path: Path) -> None:
    """Where DVC has to write the file: a text `yes` of another stage does not become true."""
    content = written(tmp_path / "dvc" / "dvc.lock", modify_yaml, a_text_that_is_no_text_in_older_yaml, LOCKED)

    def change(data: dict[str, Any]) -> None:
        data["stages"].update({"a@b": {"cmd": "true", "params": {"recipes/x.yaml": {"negative": "no"}}}})

    with quick_lock_file():
        ours = written(tmp_path / "ours" / "dvc.lock", dvcfile.modify_yaml, change, content)
    assert ours == written(tmp_path / "dvc" / "dvc.lock", modify_yaml, change, content)
    assert "positive: yes\n" in ours
