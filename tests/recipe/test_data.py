"""The section `data` of a recipe: accepted forms and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.recipe.data import DataConfig, SourceFile

ONE, TWO = "1" * 64, "2" * 64


def section(**fields: Any) -> DataConfig:
    return DataConfig.model_validate({"source": "a.csv", "target": "y", **fields})


def test_files_of_every_form_come_in_order_with_part_role_and_sha256() -> None:
    assert section(sha256=ONE).files == [SourceFile("a.csv", ONE)]
    assert section(source=["a.csv", "b.csv"], sha256=[ONE, TWO]).files == [SourceFile("a.csv", ONE), SourceFile("b.csv", TWO)]
    assert section(source={"train": ["a", "b"], "test": "c"}).files == [
        SourceFile("a", None, "train"),
        SourceFile("b", None, "train"),
        SourceFile("c", None, "test"),
    ]
    pair = {"images": "i", "labels": "l"}
    assert section(source=pair).files == [SourceFile("i", None, None, "images"), SourceFile("l", None, None, "labels")]
    assert section(source={"test": pair}, sha256={"test": {"images": ONE, "labels": TWO}}).files == [
        SourceFile("i", ONE, "test", "images"),
        SourceFile("l", TWO, "test", "labels"),
    ]
    more = section(join={"source": "j", "key": "id"}, graph={"node": "id", "edges": "e", "sha256": ONE}).files
    assert more[1:] == [SourceFile("j", None, None, "join"), SourceFile("e", ONE, None, "edges")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": ["a", 7]}, "1: expected an address (a path or a URI), a list of them, or a mapping of parts; got 7"),
        ({"source": []}, "expected an address"),
        ({"source": {"train": {"more": {"deep": "a"}}}}, "train.more.deep: nested too deeply"),
        ({"source": {"images": "i", "lables": "l"}}, "images and labels have to be given together; did you mean 'labels'"),
        ({"sha256": "abc"}, "64 characters"),
        ({"source": ["a", "b"], "sha256": ONE}, "the same form"),
        ({"source": {"train": "a", "test": "b"}, "sha256": {"train": ONE, "tset": TWO}}, "test: source and sha256"),
        ({"encoding": "cp1522"}, "did you mean 'cp1252'"),
        ({"encoding": "base64"}, "unknown encoding"),
        ({"rename": {"a": "b"}, "header": False, "columns": ["a", "y"]}, "write the new names under `columns`"),
        (
            {"columns": ["text", "y"], "drop_duplicates": ["txt"]},
            "drop_duplicates 'txt' is not in columns; did you mean 'text'",
        ),
        ({"columns": ["id", "y"], "graph": {"node": "di", "edges": "e"}}, "graph.node 'di' is not in columns"),
        ({"columns": ["text", "y"], "split": {"group": {"column": "texts"}}}, "did you mean 'text'"),
        ({"columns": ["text", "y"], "split": {"predefined": {}}}, "split.predefined.column 'part' is not in columns"),
        (
            {"source": {"train": "a", "test": "b"}, "split": {"predefined": {"test": "tset"}}},
            "source has no part 'tset'; did you mean 'test'",
        ),
        ({"split": {"predefined": {}, "time": {"column": "m"}}}, "time and predefined both define"),
        ({"split": {"predefined": {}, "per_class": {}}}, "predefined and per_class both define"),
    ],
)
def test_a_mistake_names_the_field_and_the_near_miss(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        section(**fields)
    assert message in str(caught.value)


def test_id_and_split_columns_are_not_features() -> None:
    columns = ["id", "part", "month", "person", "a", "edges", "y"]
    parts = {"train": "a", "test": "b"}
    assert section().features(columns) == columns[:-1]
    assert section(source=parts, split={"predefined": {}}).features(columns) == ["id", "month", "person", "a", "edges"]
    assert section(split={"time": {"column": "month"}, "group": {"column": "person"}}).features(columns) == [
        "id",
        "part",
        "a",
        "edges",
    ]
    assert "person" in section(split={"group": {"column": "person", "match": "words"}}).features(columns)
    assert section(graph={"node": "id", "edges": "e"}).features(columns) == ["part", "month", "person", "a"]


def test_stored_columns_follow_from_the_recipe() -> None:
    assert section().stored_columns is None
    assert section(columns=["a", "y"]).stored_columns == ["a", "y"]
    assert section(columns=["a", "y"], source={"train": "a"}).stored_columns == ["a", "y", "part"]
    graph = {"node": "id", "edges": "e"}
    assert section(columns=["id", "w[3]", "y"], graph=graph).stored_columns == ["id", "w_0", "w_1", "w_2", "y", "edges"]
    assert section(columns=["id", "w[3]", "y"], graph={**graph, "pack": "words"}).stored_columns == [
        "id",
        "words",
        "y",
        "edges",
    ]
