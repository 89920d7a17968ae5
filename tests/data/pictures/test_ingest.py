"""Folders of pictures in a project: the first batch, later ones, and what changes when files do."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.data.batches import add_batch
from headrace.data.ingest import FIRST, ingest
from headrace.data.pictures import sources
from headrace.errors import DataError, DataRejected
from headrace.pipeline.prepare import prepare
from headrace.pipeline.validate import validate_batches
from headrace.project import Project
from headrace.release.up_to_date import snapshot
from headrace.task_types.lookup import task_type_of
from tests.data.conftest import MakeRecipe
from tests.picture_files import class_folders, packed


def test_a_folder_of_pictures_becomes_one_file_and_later_batches_others(
    project: Project, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, said = project.root / "photos", list[str]()
    paths = class_folders(photos)
    (photos / "red" / "cut.jpg").write_bytes((photos / "red" / "1.jpg").read_bytes()[:200])
    recipe = make_recipe("pets", "image-classification", source="photos", target="label", image={"size": [8, 8]})
    first = ingest(recipe, project, said.append)
    assert first.rows == len(paths) and [path.name for path in project.raw_data("pets").iterdir()] == [FIRST]
    assert any("1 of 19 pictures left out:\n    red/cut.jpg: " in line for line in said), said
    before = (project.raw_data("pets") / FIRST).read_bytes()

    # Nothing has changed: no picture is read again, only sizes and times are compared.
    seen = snapshot(recipe, project)
    monkeypatch.setattr(sources.hashlib, "file_digest", lambda *given: pytest.fail("a file was read again"))
    assert ingest(recipe, project, said.append) == first and "unchanged" in said[-1]
    monkeypatch.undo()
    for path in photos.rglob("*"):
        os.utime(path, (1, 1))  # other times, the same content
    assert snapshot(recipe, project) != seen
    assert ingest(recipe, project, said.append) == first
    assert (project.raw_data("pets") / FIRST).read_bytes() == before

    # A new picture is a new version.
    (photos / "blue" / "new.png").write_bytes((photos / "red" / "0.png").read_bytes())
    assert ingest(recipe, project, said.append).rows == len(paths) + 1

    # Later batches: an archive, the same again, and one with a class that is not known.
    class_folders(project.root / "more", each=2, seed=5)
    archive = packed(project.root / "more", project.root / "more.zip")
    added = add_batch(recipe, archive, project, said.append)
    assert [batch.name for batch in added.batches] == [FIRST, "0001-more.parquet"]
    with pytest.raises(DataError, match=r"already added as batch 0001-more\.parquet"):
        add_batch(recipe, archive, project, said.append)
    (project.root / "more" / "red").rename(project.root / "more" / "violet")
    with pytest.raises(DataRejected, match="violet"):
        add_batch(recipe, project.root / "more", project, said.append)
    assert len(list(project.raw_data("pets").iterdir())) == 2

    # The stages: equal pictures are in the same split, whatever they are called.
    validate_batches(recipe, project)
    prepare(recipe, project)
    prepared = project.artifacts("pets") / "prepared"
    splits = {name: pq.read_table(prepared / f"{name}.parquet").to_pandas() for name in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == added.rows
    held = [set(frame["image"]) for frame in splits.values()]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    encoded = task_type_of(recipe.task).encode(splits["train"], None, recipe)["image"]  # type: ignore[arg-type]
    assert encoded.shape == (len(splits["train"]), 8, 8, 3)


def test_broken_pictures_can_refuse_the_source(project: Project, make_recipe: MakeRecipe) -> None:
    class_folders(project.root / "photos")
    (project.root / "photos" / "red" / "0.png").write_bytes(b"")
    image = {"size": [8, 8], "broken": "refuse"}
    recipe = make_recipe("pets", "image-classification", source="photos", target="label", image=image)
    with pytest.raises(DataError, match=r"1 of 18 pictures cannot be used:\n    red/0\.png: the file is empty"):
        ingest(recipe, project, lambda line: None)
    assert not project.raw_data("pets").exists()


def test_a_table_and_its_pictures_are_watched(project: Project, make_recipe: MakeRecipe) -> None:
    paths = class_folders(project.root)
    table = project.root / "labels.csv"
    table.write_text("file,label,who\n" + "".join(f"{path},{path.split('/')[0]},{i % 4}\n" for i, path in enumerate(paths)))
    image = {"size": [8, 8], "path": "file"}
    split = {"group": {"column": "who"}}
    recipe = make_recipe("pets", "image-classification", source="labels.csv", target="label", image=image, split=split)
    first = ingest(recipe, project, lambda line: None)
    assert pq.read_schema(project.raw_data("pets") / FIRST).names == ["path", "width", "height", "image", "label", "who"]
    before = snapshot(recipe, project)
    (project.root / paths[0]).write_bytes((project.root / paths[3]).read_bytes())
    assert snapshot(recipe, project) != before
    assert ingest(recipe, project, lambda line: None).md5 != first.md5


def test_a_missing_folder_is_named(project: Project, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    class_folders(project.root / "photos")
    recipe = make_recipe("pets", "image-classification", source="fotos", target="label", image={"size": [8, 8]})
    with pytest.raises(Exception, match="no such file: fotos"):
        ingest(recipe, project, lambda line: None)
