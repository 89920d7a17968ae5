"""What stands for the code that runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace import identity
from tests.conftest import ROOT


def test_the_code_digest_changes_with_a_file_of_either_package_and_not_with_what_python_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("headrace", "bentos"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    first = identity.code_digest()
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "headrace" / "identity.py"))
    assert identity.code_digest() == first  # wherever it lies
    (tmp_path / "headrace" / "desk" / "__pycache__").mkdir()
    (tmp_path / "headrace" / "desk" / "__pycache__" / "app.cpython-311.pyc.140234").write_bytes(b"being compiled")
    assert identity.code_digest() == first
    found = {first}
    for file in ("headrace/desk/docs.html", "bentos/http.py"):
        with (tmp_path / file).open("a") as handle:
            handle.write("\n")
        found.add(identity.code_digest())
    (tmp_path / "headrace" / "desk" / "new.py").touch()
    assert len(found | {identity.code_digest()}) == 4
