"""A clone has pointers without the data that they name: nothing is made again with fewer rows, and no pointer is lost."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.data.batches import add_batch, next_batch
from headrace.data.ingest import FIRST, ingest
from headrace.data.pointer import listed_files, out_of_reach
from headrace.data.versions import data_version, is_tracked, track
from headrace.errors import DataError
from headrace.project import Project

HINT = "dvc push where the data is"


def quiet(line: str) -> None:
    pass


def clone(project: Project, tmp_path: Path) -> Project:
    """What git keeps: neither data nor DVC's cache."""
    root = tmp_path / "clone"
    shutil.copytree(project.root, root, ignore=shutil.ignore_patterns("data", "cache", "tmp", ".headrace", "mlruns"))
    return Project(root)


def named(project: Project) -> dict[str, int | None]:
    return {file.path: file.rows for file in listed_files(project)}


def added(project: Project, recipe: Any, rows: int = 3) -> None:
    (project.root / "maybe.csv").write_text("month,day,kind,y\n" + "".join(f"5,{day},a,5{day}\n" for day in range(rows)))
    add_batch(recipe, project.root / "maybe.csv", project, quiet)


def test_ingesting_one_recipe_keeps_the_pointers_of_all_others(
    project: Project, make_recipe: Any, toy_csv: Path, tmp_path: Path
) -> None:
    one, gone, mine = (make_recipe(name) for name in ("one", "gone", "mine"))
    ingest(one, project, quiet)
    added(project, one)
    ingest(gone, project, quiet)
    (project.recipes / "gone.yaml").unlink()
    before = named(project)
    assert before == {f"gone/{FIRST}": 40, f"one/{FIRST}": 40, "one/0001-maybe.parquet": 3}

    there = clone(project, tmp_path)
    version = ingest(mine, there, quiet)
    assert named(there) == before | {f"mine/{FIRST}": 40} and version.rows == 40
    assert is_tracked(there)
    assert ingest(mine, there, quiet) == version and named(there) == before | {f"mine/{FIRST}": 40}
    assert sorted(path.name for path in there.data.iterdir()) == ["mine"]


def test_batches_that_can_be_had_nowhere_are_named_and_nothing_changes(
    project: Project, make_recipe: Any, toy_csv: Path, tmp_path: Path
) -> None:
    recipe = make_recipe("lab")
    ingest(recipe, project, quiet)
    added(project, recipe)
    there = clone(project, tmp_path)
    pointer = (there.root / "data.dvc").read_bytes()
    for _ in range(2):
        with pytest.raises(DataError, match=r"data/lab is not complete.*lab/0001-maybe\.parquet \(3 rows\)") as caught:
            ingest(recipe, there, quiet)
        assert HINT in str(caught.value.hint)
    assert (there.root / "data.dvc").read_bytes() == pointer and not there.raw_data("lab").exists()

    # The first batch alone, as a copy by hand would leave it.
    there.raw_data("lab").mkdir(parents=True)
    shutil.copy(project.raw_data("lab") / FIRST, there.raw_data("lab"))
    with pytest.raises(DataError, match=re.escape("lab/0001-maybe.parquet")):
        ingest(recipe, there, quiet)
    with pytest.raises(DataError, match=re.escape("lab/0001-maybe.parquet")):
        track(there)
    assert (there.root / "data.dvc").read_bytes() == pointer


def test_a_remote_brings_all_batches_back(project: Project, make_recipe: Any, toy_csv: Path, tmp_path: Path) -> None:
    recipe = make_recipe("lab")
    (project.root / ".dvc").mkdir()
    (project.root / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n    no_scm = true\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    )
    ingest(recipe, project, quiet)
    added(project, recipe)
    from dvc.repo import Repo

    with Repo(str(project.root)) as repo:
        repo.push()
    there = clone(project, tmp_path)
    assert ingest(recipe, there, quiet) == data_version(project, "lab")


def test_a_lost_first_batch_comes_from_a_source_that_has_all_rows(
    project: Project, make_recipe: Any, toy_csv: Path, tmp_path: Path
) -> None:
    recipe = make_recipe("lab")
    before = ingest(recipe, project, quiet)
    there = clone(project, tmp_path)
    source = there.root / "toy.csv"
    whole = source.read_text()
    source.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"source has 39 rows today, and data\.dvc names lab/.* \(40 rows\)"):
        ingest(recipe, there, quiet)
    assert not there.raw_data("lab").exists()
    source.write_text(whole)
    assert ingest(recipe, there, quiet) == before


def test_pointers_of_an_older_headrace_are_kept_too(project: Project, make_recipe: Any, toy_csv: Path, tmp_path: Path) -> None:
    """Its data.dvc has no list of files, and dvc.lock only counts them."""
    one, two = make_recipe("one"), make_recipe("two")
    ingest(one, project, quiet)
    added(project, one)
    there = clone(project, tmp_path)
    content = yaml.safe_load((there.root / "data.dvc").read_text())
    del content["meta"]
    (there.root / "data.dvc").write_text(yaml.safe_dump(content))
    stages = {"validate@one": {"cmd": "x", "deps": [{"path": "data/one", "md5": "a.dir", "nfiles": 2}]}}
    (there.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    with pytest.raises(DataError, match=r"data/one is not complete.*a version of 2 files"):
        ingest(one, there, quiet)
    with pytest.raises(DataError, match=r"data\.dvc names 2 files.*dvc\.lock names data/one"):
        ingest(two, there, quiet)
    assert yaml.safe_load((there.root / "data.dvc").read_text()) == content
    stages["validate@one"]["deps"][0]["nfiles"] = content["outs"][0]["nfiles"] = 1  # type: ignore[index]
    for file, text in (("data.dvc", content), ("dvc.lock", {"schema": "2.0", "stages": stages})):
        (there.root / file).write_text(yaml.safe_dump(text))
    assert ingest(one, there, quiet).rows == 40, "the source brings the only batch"


def test_a_batch_that_is_removed_by_hand_is_no_loss(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    recipe = make_recipe(incremental={"column": "month", "first": 2})
    ingest(recipe, project, quiet)
    next_batch(recipe, project, quiet)
    (project.raw_data("toy") / "0001-month-3.parquet").unlink()
    assert ingest(recipe, project, quiet).rows == 20 and named(project) == {f"toy/{FIRST}": 20}


def test_one_missing_file_is_named_in_the_singular_and_several_in_the_plural() -> None:
    one, several = out_of_reach("lab", ["lab/1.parquet"]), out_of_reach("lab", ["lab/1.parquet", "lab/2.parquet"])
    assert "lab/1.parquet is named by data.dvc or dvc.lock, and neither DVC's cache nor a remote has it" in one.message
    assert "lab/1.parquet, lab/2.parquet are named by data.dvc or dvc.lock" in several.message
    assert several.message.endswith("has them") and HINT in str(several.hint)
