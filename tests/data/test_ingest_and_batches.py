"""From a source to versions and later batches, with DVC and Great Expectations, not replaced by mocks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from headrace.data import batches, commit
from headrace.data.batches import add_batch, next_batch
from headrace.data.ingest import FIRST, ingest, source_key
from headrace.data.splits import split
from headrace.data.tables import batch_files, read_batches
from headrace.data.versions import DataVersion, data_version, is_tracked
from headrace.errors import DataError, DataRejected, RecipeError, SourceError
from headrace.events import outbox
from headrace.project import Project
from headrace.recipe.recipe import Recipe

EXPECT = [{"type": "expect_column_values_to_be_between", "column": "y", "min_value": 0, "max_value": 100}]


def quiet(line: str) -> None:
    pass


def tracked_files(project: Project) -> list[str]:
    """What data.dvc names, read from DVC's cache without our code."""
    md5 = yaml.safe_load((project.root / "data.dvc").read_text())["outs"][0]["md5"]
    tree = project.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    return sorted(entry["relpath"] for entry in json.loads(tree.read_text()))


def test_the_version_is_the_hash_that_dvc_locks(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    version = ingest(make_recipe(), project, quiet)
    (project.root / "dvc.yaml").write_text("stages:\n  s:\n    cmd: echo 1 > out\n    deps: [data/toy]\n    outs: [out]\n")
    subprocess.run(
        [shutil.which("dvc") or Path(__import__("sys").executable).parent / "dvc", "config", "core.no_scm", "true"],
        cwd=project.root,
        check=True,
    )
    subprocess.run([Path(__import__("sys").executable).parent / "dvc", "repro", "-q"], cwd=project.root, check=True)
    locked = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["s"]["deps"][0]
    assert (locked["path"], locked["md5"]) == ("data/toy", version.md5)
    assert version.rows == 40 and is_tracked(project)


def test_a_second_ingest_reads_nothing_again(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    recipe = make_recipe(drop_missing=["y"])
    first = ingest(recipe, project, quiet)
    lines: list[str] = []
    assert ingest(recipe, project, lines.append) == first
    assert lines == [f"data/{recipe.name}: {first}, unchanged"]


@pytest.mark.parametrize("lost", ["data", "data and cache"])
def test_deleted_data_is_restored_with_the_same_hash(project: Project, make_recipe: Any, toy_csv: Path, lost: str) -> None:
    recipe = make_recipe()
    first = ingest(recipe, project, quiet)
    shutil.rmtree(project.data)
    if lost == "data and cache":
        shutil.rmtree(project.root / ".dvc" / "cache")
    assert ingest(recipe, project, quiet) == first and is_tracked(project)


def test_deleted_data_is_restored_with_later_batches(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    recipe = make_recipe(incremental={"column": "month", "first": 2})
    ingest(recipe, project, quiet)
    second = next_batch(recipe, project, quiet).version
    shutil.rmtree(project.raw_data("toy"))
    assert ingest(recipe, project, quiet) == second


def test_other_recipes_stay_tracked(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    ingest(make_recipe("one"), project, quiet)
    shutil.rmtree(project.raw_data("one"))
    ingest(make_recipe("two"), project, quiet)
    assert tracked_files(project) == [f"one/{FIRST}", f"two/{FIRST}"]


def test_months_are_added_one_by_one_until_the_source_is_exhausted(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    recipe = make_recipe(incremental={"column": "month", "first": 2})
    assert ingest(recipe, project, quiet).rows == 20
    assert next_batch(recipe, project, quiet).version.rows == 30
    version = next_batch(recipe, project, quiet).version
    assert [batch.name for batch in version.batches] == [FIRST, "0001-month-3.parquet", "0002-month-4.parquet"]
    assert sorted(read_batches(project, recipe)["month"].unique()) == [1, 2, 3, 4]
    lines: list[str] = []
    exhausted = next_batch(recipe, project, lines.append)
    assert (exhausted.version, exhausted.added) == (version, False)
    assert lines[-1] == "everything has arrived: the source has no month after 4; the data version stays"


def test_next_without_an_incremental_source_is_a_recipe_error(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.incremental"):
        next_batch(make_recipe(), project, quiet)


def test_a_changed_source_makes_a_new_version_and_keeps_later_batches(
    project: Project, make_recipe: Any, toy_csv: Path
) -> None:
    recipe = make_recipe(incremental={"column": "month", "first": 2})
    ingest(recipe, project, quiet)
    before = next_batch(recipe, project, quiet).version
    toy_csv.write_text(toy_csv.read_text().replace("3,0,a,30", "3,0,a,99"))
    after = ingest(recipe, project, quiet)
    assert after.md5 != before.md5 and after.rows == before.rows
    assert 99 in set(read_batches(project, recipe)["y"])


def test_a_column_added_to_the_recipe_reaches_later_batches(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    narrow = make_recipe(columns=["month", "y"], incremental={"column": "month", "first": 2})
    ingest(narrow, project, quiet)
    next_batch(narrow, project, quiet)
    wide = make_recipe(columns=["month", "kind", "y"], incremental={"column": "month", "first": 2})
    ingest(wide, project, quiet)
    assert list(read_batches(project, wide).columns) == ["month", "kind", "y"] and len(read_batches(project, wide)) == 30


def test_a_source_with_another_sha256_changes_nothing(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    with pytest.raises(SourceError, match="sha256"):
        ingest(make_recipe(sha256="0" * 64), project, quiet)
    assert not project.raw_data("toy").exists()


def test_rows_without_a_target_are_dropped_and_counted(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    toy_csv.write_text(toy_csv.read_text() + "4,11,a,\n")
    lines: list[str] = []
    assert ingest(make_recipe(drop_missing=["y"]), project, lines.append).rows == 40
    assert any("1 rows left out: no value in y" in line for line in lines)


def test_a_first_batch_without_a_target_in_each_row_is_refused(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    toy_csv.write_text(toy_csv.read_text() + "4,11,a,\n")
    with pytest.raises(DataRejected, match="expect_column_values_to_not_be_null y: 1 rows"):
        ingest(make_recipe(), project, quiet)
    assert not project.raw_data("toy").exists() and not (project.root / "data.dvc").exists()


def test_pixels_are_kept_as_bytes(project: Project, make_recipe: Any) -> None:
    (project.root / "toy.csv").write_text("0,255,7,1,0\n" * 3)
    recipe = make_recipe(task="image-classification", header=False, columns=["p[4]", "y"], image=[2, 2])
    ingest(recipe, project, quiet)
    assert [str(t) for t in pq.read_schema(project.raw_data("toy") / FIRST).types] == ["uint8"] * 4 + ["int64"]


@pytest.fixture
def ingested(project: Project, make_recipe: Any, toy_csv: Path) -> tuple[Any, DataVersion]:
    recipe = make_recipe(expect=EXPECT)
    return recipe, ingest(recipe, project, quiet)


def batch(tmp_path: Path, text: str, name: str = "new.csv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


HEADER = "month,day,kind,y\n"


def test_a_good_batch_is_one_new_file_and_one_new_version(project: Project, ingested: Any, tmp_path: Path) -> None:
    recipe, before = ingested
    after = add_batch(recipe, batch(tmp_path, HEADER + "5,1,a,50\n5,2,b,\n5,3,a,52\n".replace("5,2,b,\n", "")), project, quiet)
    assert (after.rows, len(after.batches)) == (42, 2) and after.md5 != before.md5
    assert tracked_files(project) == [f"toy/{FIRST}", "toy/0001-new.parquet"]
    assert after == data_version(project, "toy")


def test_a_bad_batch_is_quarantined_and_the_version_is_unchanged(project: Project, ingested: Any, tmp_path: Path) -> None:
    recipe, before = ingested
    file = batch(tmp_path, HEADER + "5,1,a,50\n5,2,b,500\n5,3,c,-1\n")
    with pytest.raises(DataRejected, match=r"between y: 2 rows \(66\.7 %\); row 2: 500, row 3: -1") as caught:
        add_batch(recipe, file, project, quiet)
    assert "headrace data add toy" in str(caught.value.hint)
    assert data_version(project, "toy") == before and is_tracked(project)
    (folder,) = (project.quarantine / "toy").iterdir()
    assert str(folder) in str(caught.value)
    assert (folder / "new.csv").read_text() == file.read_text()
    assert list(pd.read_csv(folder / "failing_rows.csv")["row"]) == [2, 3]
    report = json.loads((folder / "report.json").read_text())
    assert report["success"] is False and Path(report["docs"]).is_file()
    assert report["docs"] in (folder / "data_docs.html").read_text()


def test_an_exact_duplicate_is_refused_by_name(project: Project, ingested: Any, toy_csv: Path, tmp_path: Path) -> None:
    recipe, before = ingested
    with pytest.raises(DataError, match=f"already added as batch {FIRST}"):
        add_batch(recipe, batch(tmp_path, toy_csv.read_text()), project, quiet)
    assert data_version(project, "toy") == before


@pytest.mark.parametrize("step", ["track", "publish"])
def test_a_batch_of_a_killed_process_is_published_by_the_next_one_once(
    project: Project, ingested: Any, tmp_path: Path, step: str
) -> None:
    recipe, _ = ingested
    file = batch(tmp_path, HEADER + "5,1,a,50\n")
    killed = get_context("spawn").Process(target=add_and_exit_before, args=(step, recipe, file, project.root))
    killed.start()
    killed.join()
    assert killed.exitcode == 9 and added(project) == []
    for _ in range(2):
        with contextlib.suppress(DataError):  # the second says that the rows were added
            add_batch(recipe, file, project, quiet)
    assert added(project) == [data_version(project, "toy").md5]


def add_and_exit_before(step: str, recipe: Recipe, file: Path, root: Path) -> None:
    setattr(commit if step == "track" else batches, step, lambda *arguments, **options: os._exit(9))
    add_batch(recipe, file, Project(root), quiet)


def added(project: Project) -> list[str]:
    """The versions of the data that were published."""
    with outbox.opened(project) as connection:
        rows = connection.execute("SELECT data FROM event WHERE name = 'data-added' ORDER BY seq").fetchall()
    return [json.loads(data)["data_md5"] for (data,) in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "no rows"),
        ("month,day,kin,y\n5,1,a,50\n", "no column 'kind'; did you mean 'kin'"),
        (HEADER + "5,1,a,50\n5,2", r"row 3 has 2 columns where 4 were expected"),
        (HEADER + "5,1,a,50\n5,one,a,51\n", r"data row 2: column 'day' has numbers in earlier batches, and 'one' here"),
    ],
)
def test_a_batch_that_cannot_be_read_changes_nothing(
    project: Project, ingested: Any, tmp_path: Path, text: str, message: str
) -> None:
    recipe, before = ingested
    with pytest.raises(DataError, match=message):
        add_batch(recipe, batch(tmp_path, text), project, quiet)
    assert data_version(project, "toy") == before


def test_a_batch_may_have_missing_values_and_fractions_in_integer_columns(
    project: Project, ingested: Any, tmp_path: Path
) -> None:
    recipe, _ = ingested
    add_batch(recipe, batch(tmp_path, HEADER + "5,,a,50.5\n"), project, quiet)
    frame = read_batches(project, recipe)
    assert frame["y"].iloc[-1] == 50.5 and pd.isna(frame["day"].iloc[-1]) and len(frame) == 41


def test_codes_of_digits_stay_text_in_a_text_column(project: Project, ingested: Any, tmp_path: Path) -> None:
    recipe, _ = ingested
    add_batch(recipe, batch(tmp_path, HEADER + "5,1,007,50\n"), project, quiet)
    assert read_batches(project, recipe)["kind"].iloc[-1] == "007"


def test_a_new_label_is_refused_unless_the_recipe_has_its_own_set(
    project: Project, make_recipe: Any, toy_csv: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(task="classification", target="kind")
    ingest(recipe, project, quiet)
    file = batch(tmp_path, HEADER + "5,1,z,50\n")
    with pytest.raises(DataRejected, match="in_set kind: 1 rows"):
        add_batch(recipe, file, project, quiet)
    named = {"type": "expect_column_values_to_be_in_set", "column": "kind", "value_set": ["a", "b", "z"]}
    wider = make_recipe(task="classification", target="kind", expect=[named])
    assert add_batch(wider, file, project, quiet).rows == 41


def test_adding_before_any_data_is_refused_with_the_command_to_run(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    with pytest.raises(DataError, match="no data yet"):
        add_batch(make_recipe(), toy_csv, project, quiet)


def test_a_damaged_batch_is_reported(project: Project, ingested: Any) -> None:
    recipe, _ = ingested
    path = batch_files(project, "toy")[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        read_batches(project, recipe)


def test_a_source_in_parts_is_ingested_split_and_extended_by_known_parts_only(
    project: Project, make_recipe: Any, tmp_path: Path
) -> None:
    for name, values in (("a", range(40)), ("b", range(40, 50))):
        (project.root / f"{name}.csv").write_text("n,Y\n" + "".join(f"{n},{n}\n" for n in values))
    recipe = make_recipe(
        source={"train": "a.csv", "test": "b.csv"},
        rename={"Y": "y"},
        columns=["n", "y"],
        split={"predefined": {}, "validation": 0.2},
    )
    version = ingest(recipe, project, quiet)
    assert ingest(recipe, project, quiet) == version and version.rows == 50
    parts = split(read_batches(project, recipe), recipe)
    assert set(parts.test["n"]) == set(range(40, 50)) and list(parts.train.columns) == ["n", "y"]
    with pytest.raises(DataError, match="no column 'part'"):
        add_batch(recipe, batch(tmp_path, "n,y\n90,90\n"), project, quiet)
    with pytest.raises(DataRejected, match=r"in_set part: 1 rows .* 'tset'"):
        add_batch(recipe, batch(tmp_path, "n,y,part\n90,90,tset\n"), project, quiet)
    assert add_batch(recipe, batch(tmp_path, "n,y,part\n90,90,test\n"), project, quiet).rows == 51
    (project.root / "b.csv").write_text("n,Y\n1,1\n")
    assert ingest(recipe, project, quiet).rows == 42


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "cp1252"},
        {"drop_duplicates": ["kind"]},
        {"rename": {"kind": "sort"}},
        {"join": {"source": "more.csv", "key": "day"}},
        {"source": {"all": "toy.csv"}},
        {"skip_rows": 1},
    ],
)
def test_other_read_options_make_another_key(project: Project, make_recipe: Any, toy_csv: Path, change: dict[str, Any]) -> None:
    (project.root / "more.csv").write_text("day,more\n1,2\n")
    assert source_key(make_recipe(), project) != source_key(make_recipe(**change), project)


def test_the_key_of_a_plain_source_never_changes(project: Project, make_recipe: Any) -> None:
    """The key that a plain recipe had before sources could have several files: another one would make new versions of all."""
    recipe = make_recipe(source="https://example.org/t.csv", sha256="0" * 64)
    assert source_key(recipe, project) == "3a3e59a0b2af3aa0a3ab5ee8e4320cfe33d1e6b942507a5efd15f5de8b7b151d"


def test_a_batch_may_be_in_utf8_although_the_source_is_not(project: Project, make_recipe: Any, tmp_path: Path) -> None:
    (project.root / "toy.csv").write_bytes("text,y\n“é”,1\n“è”,2\n".encode("mac_roman"))
    recipe = make_recipe(encoding="mac_roman")
    ingest(recipe, project, quiet)
    add_batch(recipe, batch(tmp_path, "text,y\nü,3\n"), project, quiet)
    (tmp_path / "mac.csv").write_bytes("text,y\nö,4\n".encode("mac_roman"))
    add_batch(recipe, tmp_path / "mac.csv", project, quiet)
    assert read_batches(project, recipe)["text"].tolist() == ["“é”", "“è”", "ü", "ö"]
