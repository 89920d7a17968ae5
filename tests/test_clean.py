"""`make clean` removes what can be made again, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.paths import ROOT

KEPT = {
    "keys",
    "token-keys",
    "anchors",
    "tls",
    "usage",
    "quotas",
    "feedback",
    "events",
    "running",
    "monitoring",
    "batches",
    "quarantine",
    "checkpoints",
    "searches",
    "bentoml",
    "sbom",
    "prefect",
}
"""Parts of `.headrace` that exist nowhere else."""
OF_OLDER_VERSIONS = {"guard", "door"}
"""Links to these are made where they exist; they are kept."""


def made_again() -> set[str]:
    """What the Makefile says can be made again."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"^MADE_AGAIN := (.*)$", text, re.MULTILINE)
    assert found is not None
    return set(found[1].split())


def parts_of_state() -> set[str]:
    """Names in `.headrace` that the code writes."""
    found = set()
    for folder in ("headrace", "bentos", "flows", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"\b(?:project|self)\.state / f?\"([\w.-]+)\"", path.read_text(encoding="utf-8")))
    return found


def test_each_part_of_the_state_is_either_kept_or_can_be_made_again() -> None:
    assert not made_again() & KEPT
    assert parts_of_state() - OF_OLDER_VERSIONS == made_again() | KEPT


def test_the_page_on_backups_names_all_that_is_kept() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().partition("## Backups")[2].partition("## Files")[0]
    assert set(re.findall(r"`\.headrace/([\w-]+)/`", page.partition("The rest can be made")[0])) == KEPT


def test_make_clean_keeps_what_cannot_be_made_again(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    removed = [".venv/lib", "artifacts/digits", *(f".headrace/{name}" for name in made_again())]
    kept = ["data/digits", "mlruns/artifacts", ".dvc/cache", "recipes", *(f".headrace/{name}" for name in KEPT)]
    for name in [*removed, *kept]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "headrace.toml").touch()
    subprocess.run(["make", "--quiet", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert [name for name in removed if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name / "file").exists()] == []
    assert (tmp_path / "headrace.toml").exists() and not (tmp_path / ".venv").exists()
