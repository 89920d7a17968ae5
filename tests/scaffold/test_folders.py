"""`headrace new` for folders: what it finds in pictures and texts, and that the recipe reads what it was written for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks.own_data_sources import write_workbook
from headrace import console
from headrace.cli.main import cli
from headrace.data.assembly import assemble
from headrace.data.ingest import fetch_source
from headrace.data.pictures.sources import listings_of
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from tests.bento_projects import run_stages
from tests.picture_files import COLOURS, class_folders, file_of, noisy, packed

WORDS = {"bad": "awful poor broken sad cold", "good": "fine great lovely happy warm"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(root)
    return Project(root)


def new(*arguments: str, code: int = 0) -> Any:
    """What `headrace new` finds; its message, for a refusal."""
    done = CliRunner().invoke(cli, ["new", "x", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.output)


def stored_paths(recipe: Recipe, project: Project) -> dict[str, str]:
    """Path and label of each picture that the recipe reads."""
    rows = [row for one in listings_of(recipe, project, project.state / "cache") for row in one.rows.to_pylist()]
    return {row["path"]: row[recipe.data.target] for row in rows}


def texts(root: Path, each: int = 15, encoding: str = "utf-8") -> None:
    rng = np.random.default_rng(0)
    for label, words in WORDS.items():
        (root / label).mkdir(parents=True)
        for i in range(each):
            text = " ".join(rng.choice([*words.split(), "the", "room", "café"], 12))
            (root / label / f"{i}.txt").write_bytes(f"{text} é".encode(encoding))


@pytest.mark.parametrize("form", ["photos", "photos.zip", "photos.tar.gz"])
def test_a_folder_or_archive_of_classes(form: str, project: Project) -> None:
    class_folders(project.root / "photos", each=8)
    (project.root / "photos" / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (project.root / "photos" / "red" / "notes.txt").write_text("x")
    if form != "photos":
        packed(project.root / "photos", project.root / form, "top/")
        shutil.rmtree(project.root / "photos")
    found = new("--data", form)
    assert found["classes"] == {"red": 9, "blue": 8, "green": 8} and found["pictures"] == 25
    assert (found["channels"], found["formats"], found["ignored"]) == (3, {"PNG": 9, "JPEG": 9, "WebP": 6}, 1)
    assert [path.removeprefix("top/") for path in found["broken"]] == ["red/cut.jpg"]
    assert 12 <= found["width"]["min"] <= found["width"]["median"] <= found["width"]["max"] < 40
    recipe = load_recipe("x", project)
    assert recipe.data.source == form and recipe.data.pictures is not None and recipe.data.pictures.size == (32, 32)
    assert {path.removeprefix("top/").split("/")[0] for path in stored_paths(recipe, project)} == set(COLOURS)


def test_grey_pictures_of_one_size_keep_it(project: Project) -> None:
    for name in ("a", "b"):
        (project.root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            grey = noisy((128, 128, 128), 20, 30, i).mean(2).astype(np.uint8)
            (project.root / "photos" / name / f"{i}.png").write_bytes(file_of(grey))
    assert new("--data", "photos")["channels"] == 1
    pictures = load_recipe("x", project).data.pictures
    assert pictures is not None and (pictures.size, pictures.channels, pictures.fit) == ((20, 30), 1, "resize")


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.json"])
@pytest.mark.parametrize("form", ["table", "folder", "zip"])
def test_a_table_of_paths_and_labels(name: str, form: str, project: Project) -> None:
    paths = class_folders(project.root / "set", each=8)
    frame = pd.DataFrame({"file": paths, "species": [path.split("/")[0] for path in paths], "n": range(24)})
    table = project.root / "set" / name
    if name.endswith("csv"):
        frame.to_csv(table, index=False)
    else:
        frame.to_json(table, orient="records", lines=name.endswith("jsonl"))
    for path in paths:  # names of folders are not labels here
        (project.root / "set" / path).rename(project.root / "set" / path.replace("/", "-"))
    table.write_text(table.read_text().replace("\\/", "/").replace("/", "-"))
    data = {"table": f"set/{name}", "folder": "set", "zip": "set.zip"}[form]
    if form == "zip":
        packed(project.root / "set", project.root / "set.zip")
    found = new("--data", data)
    assert (found["pictures"], found["classes"]) == (24, {"blue": 8, "green": 8, "red": 8})
    recipe = load_recipe("x", project)
    assert recipe.data.target == "species" and recipe.data.pictures is not None and recipe.data.pictures.path == "file"
    assert all(path.startswith(label) for path, label in stored_paths(recipe, project).items())


@pytest.mark.parametrize("form", ["table", "zip"])
@pytest.mark.parametrize("kind", ["semicolons", "tabs", "utf-16", "no header", "parquet", "xlsx"])
def test_a_table_of_paths_in_any_dialect(kind: str, form: str, project: Project) -> None:
    paths = class_folders(project.root / "set", each=8)
    frame = pd.DataFrame({"file": [path.replace("/", "-") for path in paths], "animal": [p.split("/")[0] for p in paths]})
    for path in paths:  # names of folders are not labels here
        (project.root / "set" / path).rename(project.root / "set" / path.replace("/", "-"))
    name = {"parquet": "labels.parquet", "xlsx": "labels.xlsx", "tabs": "labels.tab"}.get(kind, "labels.csv")
    table = project.root / "set" / name
    match kind:
        case "parquet":
            frame.to_parquet(table)
        case "xlsx":
            write_workbook(table, "Labels", frame)
        case "no header":
            frame.to_csv(table, index=False, header=False)
        case "tabs":
            frame.to_csv(table, index=False, sep="\t")
        case _:
            frame.to_csv(table, index=False, sep=";", encoding="utf-16" if kind == "utf-16" else "utf-8")
    target = "column_2" if kind == "no header" else "animal"
    if form == "zip":
        packed(project.root / "set", project.root / "set.zip")
    found = new("--data", f"set/{name}" if form == "table" else "set.zip", "--target", target)
    assert (found["task"], found["classes"]) == ("image-classification", {"blue": 8, "green": 8, "red": 8})
    stored = stored_paths(load_recipe("x", project), project)
    assert len(stored) == 24 and all(path.startswith(label) for path, label in stored.items())


TARGETS: list[tuple[str, list[str], str, str, str]] = [
    ("photos.csv", ["--target", "x", "--target", "y"], "image-regression", "target: [x, y]", "scaled_mae"),
    ("photos.csv", ["--target", "x,y", "--task", "image-regression"], "image-regression", "target: [x, y]", "scaled_mae"),
    ("photos.json", ["--target", "x"], "image-regression", "target: x", "mae"),
    ("photos.csv", ["--target", "stars"], "image-classification", "target: stars", "accuracy"),
    ("photos.csv", ["--target", "stars", "--task", "regression"], "image-regression", "target: stars", "mae"),
    (
        "photos.csv",
        ["--target", "sunny", "--target", "wet"],
        "multilabel-image-classification",
        "target: [sunny, wet]",
        "log_loss",
    ),
    ("photos.csv", ["--target", "tags"], "multilabel-image-classification", "label_separator: '|'", "log_loss"),
    ("photos.json", ["--target", "tags"], "multilabel-image-classification", "target: tags", "log_loss"),
    ("photos.jsonl", ["--target", "tags"], "multilabel-image-classification", "target: tags", "log_loss"),
]


def photos(root: Path) -> None:
    """Tables of 40 pictures with numbers, of which some are missing, and labels."""
    (root / "p").mkdir()
    rows: list[dict[str, Any]] = []
    for i in range(40):
        (root / "p" / f"{i}.png").write_bytes(file_of(noisy(COLOURS["red"], 12, 12, i)))
        tags = [name for name, given in (("sunny", i % 2), ("wet", i % 3)) if given]
        truths = {"sunny": bool(i % 2), "wet": bool(i % 3)}
        rows.append({"file": f"p/{i}.png", "x": i / 10 if i else None, "y": 3 * i, "stars": i % 5, **truths, "tags": tags})
    frame = pd.DataFrame(rows)
    (root / "photos.json").write_text(json.dumps(rows))
    frame.to_json(root / "photos.jsonl", orient="records", lines=True)
    frame.assign(tags=["|".join(tags) for tags in frame.tags]).to_csv(root / "photos.csv", index=False)


@pytest.mark.parametrize(("data", "options", "task", "line", "metric"), TARGETS)
def test_a_table_of_pictures_with_numbers_or_several_labels(
    data: str, options: list[str], task: str, line: str, metric: str, project: Project
) -> None:
    photos(project.root)
    assert new("--data", data, *options)["task"] == task
    recipe, text = load_recipe("x", project), (project.recipes / "x.yaml").read_text()
    assert line in text and list(recipe.gate.require) == [metric]
    rows = pd.concat([one.rows.to_pandas() for one in listings_of(recipe, project, project.state / "cache")])
    assert len(rows) == (39 if "x" in recipe.data.targets else 40) and set(recipe.data.targets) < set(rows.columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "photos.csv", "--target", "x", "--target", "tags"], "column 'tags' holds text"),
        (["--data", "photos.csv", "--target", "tags", "--task", "image-regression"], "a regression predicts numbers"),
        (["--data", "photos.csv", "--target", "x", "--task", "text-classification"], "does not take pictures"),
        (["--data", "photos.csv", "--target", "x", "--target", "z"], "unknown column 'z'"),
        (["--data", "set", "--target", "x", "--target", "y"], "the name of a folder is the only label of its files"),
        (["--data", "set", "--task", "image-regression"], "a regression predicts numbers"),
    ],
)
def test_what_a_table_of_pictures_does_not_have_is_said(arguments: list[str], message: str, project: Project) -> None:
    photos(project.root)
    class_folders(project.root / "set", each=8)
    done = CliRunner().invoke(cli, ["new", "x", *arguments])
    assert message in str(done.exception), done.output
    assert not (project.recipes / "x.yaml").exists()


def test_a_table_without_pictures_is_no_table_of_pictures(project: Project) -> None:
    pd.DataFrame({"a": [1, 2, 3] * 20, "word": ["x.jpg is a word", "y"] * 30}).to_csv("t.csv", index=False)
    assert new("--data", "t.csv", "--target", "word")["task"] == "classification"


def test_a_divided_folder_keeps_its_test_pictures(project: Project) -> None:
    class_folders(project.root / "set" / "train", each=8)
    class_folders(project.root / "set" / "test", each=3, seed=1)
    found = new("--data", "set")
    assert found["classes"] == {"blue": 11, "green": 11, "red": 11}
    recipe = load_recipe("x", project)
    assert recipe.data.parts == ["test", "train"] and recipe.data.split.predefined is not None
    listings = listings_of(recipe, project, project.state / "cache")
    assert [(one.rows.num_rows, one.rows["part"][0].as_py()) for one in listings] == [(9, "test"), (24, "train")]


@pytest.mark.parametrize("form", ["reviews", "reviews.zip", "reviews.tar.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_a_folder_or_archive_of_texts(encoding: str, form: str, project: Project) -> None:
    texts(project.root / "reviews", encoding=encoding)
    if form != "reviews":
        (project.root / "reviews" / ".DS_Store").write_bytes(b"\0\1")
        packed(project.root / "reviews", project.root / form, "top/")
        shutil.rmtree(project.root / "reviews")
    found = new("--data", form)
    assert (found["texts"], found["classes"], found["encoding"]) == (30, {"bad": 15, "good": 15}, encoding)
    check_texts(load_recipe("x", project), project)


def check_texts(recipe: Recipe, project: Project) -> None:
    table = assemble(fetch_source(recipe, project, console.report), recipe.data).table.to_pandas()
    assert recipe.task == "text-classification" and table["label"].value_counts().to_dict() == {"bad": 15, "good": 15}
    assert table["text"].str.endswith(" é").all()
    assert all(Path(file).parent.name == label for file, label in zip(table["file"], table["label"], strict=True))


@pytest.mark.parametrize("ending", ["", ".eml", ".TXT"])
def test_a_folder_of_texts_with_other_endings(ending: str, project: Project) -> None:
    texts(project.root / "mails")
    for path in list((project.root / "mails").rglob("*.txt")):
        path.rename(path.with_suffix(ending))
    assert new("--data", "mails")["texts"] == 30
    check_texts(load_recipe("x", project), project)


def texts_below(root: Path) -> None:
    texts(root / "a")
    for label in WORDS:
        (root / "a" / label).rename(root / "a" / f"old-{label}")
        (root / "a" / label).mkdir()
        (root / "a" / f"old-{label}").rename(root / "a" / label / "2024")


def texts_beside(root: Path) -> None:
    texts(root / "a")
    (root / "a" / "good" / "model.bin").write_bytes(b"\0")
    packed(root / "a", root / "a.zip")


def tables(root: Path) -> None:
    (root / "a").mkdir()
    for name in ("one.csv", "two.csv"):
        (root / "a" / name).write_text("x,y\n1,2\n")
    packed(root / "a", root / "a.zip")


def binary(root: Path) -> None:
    for label in WORDS:
        (root / "a" / label).mkdir(parents=True)
        (root / "a" / label / "x.npy").write_bytes(b"\x93NUMPY\0\0")


def test_a_table_of_a_text_and_a_label(project: Project) -> None:
    rng = np.random.default_rng(0)
    rows = [(" ".join(rng.choice([*WORDS[label].split(), "the"], 8)) + f" {i}", label) for i in range(40) for label in WORDS]
    pd.DataFrame(rows, columns=["text", "stars"]).assign(id=range(80)).to_csv(project.root / "reviews.csv", index=False)
    found = new("--data", "reviews.csv", "--target", "stars")
    roles = {column["name"]: column["role"] for column in found["columns"]}
    assert (found["task"], roles) == ("text-classification", {"text": "text", "stars": "target", "id": "left out"})
    recipe = load_recipe("x", project)
    assert recipe.data.columns == ["text", "stars"] and recipe.data.text is not None and recipe.data.text.column == "text"


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda root: class_folders(root / "a"), ["--data", "a/red"], "no folder with pictures"),
        (
            lambda root: class_folders(root / "a", each=2),
            ["--data", "a"],
            "6 pictures; training and testing require at least 20",
        ),
        (lambda root: None, ["--data", "photos"], "no such file; known: dvc.yaml"),
        (texts_below, ["--data", "a"], "30 texts are in folders below those of the classes, such as bad/2024/0.txt"),
        (texts_beside, ["--data", "a.zip"], "the archive has other files beside the texts (1), such as good/model.bin"),
        (lambda root: class_folders(root / "a"), ["--data", "a/*/*.jpg"], "a folder of pictures is needed, not a picture or"),
        (tables, ["--data", "a.zip"], "the archive has 2 files (2 .csv), but no single table"),
        (binary, ["--data", "a"], "the folder has 2 files (2 .npy), but no table"),
        (lambda root: (root / "empty").mkdir(), ["--data", "empty"], "the folder is empty"),
        (lambda root: (root / "t.csv").write_text("a,b\n1,2\n"), ["--data", "t.csv"], "no column can be predicted"),
    ],
)
def test_what_cannot_be_learned_from_is_said_now(make: Any, arguments: list[str], message: str, project: Project) -> None:
    make(project.root)
    done = CliRunner().invoke(cli, ["new", "x", *arguments])
    assert message in str(done.exception), done.output
    assert not (project.recipes / "x.yaml").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_the_recipe_runs_to_its_evaluation(kind: str, project: Project) -> None:
    if kind == "pictures":
        class_folders(project.root / "set", each=40)
    else:
        texts(project.root / "set", each=80)
    new("--data", "set")
    run_stages(project, "x")
    metrics = json.loads((project.artifacts("x") / "evaluation" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9
