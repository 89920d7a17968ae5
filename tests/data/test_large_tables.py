"""A Parquet source larger than memory gives the same data, weights and metrics as one that fits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from headrace.data import ingest, tables
from headrace.data.chunked_ingest import copy_in_chunks, is_chunked_source
from headrace.errors import DataError, DataRejected
from headrace.files import read_json
from headrace.models.schema import Schema
from headrace.pipeline import stages
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.training import rows as training_rows

ROWS = 900
FIELDS: dict[str, Any] = {
    "name": "big",
    "task": "classification",
    "data": {
        "source": "big.parquet",
        "target": "kind",
        "rename": {"LENGTH": "length"},
        "columns": ["length", "width", "colour", "kind"],
        "drop_missing": ["width"],
        "split": {"test": 0.3, "validation": 0.2},
    },
    "expect": [{"type": "expect_column_values_to_be_between", "column": "length", "min_value": -90, "max_value": 90}],
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 2, "batch_size": 32, "class_weights": "balanced", "calibrate": "temperature", "seed": 3},
    "serve": {},
}


def source(rows: int = ROWS) -> pd.DataFrame:
    """Numbers, a gap or two, a category, and a kind that follows from them, with one row in ten labelled wrongly."""
    rng = np.random.default_rng(4)
    length, width = rng.integers(-80, 80, rows) / 8, rng.integers(-16, 16, rows) / 8
    width[[3, rows - 2]] = np.nan
    colour = rng.choice(["red", "green", "blue"], rows)
    kind = np.where((length / 10 + np.nan_to_num(width) + (colour == "red") > 0.3) ^ (rng.random(rows) < 0.1), "big", "small")
    return pd.DataFrame({"LENGTH": length, "unused": 1, "width": width, "colour": colour, "kind": kind})


def recipe_with(project: Project, memory: str | None) -> Recipe:
    fields = {**FIELDS, "data": FIELDS["data"] | ({"memory": memory} if memory else {})}
    (project.recipes / "big.yaml").write_text(yaml.safe_dump(fields))
    return load_recipe("big", project)


def run(project: Project, memory: str | None, *stages_to_run: str) -> dict[str, Any]:
    """The stages, and what they leave."""
    recipe, lines = recipe_with(project, memory), list[str]()
    ingest.ingest(recipe, project, lines.append)
    for stage in stages_to_run:
        stages.STAGES[stage](recipe, project)
    out = project.artifacts("big")
    return {
        "lines": [line for line in lines if "left out" in line],
        "write_batches": (project.raw_data("big") / ingest.FIRST).read_bytes(),
        "verdict": read_json(out / "validation.json"),
        "schema": Schema.read(out / "prepared" / "schema.json"),
        "weights": torch.load(out / "train" / "model.pt", weights_only=True),
    }


@pytest.fixture
def two_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, Project]:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    made = []
    for name in ("whole", "pieces"):
        root = tmp_path / name
        (root / "recipes").mkdir(parents=True)
        (root / "dvc.yaml").write_text("stages: {}\n")
        (root / "requirements.lock").write_text("")
        source().to_parquet(root / "big.parquet", index=False, row_group_size=250)
        made.append(Project(root))
    return made[0], made[1]


@pytest.mark.usefixtures("one_thread")
def test_a_source_in_chunks_gives_the_same_data_weights_and_metrics(
    two_projects: tuple[Project, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 200)
    monkeypatch.setattr(training_rows, "WINDOW_ROWS", 128)  # both shuffle by windows
    whole = run(two_projects[0], "1GB", "validate", "prepare", "train", "export", "evaluate")
    pieces = run(two_projects[1], "6kB", "validate", "prepare", "train")
    assert pieces["lines"] == whole["lines"] == ["2 rows left out: no value in width"]
    assert pieces["write_batches"] == whole["write_batches"]
    assert pieces["verdict"] == whole["verdict"] and whole["verdict"]["rows"] == ROWS - 2
    for ours, theirs in zip(pieces["schema"].numeric, whole["schema"].numeric, strict=True):
        assert (ours.mean, ours.std) == pytest.approx((theirs.mean, theirs.std), rel=1e-9)
    for name, weights in whole["weights"].items():
        assert torch.allclose(pieces["weights"][name], weights, rtol=1e-5, atol=1e-6), name
    # the one graph is enough for both: answers for the test rows are what differs in how they are made
    found = [project.artifacts("big") for project in two_projects]
    for folder in ("export", "train"):
        shutil.copytree(found[0] / folder, found[1] / folder, dirs_exist_ok=True)
    stages.STAGES["evaluate"](recipe_with(two_projects[1], "6kB"), two_projects[1])
    ours, theirs = (read_json(out / "evaluation" / "evaluation.json") for out in found)
    assert ours == theirs and ours["rows"] > 200
    assert list((two_projects[1].state / "encoded").iterdir()) == list((two_projects[1].state / "incoming").iterdir()) == []


def test_a_window_in_chunks_is_the_same(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 200)
    folder = project.raw_data("big")
    folder.mkdir(parents=True)
    frame = source().rename(columns={"LENGTH": "length"}).drop(columns="unused").fillna(0.0)
    frame["day"] = pd.date_range("2024-01-01", periods=ROWS, freq="4h")
    frame.to_parquet(folder / ingest.FIRST, index=False, row_group_size=200)
    split = {"time": {"column": "day", "test": "30 days"}, "validation": 0.2}
    data = FIELDS["data"] | {"columns": [*frame], "split": split, "times": {"day": {"features": ["weekday"]}}}
    found = []
    for memory in ("1GB", "6kB"):
        fields = FIELDS | {"data": data | {"memory": memory}, "train": {"window": "60 days"}}
        (project.recipes / "big.yaml").write_text(yaml.safe_dump(fields))
        stages.prepare(load_recipe("big", project), project)
        prepared = project.artifacts("big") / "prepared"
        found.append([pd.read_parquet(prepared / f"{name}.parquet") for name in ("train", "validation", "test")])
    for whole, pieces in zip(*found, strict=True):
        pd.testing.assert_frame_equal(whole, pieces)
    assert len(found[0][0]) + len(found[0][1]) == 60 * 6 and len(found[0][2]) == 30 * 6


@pytest.mark.exhaustive
def test_a_refused_source_in_chunks_is_quarantined_and_not_stored(two_projects: tuple[Project, Project]) -> None:
    project = two_projects[1]
    frame = source()
    frame.loc[[700, 850], "LENGTH"] = 1000.0
    frame.loc[810, "kind"] = None
    frame.to_parquet(project.root / "big.parquet", index=False, row_group_size=250)
    with pytest.raises(DataRejected, match=r"row 700: 1000.0, row 850: 1000.0") as raised:
        ingest.ingest(recipe_with(project, "6kB"), project, lambda line: None)
    assert "kind: 1 rows" in str(raised.value) and "row 810: None" in str(raised.value)
    (folder,) = (project.quarantine / "big").iterdir()
    assert pd.read_csv(folder / "failing_rows.csv")["row"].tolist() == [700, 810, 850]  # one row with a gap stood before them
    assert not list(project.data.rglob("*.parquet")) and not list((project.state / "incoming").iterdir())


@pytest.mark.parametrize("damage", ["cut", "middle"])
def test_a_damaged_source_is_refused_before_anything_is_stored(two_projects: tuple[Project, Project], damage: str) -> None:
    import pyarrow.parquet as pq

    project = two_projects[1]
    path = project.root / "big.parquet"
    at = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[at : at + 60] = b"\xff" * 60
    path.write_bytes(raw[:-300] if damage == "cut" else raw)
    with pytest.raises(DataError, match="not a complete Parquet file"):
        ingest.ingest(recipe_with(project, "6kB"), project, lambda line: None)
    assert not list(project.data.rglob("*.parquet"))


TEXTS: dict[str, dict[str, Any]] = {
    "big.csv": {},
    "big.csv.gz": {},
    "eu.csv": {"read": {"separator": ";", "decimal": ",", "encoding": "cp1252"}},
    "big.jsonl": {},
    "big.feather": {},
}


@pytest.mark.parametrize("name", TEXTS)
def test_other_formats_in_blocks_give_the_same_bytes_as_parquet(
    two_projects: tuple[Project, Project], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("dialects", "json_lines"):
        monkeypatch.setattr(f"headrace.data.formats.{module}.BLOCK_BYTES", 4096)
    frame, path = source(), two_projects[0].root / name
    frame.loc[5, "colour"] = "gr\u00fcn"
    frame.to_parquet(two_projects[0].root / "big.parquet", index=False)
    if name.endswith("jsonl"):
        frame.to_json(path, orient="records", lines=True)
    elif name.endswith("feather"):
        frame.to_feather(path)
    else:
        sep, decimal, encoding = (";", ",", "cp1252") if name == "eu.csv" else (",", ".", "utf-8")
        frame.to_csv(path, index=False, sep=sep, decimal=decimal, encoding=encoding)
    found = []
    for file, more in (("big.parquet", {}), (name, TEXTS[name])):
        fields = {**FIELDS, "data": {**FIELDS["data"], "source": file, "memory": "6kB", **more}}
        (two_projects[0].recipes / "big.yaml").write_text(yaml.safe_dump(fields))
        recipe = load_recipe("big", two_projects[0])
        paths, lines = [two_projects[0].root / file], list[str]()
        assert is_chunked_source(paths, recipe)
        # The key in the file's metadata names the source, which differs; so both get one.
        copy_in_chunks(list(zip(recipe.data.files, paths, strict=True)), recipe.data, path.parent / "copy", "key", lines.append)
        assert "2 rows left out: no value in width" in lines
        found.append((path.parent / "copy").read_bytes())
    assert found[0] == found[1]
