from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from headrace.data.sources.archives import extract, listing_sha256, matching
from headrace.errors import SourceError


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_member_is_found_below_the_top_folder(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "p.tar.gz", {"pkg-1.0/pkg/t.csv": b"a\n1\n"})
    extract(archive, "pkg/t.csv", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"a\n1\n"


def test_a_wrong_path_suggests_the_member_of_the_same_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as archive:
        archive.writestr("pkg/data/t.csv", "a\n")
    with pytest.raises(SourceError, match=r"did you mean 'pkg/data/t\.csv'"):
        extract(tmp_path / "p.whl", "pkg/t.csv", tmp_path / "out")


def test_nothing_is_written_to_paths_in_the_archive(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    extract(tar_of(tmp_path / "p.tar.gz", {"../evil": b"x"}), "../evil", folder / "out")
    assert [p.name for p in folder.iterdir()] == ["out"] and not (tmp_path / "evil").exists()


def test_links_are_not_extracted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        link = tarfile.TarInfo("t.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(SourceError, match="does not contain"):
        extract(tmp_path / "p.tar", "t.csv", tmp_path / "out")


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="neither a zip nor a tar"):
        extract(tmp_path / "p.zip", "t.csv", tmp_path / "out")


TEXTS = {"pkg-1.0/texts/b_gut.txt": b"two\n", "pkg-1.0/texts/a_gut.txt": b"one\n", "pkg-1.0/texts/a_gut_f.txt": b"old\n"}


def test_a_pattern_extracts_all_matching_members_below_the_top_folder(tmp_path: Path) -> None:
    extract(tar_of(tmp_path / "p.tar.gz", TEXTS), "texts/*_gut.txt", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == {
            "texts/a_gut.txt": b"one\n",
            "texts/b_gut.txt": b"two\n",
        }


def test_a_star_matches_folders_too_and_other_characters_are_literal() -> None:
    assert matching("p/*.py", ["p/a.py", "p/q/b.py", "p/c.pyi", "x/p/a.py"]) == ["p/a.py", "p/q/b.py"]
    assert matching("p[1]/*.py", ["p1/a.py", "p[1]/b.py"]) == ["p[1]/b.py"]


def test_a_pattern_without_matches_suggests_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"matches 'text/\*_gut\.txt'; did you mean 'texts'"):
        extract(tar_of(tmp_path / "p.tar.gz", TEXTS), "text/*_gut.txt", tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_the_hash_of_many_files_is_that_of_sha256sums_output(tmp_path: Path) -> None:
    extract(tar_of(tmp_path / "p.tar.gz", TEXTS), "texts/*.txt", tmp_path / "out.zip")
    (tmp_path / "texts").mkdir()
    for name, content in TEXTS.items():
        (tmp_path / name.partition("/")[2]).write_bytes(content)
    printed = subprocess.run(
        "sha256sum $(ls texts/*.txt | LC_ALL=C sort)", shell=True, cwd=tmp_path, capture_output=True
    ).stdout
    assert listing_sha256(tmp_path / "out.zip") == hashlib.sha256(printed).hexdigest()
