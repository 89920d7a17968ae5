"""Labels with too few rows: named before training, all at once, with a hint that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.data.assembly import assemble
from headrace.errors import DataError
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import make_recipe
from tests.served_tables import learned

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame({"a": RNG.normal(size=200), "y": RNG.choice(["yes", "no"], 200)})
TABLE.loc[:7, "y"] = [f"r{i}" for i in range(1, 9)]


def refusal(path: Path, recipe: Recipe) -> DataError:
    with pytest.raises(DataError, match="labels are in no training row") as caught:
        learned(path, recipe)
    return caught.value


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_labels_that_no_training_row_has_are_named_and_the_hint_works(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{format}"
    TABLE.to_csv(path, index=False) if format == "csv" else TABLE.to_parquet(path)
    split: dict[str, Any] = {"test": 0.4, "validation": 0.2}
    found = refusal(path, make_recipe(split=split))
    listed = found.hint.split("drop_values: {y: [")[1].split("]")[0].split(", ") if found.hint else []
    assert len(listed) > 1 and all(f"'{label}' (1 row)" in found.message for label in listed)
    recipe = make_recipe(split=split, drop_values={"y": listed})
    selected = assemble([path], recipe.data)
    assert selected.left_out == (f"{len(listed)} rows left out: y is {', '.join(listed)}",)
    _, schema = learned(path, recipe)
    assert schema.labels is not None and not set(listed) & set(schema.labels)


def test_numbers_and_booleans_are_left_out_as_labels_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,0\n2,1\n3,2\n4,\n")
    kept = assemble([path], make_recipe(drop_values={"y": [2, "1"]}).data).table["y"].to_pylist()
    assert kept == [0, None]
    path.write_text("a,y\n1,True\n2,False\n")
    assert assemble([path], make_recipe(drop_values={"y": [True]}).data).table["y"].to_pylist() == [False]


def test_texts_are_checked_before_training_too() -> None:
    from headrace.data.splits import Splits

    recipe = make_recipe("text-classification", {"name": "recurrent"}, text={"column": "a", "vocabulary": 20})
    frame = pd.DataFrame({"a": ["x y", "z", "x", "y z"], "y": ["no", "yes", "no", "yes"]})
    odd = pd.DataFrame({"a": ["x"], "y": ["maybe"]})
    with pytest.raises(DataError, match=r"'maybe' \(1 row\)"):
        task_type_of(recipe.task).learn(Splits(frame, frame, odd, frame.iloc[:0]), recipe)
