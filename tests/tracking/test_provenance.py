"""What stands for the code that runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.tracking import provenance
from tests.conftest import ROOT


def test_the_code_digest_changes_with_a_file_of_either_package_and_not_with_what_python_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("headrace", "bentos"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    first = provenance.code_digest()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "headrace" / "tracking" / "provenance.py"))
    assert provenance.code_digest() == first  # wherever it lies
    (tmp_path / "headrace" / "desk" / "__pycache__").mkdir()
    (tmp_path / "headrace" / "desk" / "__pycache__" / "app.cpython-311.pyc.140234").write_bytes(b"being compiled")
    assert provenance.code_digest() == first
    found = {first}
    for file in ("headrace/services/api/docs.html", "headrace/runtime/http.py"):
        with (tmp_path / file).open("a") as handle:
            handle.write("\n")
        found.add(provenance.code_digest())
    (tmp_path / "headrace" / "desk" / "new.py").touch()
    assert len(found | {provenance.code_digest()}) == 4
