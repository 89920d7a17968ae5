"""Several files are assembled into one table."""

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


def assembled(folder: Path, **data: Any) -> SelectedTable:
    section = DataConfig.model_validate({"target": "y", **data})
    return assemble([folder / file.uri for file in section.files], section)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("id,Text,y\n1,one,p\n2,two,q\n")
    (tmp_path / "b.csv").write_text("y,id,Text\np,3,three\n")
    return tmp_path


def test_files_of_a_list_are_concatenated_by_column_names(two: Path) -> None:
    found = assembled(two, source=["b.csv", "a.csv"], rename={"Text": "text"})
    assert found.table.to_pydict() == {"y": ["p", "p", "q"], "id": [3, 1, 2], "text": ["three", "one", "two"]}


def test_parts_are_in_order_with_a_column_of_their_names(two: Path) -> None:
    found = assembled(two, source={"train": "a.csv", "test": "b.csv"}, columns=["id", "y"])
    assert found.table.to_pydict() == {"id": [1, 2, 3], "y": ["p", "q", "p"], "part": ["train", "train", "test"]}


def test_a_file_with_a_column_part_is_refused_with_a_rename_as_hint(two: Path) -> None:
    (two / "b.csv").write_text("part,y\n1,p\n")
    with pytest.raises(DataError, match="a column 'part', but the file already has one"):
        assembled(two, source={"test": "b.csv"})
    assert assembled(two, source={"test": "b.csv"}, rename={"part": "piece"}).table.column_names == ["piece", "y", "part"]


def test_a_column_in_only_some_files_is_refused_unless_it_is_unused(two: Path) -> None:
    (two / "b.csv").write_text("id,y\n3,p\n")
    with pytest.raises(DataError, match=r"no column 'Text', which is in a.csv") as caught:
        assembled(two, source=["a.csv", "b.csv"])
    assert str(caught.value.where).endswith("b.csv")
    assert assembled(two, source=["a.csv", "b.csv"], columns=["id", "y"]).table["id"].to_pylist() == [1, 2, 3]


def test_a_missing_column_to_rename_suggests_a_close_match(two: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'text' to rename; did you mean 'Text'"):
        assembled(two, source="a.csv", rename={"text": "words"})


@pytest.mark.parametrize("field", ["parse", "times"])
def test_a_rule_for_an_unknown_column_is_refused(tmp_path: Path, field: str) -> None:
    (tmp_path / "t.csv").write_text("price,y\n1,p\n2,q\n")
    with pytest.raises(DataError, match="no column 'prise'; did you mean 'price'"):
        assembled(tmp_path, source="t.csv", **{field: {"prise": {}}})


def test_numbers_in_one_file_and_text_in_the_other_do_not_match(two: Path) -> None:
    (two / "b.csv").write_text("y,id,Text\np,x,three\n")
    with pytest.raises(DataError, match="do not match"):
        assembled(two, source=["a.csv", "b.csv"])


def test_a_refusal_does_not_show_the_password_of_an_address(two: Path) -> None:
    (two / "b.csv").write_text("id,Text,y\nthree,x,p\n")
    uris = ["https://example.org/a.csv?signature=s3cret", "https://example.org/b.csv?signature=s3cret"]
    section = DataConfig.model_validate({"target": "y", "source": uris})
    with pytest.raises(DataError) as caught:
        assemble([two / "a.csv", two / "b.csv"], section)
    assert "example.org" in str(caught.value) and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["https://ann:s3cret@example.org/a.csv", "postgresql://ann:s3/cret@db/shop", "mysql://db/shop?password=s3cret"]
)
def test_a_recipe_takes_no_password(address: str) -> None:
    with pytest.raises(ValueError, match="a password does not belong in a recipe"):
        DataConfig.model_validate({"target": "y", "source": address})


def test_labels_from_another_file_are_joined_by_their_key(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "age": [30, 40], "y": [0, 1]}), tmp_path / "early.parquet")
    pq.write_table(pa.table({"id": [4, 3, 5], "age": [50, 60, 70]}), tmp_path / "late.parquet")
    pq.write_table(pa.table({"id": [5, 3, 4, 9], "y": [1, 0, 1, 1]}), tmp_path / "labels.parquet")
    join = {"source": "labels.parquet", "key": "id"}
    found = assembled(tmp_path, source=["early.parquet", "late.parquet"], join=join, columns=["age", "y"])
    assert found.table.to_pydict() == {"age": [30, 40, 50, 60, 70], "y": [0, 1, 1, 0, 1]}
    with pytest.raises(DataError, match=r"no column 'idd' to join by; did you mean 'id'"):
        assembled(tmp_path, source="late.parquet", join={**join, "key": "idd"})
    pq.write_table(pa.table({"id": [5, 5], "y": [1, 0]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="1 rows repeat a id"):
        assembled(tmp_path, source="late.parquet", join=join)


def test_duplicates_are_kept_once_and_texts_with_two_labels_are_dropped(tmp_path: Path) -> None:
    rows = ["a,p", "b,p", "a,p", "c,q", "b,q", ",p", ",p", "a,p"]
    (tmp_path / "t.csv").write_text("text,y\n" + "\n".join(rows) + "\n")
    found = assembled(tmp_path, source="t.csv", drop_duplicates=["text"])
    assert found.table.to_pydict() == {"text": ["a", "c", None, None], "y": ["p", "q", "p", "p"]}
    assert found.left_out == (
        "2 rows left out: the same text with more than one y",
        "2 rows left out: the same text as an earlier row",
    )


def test_equal_targets_are_kept_once_if_the_recipe_drops_duplicates(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,y\na,p\nb,p\nc,q\n")
    assert assembled(tmp_path, source="t.csv", drop_duplicates=["text", "y"]).table.to_pydict() == {
        "text": ["a", "c"],
        "y": ["p", "q"],
    }
