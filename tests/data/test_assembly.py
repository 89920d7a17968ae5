"""From several files to one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data.assembly import assemble
from headrace.data.tables import SelectedTable
from headrace.errors import DataError
from headrace.recipe.data import DataConfig


def landed(folder: Path, **data: Any) -> SelectedTable:
    section = DataConfig.model_validate({"target": "y", **data})
    return assemble([folder / file.uri for file in section.files], section)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("id,Text,y\n1,one,p\n2,two,q\n")
    (tmp_path / "b.csv").write_text("y,id,Text\np,3,three\n")
    return tmp_path


def test_files_of_a_list_come_below_each_other_by_the_names_of_their_columns(two: Path) -> None:
    found = landed(two, source=["b.csv", "a.csv"], rename={"Text": "text"})
    assert found.table.to_pydict() == {"y": ["p", "p", "q"], "id": [3, 1, 2], "text": ["three", "one", "two"]}


def test_parts_come_in_their_order_with_a_column_that_names_them(two: Path) -> None:
    found = landed(two, source={"train": "a.csv", "test": "b.csv"}, columns=["id", "y"])
    assert found.table.to_pydict() == {"id": [1, 2, 3], "y": ["p", "q", "p"], "part": ["train", "train", "test"]}


def test_a_file_with_a_column_part_is_told_to_rename_it(two: Path) -> None:
    (two / "b.csv").write_text("part,y\n1,p\n")
    with pytest.raises(DataError, match="a column 'part', but the file already has one"):
        landed(two, source={"test": "b.csv"})
    assert landed(two, source={"test": "b.csv"}, rename={"part": "piece"}).table.column_names == ["piece", "y", "part"]


def test_a_column_in_some_of_the_files_only_is_refused_unless_nobody_wants_it(two: Path) -> None:
    (two / "b.csv").write_text("id,y\n3,p\n")
    with pytest.raises(DataError, match=r"no column 'Text', which is in a.csv") as caught:
        landed(two, source=["a.csv", "b.csv"])
    assert str(caught.value.where).endswith("b.csv")
    assert landed(two, source=["a.csv", "b.csv"], columns=["id", "y"]).table["id"].to_pylist() == [1, 2, 3]


def test_a_name_to_change_that_is_not_there_offers_the_near_miss(two: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'text' to rename; did you mean 'Text'"):
        landed(two, source="a.csv", rename={"text": "words"})


def test_numbers_in_one_file_and_text_in_the_other_do_not_fit_together(two: Path) -> None:
    (two / "b.csv").write_text("y,id,Text\np,x,three\n")
    with pytest.raises(DataError, match="do not match"):
        landed(two, source=["a.csv", "b.csv"])


def test_labels_that_came_later_are_joined_by_their_key(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "age": [30, 40], "y": [0, 1]}), tmp_path / "early.parquet")
    pq.write_table(pa.table({"id": [4, 3, 5], "age": [50, 60, 70]}), tmp_path / "late.parquet")
    pq.write_table(pa.table({"id": [5, 3, 4, 9], "y": [1, 0, 1, 1]}), tmp_path / "labels.parquet")
    join = {"source": "labels.parquet", "key": "id"}
    found = landed(tmp_path, source=["early.parquet", "late.parquet"], join=join, columns=["age", "y"])
    assert found.table.to_pydict() == {"age": [30, 40, 50, 60, 70], "y": [0, 1, 1, 0, 1]}
    with pytest.raises(DataError, match=r"no column 'idd' to join by; did you mean 'id'"):
        landed(tmp_path, source="late.parquet", join={**join, "key": "idd"})
    pq.write_table(pa.table({"id": [5, 5], "y": [1, 0]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="1 rows repeat a id"):
        landed(tmp_path, source="late.parquet", join=join)


def test_duplicates_count_once_and_texts_with_two_labels_not_at_all(tmp_path: Path) -> None:
    rows = ["a,p", "b,p", "a,p", "c,q", "b,q", ",p", ",p", "a,p"]
    (tmp_path / "t.csv").write_text("text,y\n" + "\n".join(rows) + "\n")
    found = landed(tmp_path, source="t.csv", drop_duplicates=["text"])
    assert found.table.to_pydict() == {"text": ["a", "c", None, None], "y": ["p", "q", "p", "p"]}
    assert found.left_out == (
        "2 rows left out: the same text with more than one y",
        "2 rows left out: the same text as an earlier row",
    )


def test_equal_targets_count_once_where_the_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,y\na,p\nb,p\nc,q\n")
    assert landed(tmp_path, source="t.csv", drop_duplicates=["text", "y"]).table.to_pydict() == {
        "text": ["a", "c"],
        "y": ["p", "q"],
    }
