"""Pictures of folders, archives and tables: which there are, what they are called, and what is stored of them."""

from __future__ import annotations

import io
import json
import resource
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.data.pictures.checks import check_picture
from headrace.data.pictures.containers import open_container
from headrace.data.pictures.listing import folder_labels, list_pictures
from headrace.data.pictures.shards import write_pictures
from headrace.errors import DataError
from headrace.recipe.data import DataConfig
from headrace.recipe.recipe import parse_recipe
from headrace.runtime.images import InvalidImage
from tests.picture_files import COLOURS, class_folders, file_of, noisy, packed


def config(**fields: Any) -> DataConfig:
    image = {"size": [8, 8], **fields.pop("image", {})}
    return DataConfig.model_validate({"source": "x", "target": "label", "image": image, **fields})


def stored(place: Path, to: Path, files: Path | None = None, **fields: Any) -> list[dict[str, Any]]:
    write_pictures([list_pictures(place, config(**fields), None, files)], to, "x")
    return sorted(pq.read_table(to).to_pylist(), key=lambda row: row["path"])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_says(width: int, height: int, body: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(body)) + png_chunk(b"IEND", b"")


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a/1.png", "b/2.png"], ["a", "b"]),
        (["set/v1/a/1.png", "set/v1/b/c/2.png"], ["a", "b"]),
        (["a/x/1.png", "a/y/2.png", "b/z/3.png"], ["a", "a", "b"]),
        (["only/1.png", "only/2.png"], ["only", "only"]),
        (["1.png", "a/2.png"], [None, "a"]),
        (["1.png"], [None]),
        ([], []),
    ],
)
def test_the_label_is_the_first_folder_below_those_that_all_share(paths: list[str], labels: list[str | None]) -> None:
    assert list(folder_labels(paths).values()) == labels


@pytest.mark.parametrize("form", ["folder", "set.zip", "set.tar", "set.tar.gz"])
def test_a_folder_and_its_archives_give_the_same_pictures(form: str, tmp_path: Path) -> None:
    paths = class_folders(tmp_path / "set")
    (tmp_path / "set" / "red" / "notes.txt").write_text("no picture")
    (tmp_path / "set" / "red" / ".DS_Store").write_bytes(b"hidden")
    place = tmp_path / "set" if form == "folder" else packed(tmp_path / "set", tmp_path / form, "top/")
    listing = list_pictures(place, config(), None, None)
    assert [name.removeprefix("top/") for name in listing.ignored] == ["red/notes.txt"] and not listing.left_out
    rows = stored(place, tmp_path / "out.parquet")
    assert [row["path"].removeprefix("top/") for row in rows] == paths
    for row, path in zip(rows, paths, strict=True):
        assert row["image"] == (tmp_path / "set" / path).read_bytes()
        assert row["label"] == path.split("/")[0] and 12 <= row["width"] < 40 and 12 <= row["height"] < 40


def test_the_file_depends_on_the_pictures_alone(tmp_path: Path) -> None:
    class_folders(tmp_path / "a")
    class_folders(tmp_path / "b")
    for name in "ab":
        stored(tmp_path / name, tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


# --- tables -----------------------------------------------------------------------------------------------------------


def table(root: Path, name: str, paths: list[str], column: str = "file", **more: list[Any]) -> Path:
    rows = [{column: path, "label": path.split("/")[0], **{k: v[i] for k, v in more.items()}} for i, path in enumerate(paths)]
    if name.endswith(".csv"):
        text = ",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
    elif name.endswith(".json"):
        text = json.dumps([{**row, "nested": {"any": [1]}, "good": True} for row in rows])
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.json"])
@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_a_table_of_paths_and_labels(name: str, form: str, tmp_path: Path) -> None:
    paths = class_folders(tmp_path / "set")
    place = table(tmp_path / "set", name, paths)
    if form != "folder":
        place = packed(tmp_path / "set", tmp_path / f"set.{form}", "top/")
    rows = stored(place, tmp_path / "out.parquet", image={"path": "file"})
    assert [(row["path"].removeprefix("top/"), row["label"]) for row in rows] == [(p, p.split("/")[0]) for p in paths]
    assert set(rows[0]) == {"path", "width", "height", "image", "label"}


def test_paths_without_folder_or_ending_and_pictures_elsewhere(tmp_path: Path) -> None:
    paths = class_folders(tmp_path / "set", each=1)
    (tmp_path / "set" / "red" / "0.png").rename(tmp_path / "set" / "red" / "cherry.png")
    archive = packed(tmp_path / "set", tmp_path / "set.zip", "photos/")
    asked = ["blue/0", "photos\\green\\0.png", "cherry.png", "gone.jpg"]
    place = table(tmp_path, "labels.csv", asked, who=["ann", "bob", "ann", "eve"])
    listing = list_pictures(place, config(image={"path": "file"}, split={"group": {"column": "who"}}), None, archive)
    assert listing.rows["path"].to_pylist() == ["photos/blue/0.png", "photos/green/0.png", "photos/red/cherry.png"]
    assert listing.rows["who"].to_pylist() == ["ann", "bob", "ann"] and listing.left_out == {"gone.jpg": "no such file"}
    assert len(paths) == 3


def test_a_table_without_the_columns_names_the_near_miss(tmp_path: Path) -> None:
    place = table(tmp_path, "labels.csv", class_folders(tmp_path), column="file")
    with pytest.raises(DataError, match="no column 'files'; did you mean 'file'"):
        list_pictures(place, config(image={"path": "files"}), None, None)
    with pytest.raises(DataError, match="no target column 'lable'; did you mean 'label'"):
        list_pictures(place, config(target="lable", image={"path": "file"}), None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "none", "no such file or folder"),
        (lambda root: table(root, "labels.csv", ["a/1.png"]), "neither a folder nor a zip or tar"),
        (lambda root: (root / "empty").mkdir() or root / "empty", "no folder with pictures .* among 0 files"),
    ],
)
def test_a_source_without_pictures_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list_pictures(make(tmp_path), config(), None, None)


