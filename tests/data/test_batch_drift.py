"""A batch is compared with the rows before it: what differs is printed, drawn, and refused where the recipe says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.data.batch_drift import REFERENCE_ROWS, compare_batch
from headrace.data.batches import add_batch
from headrace.data.ingest import ingest
from headrace.data.versions import data_version
from headrace.errors import DataRejected, RecipeError
from headrace.project import Project


def rentals(rows: int, seed: int, **changed: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "months": rng.gamma(2, 12, rows).round(1),
            "plan": rng.choice(["basic", "family", "pro"], rows, p=[0.6, 0.3, 0.1]),
            "new": rng.random(rows) < 0.3,
            "y": rng.normal(50, 5, rows).round(2),
        }
    )
    return frame.assign(**changed)


@pytest.fixture
def recipe(project: Project, make_recipe: Any) -> Any:
    """Recipes of data with 600 rows."""
    rentals(600, 0).to_csv(project.root / "toy.csv", index=False)

    def make(**drift: Any) -> Any:
        found = make_recipe(**({"drift": drift} if drift else {}))
        ingest(found, project, lambda line: None)
        return found

    return make


def added(recipe: Any, frame: pd.DataFrame, project: Project, tmp_path: Path) -> list[str]:
    """What is printed when the rows are added."""
    file, lines = tmp_path / "new.csv", list[str]()
    frame.to_csv(file, index=False)
    add_batch(recipe, file, project, lines.append)
    return lines


def test_a_batch_like_the_rows_before_is_said_to_be_so(recipe: Any, project: Project, tmp_path: Path) -> None:
    lines = added(recipe(), rentals(300, 1), project, tmp_path)
    assert lines[0].startswith("no column differs from the 600 rows before by 0.1 or more; the largest distance is 0.0")
    assert not list((project.state / "validation" / "drift" / "toy").glob("*.png"))


def test_a_column_with_another_median_is_reported_and_drawn(recipe: Any, project: Project, tmp_path: Path) -> None:
    frame = rentals(300, 1)
    lines = added(recipe(), frame.assign(months=frame["months"] * 2.85), project, tmp_path)
    assert lines[0] == "1 column of the batch differs from the 600 rows before:"
    assert lines[1].startswith("  months: median ") and "before" in lines[1] and "; distance 0." in lines[1]
    picture = project.root / lines[2].removeprefix("  picture: ")
    assert picture.read_bytes().startswith(b"\x89PNG")
    kept = json.loads(picture.with_suffix(".json").read_text())
    assert kept["rows"] == 600 and kept["columns"][0]["name"] == "months" and kept["columns"][0]["distance"] > 0.2
    assert data_version(project, "toy").rows == 900, "it is in, since the recipe refuses no distance"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"plan": "pro"}, "plan: 100% pro, before"),
        ({"new": True}, "new: 100% True, before"),
        ({"months": np.nan}, "months: 100% missing, before 0%"),
        ({"months": np.r_[np.full(150, np.nan), np.full(150, 20.0)]}, "months: 50% missing, before 0%"),
    ],
)
def test_what_changed_is_said(recipe: Any, project: Project, changed: dict[str, Any], said: str) -> None:
    import pyarrow as pa

    comparison = compare_batch(pa.Table.from_pandas(rentals(300, 1, **changed)), recipe(), project)
    assert comparison.columns[0].sentence.startswith(said)


def test_a_distance_that_the_recipe_refuses_sends_the_batch_to_quarantine(
    recipe: Any, project: Project, tmp_path: Path
) -> None:
    strict, before = recipe(refuse=0.3), data_version(project, "toy")
    frame = rentals(300, 1)
    with pytest.raises(DataRejected, match=r"data\.drift\.refuse months; median .* less than 0\.3 required") as caught:
        added(strict, frame.assign(months=frame["months"] * 10), project, tmp_path)
    assert "1 of " in str(caught.value) and data_version(project, "toy") == before
    (folder,) = (project.quarantine / "toy").iterdir()
    assert json.loads((folder / "report.json").read_text())["failures"][0]["type"] == "data.drift.refuse"
    assert len(added(strict, frame, project, tmp_path)) > 1


def test_only_the_columns_that_the_recipe_names_are_compared(recipe: Any, project: Project) -> None:
    import pyarrow as pa

    table = pa.Table.from_pandas(rentals(300, 1, months=1.0))
    assert [one.drift.name for one in compare_batch(table, recipe(columns=["plan"]), project).columns] == ["plan"]
    assert {one.drift.name for one in compare_batch(table, recipe(), project).columns} == {"months", "plan", "new", "y"}


@pytest.mark.parametrize("rows", [1, 19])
def test_a_few_rows_are_not_compared(recipe: Any, project: Project, tmp_path: Path, rows: int) -> None:
    lines = added(recipe(), rentals(rows, 1, months=999.0), project, tmp_path)
    assert lines[0].endswith("expectations passed on 1 rows" if rows == 1 else "expectations passed on 19 rows")


def test_few_rows_of_the_same_distribution_are_rarely_reported(recipe: Any, project: Project) -> None:
    import pyarrow as pa

    made = recipe()
    reported = [len(compare_batch(pa.Table.from_pandas(rentals(25, seed)), made, project).reported) for seed in range(1, 21)]
    assert sum(map(bool, reported)) <= 6


def test_a_batch_of_millions_of_rows_is_compared_with_a_sample(project: Project, make_recipe: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    recipe = make_recipe()
    folder = project.raw_data("toy")
    folder.mkdir(parents=True)
    rows = REFERENCE_ROWS + 50_000
    pq.write_table(
        pa.table({"x": np.arange(rows) % 100, "y": np.zeros(rows)}), folder / "0000-first.parquet", row_group_size=9_000
    )
    comparison = compare_batch(pa.table({"x": np.arange(1000) % 100, "y": np.zeros(1000)}), recipe, project)
    assert comparison.rows == rows and comparison.reported == []


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ({"report": 0.5, "refuse": 0.2}, "refuse: 0.2 is below report: 0.5"),
        ({"report": 0}, "greater than 0"),
        ({"refused": 0.5}, "refuse"),
    ],
)
def test_wrong_limits_are_refused(make_recipe: Any, drift: dict[str, float], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe(drift=drift)


def test_an_unknown_column_is_refused_with_the_near_miss(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"drift\.columns 'plam' is not in columns; did you mean 'plan'"):
        make_recipe(columns=["months", "plan", "y"], drift={"columns": ["plam"]})
