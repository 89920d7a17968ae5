"""A table in chunks gives the same rows, schema, weights and metrics in every stage as one in memory."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data import chunks as chunks_module
from headrace.data.chunks import Chunks, RowGroupWriter, open_chunks, read_head, stored_chunks
from headrace.errors import DataError, DiskFull
from headrace.files import atomic_write
from headrace.models.schema import Schema
from headrace.pipeline.prepare import prepare
from headrace.plugins import load_class
from headrace.project import Project
from headrace.recipe.task_types import TASK_TYPES, task_type_entry
from headrace.task_types.base import TaskType
from headrace.task_types.tabular import TabularClassification

SMALL = "4kB"
ROWS = 900


def table(rows: int = ROWS, seed: int = 1) -> pd.DataFrame:
    """Numbers with gaps, whole numbers with gaps late in the table, categories, months, a class and a value."""
    rng = np.random.default_rng(seed)
    far, whole = 1e6 + rng.normal(0, 5, rows), rng.integers(0, 50, rows).astype(float)
    whole[rows - 3 :] = np.nan
    near = np.where(rng.random(rows) < 0.05, np.nan, rng.normal(0, 1, rows))
    colour = rng.choice(["red", "green", "blue", None], rows, p=[0.5, 0.3, 0.15, 0.05])
    return pd.DataFrame(
        {
            "far": far,
            "near": near,
            "whole": pd.array(whole, dtype="Int64"),
            "colour": colour,
            "code": rng.integers(0, 4, rows),
            "month": 1 + 3 * np.arange(rows) // rows,
            "label": np.where(np.nan_to_num(near) + (colour == "red") > 0.3, "yes", "no"),
            "y": 100 + 3 * np.nan_to_num(near) + rng.normal(0, 0.1, rows),
        }
    )


def write_batches(project: Project, *batches: pd.DataFrame, name: str = "toy") -> None:
    """Writes batches to data/ in row groups of 100 rows."""
    folder = project.raw_data(name)
    folder.mkdir(parents=True, exist_ok=True)
    for i, batch in enumerate(batches):
        pq.write_table(pa.Table.from_pandas(batch), folder / f"{i:04d}-b.parquet", row_group_size=100)


def test_chunks_have_the_same_rows_and_types_as_the_whole_table(project: Project, make_recipe: Any) -> None:
    write_batches(project, table(300), table(300, seed=2).assign(code=lambda t: t["code"] + 0.5))
    recipe = make_recipe(memory=SMALL)
    found = stored_chunks(project, recipe)
    assert found is not None and found.rows == 600 and found.size < 10
    frames = list(found.frames())
    from headrace.data.tables import read_batches

    whole = read_batches(project, recipe)
    assert max(map(len, frames)) == found.size and len(frames) >= 600 / found.size
    pd.testing.assert_frame_equal(pd.concat(frames), whole, check_index_type=False)
    assert all((frame.dtypes == whole.dtypes).all() for frame in frames)


def test_small_tables_and_task_types_that_need_all_rows_are_not_read_in_chunks(project: Project, make_recipe: Any) -> None:
    write_batches(project, table())
    assert stored_chunks(project, make_recipe()) is None
    assert stored_chunks(project, make_recipe(memory="1GB")) is None
    assert stored_chunks(project, make_recipe(memory=SMALL)) is not None
    images = make_recipe(task="image-classification", image=[2, 2], memory=SMALL)
    assert stored_chunks(project, images) is None


@pytest.mark.parametrize("task", TASK_TYPES)
def test_a_task_type_reads_chunks_exactly_when_it_has_a_learner(task: str, make_recipe: Any) -> None:
    implementation = load_class(TASK_TYPES[task].implements)
    assert TASK_TYPES[task].reads_chunks is implementation.reads_chunks
    assert implementation.reads_chunks is (implementation.learner is not TaskType.learner)


def test_a_custom_task_type_with_a_learner_reads_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("custom_chunks")
    module.Whole = type("Whole", (TabularClassification,), {"metrics": {"a": "higher"}, "learner": TaskType.learner})
    module.Chunked = type("Chunked", (TabularClassification,), {"metrics": {"a": "higher"}})
    monkeypatch.setitem(sys.modules, "custom_chunks", module)
    assert task_type_entry("custom_chunks:Chunked").reads_chunks
    assert not task_type_entry("custom_chunks:Whole").reads_chunks


def test_the_bytes_of_a_file_do_not_depend_on_the_chunks(tmp_path: Path) -> None:
    rows = pa.Table.from_pandas(table(500), preserve_index=False)
    for name, sizes in (("one", [500]), ("many", [1, 99, 250, 150]), ("even", [100] * 5)):
        writer, start = RowGroupWriter(tmp_path / name, rows.schema, 128), 0
        for size in sizes:
            writer.add(rows.slice(start, size))
            start += size
        writer.close({"key": "k"})
        assert writer.written == 500
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes() == (tmp_path / "even").read_bytes()
    file = pq.ParquetFile(tmp_path / "one")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [128, 128, 128, 116]
    assert len(read_head(tmp_path / "one", 10)) == 10


SPLITS: dict[str, dict[str, Any]] = {
    "random": {"test": 0.2, "validation": 0.2},
    "time": {"time": {"column": "month"}, "validation": 0.2},
    "predefined": {"predefined": {"column": "code", "test": 3}, "validation": 0.2},
    "group": {"group": {"column": "person"}, "test": 0.3, "validation": 0.3},
}
OFTEN = {("classification", "group"), ("regression", "time")}


@pytest.mark.parametrize(
    ("task", "split"),
    [
        pytest.param(task, split, id=f"{task}, {name}", marks=() if (task, name) in OFTEN else pytest.mark.exhaustive)
        for task in ("classification", "regression")
        for name, split in SPLITS.items()
    ],
)
def test_preparing_in_chunks_equals_preparing_the_whole_table(
    project: Project, make_recipe: Any, task: str, split: Any
) -> None:
    write_batches(
        project, table().assign(person="p" + (table()["whole"].fillna(7)).astype("str")), table(300, seed=5).assign(person="q")
    )
    columns = {"target": "label" if task == "classification" else "y", "categorical": ["colour", "code"], "split": split}
    found = {}
    for memory in ("1GB", SMALL):
        prepare(make_recipe(task=task, memory=memory, **columns), project)
        out = project.artifacts("toy") / "prepared"
        found[memory] = (
            [pd.read_parquet(out / f"{part}.parquet") for part in ("train", "validation", "test")],
            Schema.read(out / "schema.json"),
            json.loads((out / "rows.json").read_text()),
        )
    (whole, schema, rows), (pieces, learned, counted) = found.values()
    assert counted == rows and sum(rows.values()) == 1200
    for ours, theirs in zip(pieces, whole, strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
    for mine, wanted in zip(learned.numeric, schema.numeric, strict=True):
        assert (mine.mean, mine.std) == pytest.approx((wanted.mean, wanted.std), rel=1e-9)
        assert mine.model_copy(update={"mean": wanted.mean, "std": wanted.std}) == wanted
    rest = {"numeric": [], "target_mean": 0.0, "target_std": 0.0}
    assert learned.model_copy(update=rest) == schema.model_copy(update=rest)
    assert (learned.target_mean, learned.target_std) == pytest.approx((schema.target_mean, schema.target_std), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        ({"near": np.inf}, {}, r"1 training rows are infinite or too large, for example inf"),
        ({"label": "same"}, {}, "only one class"),
        ({"month": 1}, {"split": {"time": {"column": "month"}}}, "has one value only"),
        ({}, {"split": {"predefined": {"column": "label", "test": "yess"}}}, "no row has label 'yess'; did you mean 'yes'"),
        ({}, {"split": {"per_class": {"train": 5, "validation": 9, "test": 9}}}, "raise data.memory"),
        ({"colour": None}, {}, "no training row has a value here"),
    ],
)
def test_errors_in_chunks_equal_those_of_a_whole_table_and_change_nothing(
    project: Project, make_recipe: Any, change: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    frame = table(300)
    for column, value in change.items():
        if column == "near":
            frame.loc[[100, 101, 102, 103], column] = value  # one of them is a training row in every split
        else:
            frame[column] = value
    write_batches(project, frame.astype({"colour": "str"} if "colour" in change else {}))
    out = project.artifacts("toy") / "prepared"
    out.mkdir(parents=True)
    (out / "schema.json").write_text("before")
    (out / ".train.parquet.1.part").write_text("of a run that was killed")
    with pytest.raises(DataError) as raised:
        prepare(make_recipe(task="classification", target="label", memory=SMALL, **fields), project)
    assert re.search(message.replace("1 training rows", r"\d+ training rows"), str(raised.value)), str(raised.value)
    if "near" in change:
        assert "rows 10" in str(raised.value) or "rows 9" in str(raised.value)
    assert [path.name for path in out.iterdir()] == ["schema.json"] and (out / "schema.json").read_text() == "before"


def test_a_damaged_batch_is_reported_with_its_row(project: Project, make_recipe: Any) -> None:
    write_batches(project, table(300))
    path = project.raw_data("toy") / "0000-b.parquet"
    end = pq.read_metadata(path)
    at = end.row_group(1).column(0).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="not a complete Parquet file") as raised:
        prepare(make_recipe(memory=SMALL), project)
    assert "after row 100" in str(raised.value)
    path.write_bytes(bytes(raw[:-500]))
    with pytest.raises(DataError, match="truncated"):
        prepare(make_recipe(memory=SMALL), project)


def test_a_chunk_takes_no_more_bytes_than_allowed(project: Project, make_recipe: Any) -> None:
    write_batches(project, table())
    data = make_recipe(memory="16kB").data
    found = open_chunks(sorted(project.raw_data("toy").iterdir()), data)
    assert isinstance(found, Chunks)
    sizes = [piece.nbytes for piece in found.tables()]
    assert max(sizes) <= 16_000 / chunks_module.CHUNK_FRACTION * 1.3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no file that is always full")
def test_a_full_disk_raises_disk_full(tmp_path: Path) -> None:
    rows = pa.Table.from_pandas(table(500), preserve_index=False)
    with (
        pytest.raises(DiskFull, match=r"no space left to write part\.parquet"),
        atomic_write(tmp_path / "part.parquet") as beside,
    ):
        beside.symlink_to("/dev/full")
        writer = RowGroupWriter(beside, rows.schema, 128)
        try:
            writer.add(rows)
            writer.close()
        except OSError:
            writer.discard()
            raise
    assert list(tmp_path.iterdir()) == []