def test_pictures_with_a_table_beside_them_are_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(file_of(noisy(COLOURS["red"], 9, 9)))
    table(tmp_path, "labels.csv", ["1.png"])
    with pytest.raises(DataError, match=r"it has the table labels\.csv: name it in data\.source, with data\.image\.path"):
        list_pictures(tmp_path, config(), None, None)


# --- broken and hostile files -----------------------------------------------------------------------------------------


def broken_files() -> dict[str, tuple[bytes, str]]:
    red = noisy(COLOURS["red"], 60, 60)
    png, jpeg, webp = (file_of(red, kind) for kind in ("PNG", "JPEG", "WEBP"))
    middle = len(png) // 2
    return {
        "empty.jpg": (b"", "empty"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "cannot be read|damaged"),
        "cut.webp": (webp[: len(webp) // 2], "damaged|cannot be read"),
        "flipped.png": (png[:middle] + bytes([png[middle] ^ 255]) + png[middle + 1 :], "damaged"),
        "page.png": (b"<html>404</html>", "another format"),
        "moving.gif": (b"GIF89a" + b"\0" * 20, "a GIF file"),
        "vast.png": (png_that_says(100_000, 100_000, b""), "far more pixels"),
        "large.png": (png_that_says(9_000, 9_000, b"\0" * 9_001 * 9_000), "81,000,000|9000 × 9000 pixels"),
        "many.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * (64 * 2**20), "bytes; at most"),
    }


@pytest.mark.parametrize("name", list(broken_files()))
def test_a_broken_picture_is_named_and_takes_no_memory(name: str) -> None:
    raw, reason = broken_files()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidImage, match=reason):
        check_picture(raw)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_broken_pictures_are_left_out_of_what_is_stored(form: str, tmp_path: Path) -> None:
    paths = class_folders(tmp_path / "set")
    for name, (raw, _) in broken_files().items():
        (tmp_path / "set" / "red" / name).write_bytes(raw)
    place = tmp_path / "set" if form == "folder" else packed(tmp_path / "set", tmp_path / f"set.{form}")
    written = write_pictures([list_pictures(place, config(), None, None)], tmp_path / "out.parquet", "x")
    assert sorted(written.rows["path"].to_pylist()) == paths
    assert {path.removeprefix("red/") for path in written.broken} == set(broken_files())


def test_a_jpeg_with_something_behind_its_end_is_whole() -> None:
    jpeg = file_of(noisy(COLOURS["red"], 20, 30), "JPEG")
    assert check_picture(jpeg + b"\0" * 10_000) == check_picture(jpeg) == (30, 20)


def test_a_source_of_broken_pictures_alone_is_refused_with_their_paths(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 12 pictures can be used:\n  a/00\.png: the file is empty") as caught:
        stored(tmp_path, tmp_path / "out.parquet")
    assert "a/09.png" in caught.value.message and "a/10.png" not in caught.value.message


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "zip"])
def test_a_truncated_archive_is_refused_whole(kind: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "set", each=40)
    archive = packed(tmp_path / "set", tmp_path / f"set.{kind}")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=r"damaged|neither a folder"):
        stored(archive, tmp_path / "out.parquet")


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", each=1)
    archive = packed(tmp_path / "set", tmp_path / "set.tar")
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("red/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link, io.BytesIO())
    assert "red/link.png" not in open_container(archive).names()


def test_row_groups_bound_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "set", each=10)
    monkeypatch.setattr("headrace.data.pictures.shards.GROUP_BYTES", 4_000)
    stored(tmp_path / "set", tmp_path / "out.parquet")
    footer = pq.read_metadata(tmp_path / "out.parquet")
    assert footer.num_rows == 30 and footer.num_row_groups > 3


# --- the recipe -------------------------------------------------------------------------------------------------------

RECIPE = "{{name: x, task: image-classification, data: {{source: {source}, target: {target}, image: {image}{more}}}, expect: [], model: {{name: cnn}}, train: {{}}, serve: {{}}}}"  # noqa: E501


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "7"}, "expected height and width"),
        ({"image": "{size: [32, 32], chanels: 3}"}, "data.image.chanels: unknown field; did you mean 'channels'"),
        ({"image": "{size: [32, 0]}"}, r"data.image.size.1: .*greater than or equal to 1"),
        ({"image": "{size: [32, 32], channels: 4}"}, "data.image.channels: Input should be 1 or 3"),
        ({"image": "{size: [9, 9], files: photos}"}, "image.path: name the column of the table"),
        ({"target": "path"}, "target: a table of pictures has its own column 'path'"),
        ({"image": "{size: [9, 9], path: file, files: {a: b}}"}, "image.files: has to have the same form as source"),
        ({"more": ", text: {column: t}"}, "text: does not apply to pictures in files"),
    ],
)
def test_a_mistake_in_the_section_is_explained(fields: dict[str, str], message: str) -> None:
    from headrace.errors import RecipeError

    given = {"source": "x", "target": "label", "image": "{size: [9, 9]}", "more": "", **fields}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(RECIPE.format(**given), "recipes/x.yaml")
