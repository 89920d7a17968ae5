from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from headrace.data.archives import extract
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


def test_a_wrong_path_offers_the_member_of_the_same_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as archive:
        archive.writestr("pkg/data/t.csv", "a\n")
    with pytest.raises(SourceError, match=r"did you mean 'pkg/data/t\.csv'"):
        extract(tmp_path / "p.whl", "pkg/t.csv", tmp_path / "out")


def test_nothing_is_written_where_the_archive_says(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    extract(tar_of(tmp_path / "p.tar.gz", {"../evil": b"x"}), "../evil", folder / "out")
    assert [p.name for p in folder.iterdir()] == ["out"] and not (tmp_path / "evil").exists()


def test_a_link_is_no_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        link = tarfile.TarInfo("t.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(SourceError, match="holds no"):
        extract(tmp_path / "p.tar", "t.csv", tmp_path / "out")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="neither a zip nor a tar"):
        extract(tmp_path / "p.zip", "t.csv", tmp_path / "out")
