"""The lock files: every package has hashes, torch those of each build that is known, and the three files agree."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headrace.serving.packaging import wheelhouse
from headrace.serving.packaging.code_files import REQUIREMENTS
from headrace.settings import Settings
from tests.paths import ROOT

A, B, C, D = (digit * 64 for digit in "abcd")
RESOLVED = f"""\
click==8.2.1 ; sys_platform != 'win32' \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
nvidia-cublas==13.1.1.3 \\
    --hash=sha256:{A}
nvidia-ml-py==13.6 \\
    --hash=sha256:{A}
torch==2.13.0 \\
    --hash=sha256:{B}
triton==3.7.1 \\
    --hash=sha256:{A}
tritonclient==2.6 \\
    --hash=sha256:{A}
"""


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "deploy" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock"] = module
    spec.loader.exec_module(module)
    return module


def test_every_package_of_every_lock_has_hashes(lock: ModuleType) -> None:
    for path in (lock.LOCK, lock.CUDA, ROOT / "requirements-uv.lock", REQUIREMENTS):
        lines = [line for line in path.read_text().splitlines() if line and line[0] not in " #"]
        pins = lock.read(path.read_text())
        assert len(pins) == len(lines) and [pin for pin in pins.values() if not pin.hashes] == [], path


def test_the_serving_image_has_the_hashes_of_the_lock(lock: ModuleType) -> None:
    assert lock.with_hashes(REQUIREMENTS.read_text(), lock.read(lock.LOCK.read_text())) == REQUIREMENTS.read_text()


def test_cudas_packages_are_apart_and_torch_keeps_the_hashes_of_its_cpu_builds(lock: ModuleType) -> None:
    resolved = lock.read(RESOLVED)
    assert lock.write(resolved.values()) == RESOLVED
    before = lock.read(f"torch==2.13.0 \\\n    --hash=sha256:{C}\n")
    both, cuda = lock.split(resolved, before, [D])
    assert {pin.name for pin in cuda} == {"nvidia-cublas", "triton"}
    assert {pin.name for pin in both} == {"click", "nvidia-ml-py", "torch", "tritonclient"}
    assert lock.read(lock.write(both))["torch"].hashes == {B, C, D}
    both, _ = lock.split(resolved, lock.read(f"torch==2.12.0 \\\n    --hash=sha256:{C}\n"), [])
    assert lock.read(lock.write(both))["torch"].hashes == {B}, "of another version"
    assert lock.read(lock.write(both))["click"].marker == "sys_platform != 'win32'"


@pytest.mark.parametrize(
    ("marker", "kept"),
    [
        ("", ""),
        ("sys_platform == 'linux'", ""),
        ("platform_machine == 'aarch64' or platform_machine == 'x86_64'", ""),
        ("implementation_name != 'PyPy' and sys_platform != 'emscripten'", ""),
        ("sys_platform == 'win32'", None),
        ("python_full_version >= '3.12' and sys_platform == 'emscripten'", None),
        ("python_full_version < '3.11.3'", "python_full_version < '3.11.3'"),
        ("python_full_version >= '3.13'", "python_full_version >= '3.13'"),
        ("python_version < '3.10'", None),
    ],
)
def test_one_lock_is_for_all_pythons_and_only_for_linux(lock: ModuleType, marker: str, kept: str | None) -> None:
    found = lock.simplified(lock.Pin("click", "8.2.1", marker, frozenset({A})))
    assert (found and found.marker) == kept
    assert found is None or (found.name, found.version, found.hashes) == ("click", "8.2.1", {A})


def test_the_makefile_takes_the_pythons_of_the_lock(lock: ModuleType) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"PYTHONS := {' '.join(lock.PYTHONS)}\n" in makefile


def test_a_python_that_is_not_supported_is_answered_by_how_to_get_one(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3.10\n")
    old.chmod(0o755)
    for name in ("requirements.lock", "requirements-cuda.lock", "requirements-uv.lock", "pyproject.toml", "Makefile"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert "Headrace needs Python 3.11, 3.12 or 3.13" in done.stderr and "make PYTHON=/path/to/python3.12" in done.stderr


def test_a_wheelhouse_is_current_until_a_wheel_changes(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"one")
    assert not wheelhouse.is_current(tmp_path)
    (tmp_path / wheelhouse.STAMP).write_text(wheelhouse._digest(tmp_path) + "\n")
    assert wheelhouse.is_current(tmp_path)
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"two")
    assert not wheelhouse.is_current(tmp_path)
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"one")
    (tmp_path / "b-1-py3-none-any.whl").write_bytes(b"more")
    assert not wheelhouse.is_current(tmp_path)


def test_the_default_base_image_is_one_exact_image() -> None:
    assert "@sha256:" in str(Settings.model_fields["base_image"].default)
