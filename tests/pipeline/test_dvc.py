"""DVC as the build system: unchanged stages are skipped, errors keep their class, `dvc repro` by hand gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.data.ingest import ingest
from headrace.data.pointer import listed_files
from headrace.data.versions import is_tracked
from headrace.errors import DataRejected, DiskFull, HeadraceError
from headrace.files import read_json, write_json
from headrace.pipeline.dvc import reproduce
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.runtime.contract import Contract
from tests.exhaustive import exhaustive
from tests.paths import ROOT
from tests.pipeline.commands import dvc
from tests.projects import git, make_project, table

MADE = ("validation.json", "prepared/schema.json", "prepared/train.parquet", "train/model.pt", "train/curves.csv",
        "export/model.onnx", "export/contract.json", "evaluation/metrics.json")  # fmt: skip


def edit(project: Project, **sections: dict[str, Any]) -> Recipe:
    path = project.recipes / "tiny.yaml"
    fields = yaml.safe_load(path.read_text())
    for section, changed in sections.items():
        fields[section] = {**fields.get(section, {}), **changed}
    path.write_text(yaml.safe_dump(fields))
    return load_recipe("tiny", project)


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose first two stages ran through Headrace, and the others through `dvc repro`."""
    project = make_project(tmp_path_factory.mktemp("piped") / "clone")
    recipe = load_recipe("tiny", project)
    ingest(recipe, project, lambda line: None)
    assert [reproduce(stage, recipe, project).ran for stage in ("validate", "prepare")] == [True, True]
    printed = dvc(project, "repro", "evaluate@tiny")
    assert "Stage 'validate@tiny' didn't change, skipping" in printed
    assert "Stage 'prepare@tiny' didn't change, skipping" in printed
    return project


def test_headrace_and_dvc_give_the_same_bytes_in_two_clones(piped: Project, built: Project) -> None:
    for name in MADE:
        assert (piped.artifacts("tiny") / name).read_bytes() == (built.artifacts("tiny") / name).read_bytes(), name


def test_a_stage_that_dvc_ran_is_unchanged_for_headrace(piped: Project) -> None:
    recipe = load_recipe("tiny", piped)
    assert [reproduce(stage, recipe, piped).ran for stage in STAGES] == [False] * 5
    assert "up to date" in dvc(piped, "repro", "evaluate@tiny")


def test_the_environment_is_left_as_it_was(piped: Project) -> None:
    before = dict(os.environ)
    reproduce("validate", load_recipe("tiny", piped), piped)
    assert dict(os.environ) == before


def test_the_section_compress_is_part_of_the_export_alone(piped: Project) -> None:
    before = (piped.recipes / "tiny.yaml").read_text()
    folder = piped.artifacts("tiny") / "export"
    original = (folder / "model.onnx").read_bytes()
    recipe = edit(piped, compress={"method": "float16", "max_loss": 0.1})
    assert [reproduce(stage, recipe, piped).ran for stage in ("prepare", "train", "export")] == [False, False, True]
    assert (folder / "uncompressed" / "model.onnx").read_bytes() == original
    assert read_json(folder / "compression.json")["method"] == "float16"
    (piped.recipes / "tiny.yaml").write_text(before)
    reproduce("export", load_recipe("tiny", piped), piped)  # from DVC's cache
    assert sorted(path.name for path in folder.iterdir()) == ["contract.json", "model.onnx", "parity.json"]


def test_a_change_to_the_training_reruns_the_training_alone(piped: Project, capfd: pytest.CaptureFixture[str]) -> None:
    first = (piped.artifacts("tiny") / "train" / "model.pt").read_bytes()
    recipe = edit(piped, train={"epochs": 2})
    assert [reproduce(stage, recipe, piped).ran for stage in ("validate", "prepare", "train")] == [False, False, True]
    assert read_json(piped.artifacts("tiny") / "train" / "summary.json")["epochs"] == 2
    assert "epoch 2" in capfd.readouterr().err
    recipe = edit(piped, train={"epochs": 3})  # back: DVC has the result in its cache, so nothing is trained
    reproduce("train", recipe, piped)
    assert "epoch" not in capfd.readouterr().err
    assert (piped.artifacts("tiny") / "train" / "model.pt").read_bytes() == first
    assert read_json(piped.artifacts("tiny") / "train" / "summary.json")["epochs"] == 3
    assert reproduce("export", recipe, piped).ran is False


def test_a_change_that_no_stage_reads_exports_again_and_reruns_nothing_else(piped: Project) -> None:
    recipe = edit(piped, gate={"require": {"accuracy": ">= 0.5"}})
    found = [reproduce(stage, recipe, piped).ran for stage in STAGES]
    assert found == [stage == "export" for stage in STAGES], "the export depends on the whole recipe, and gives the same bytes"
    assert not reproduce("export", recipe, piped).ran


def test_a_personal_column_is_in_the_contract_and_no_model_is_trained_again(piped: Project) -> None:
    recipe = edit(piped, monitor={"personal": ["width"]})
    assert not reproduce("train", recipe, piped).ran
    assert reproduce("export", recipe, piped).ran
    assert Contract.read(piped.artifacts("tiny") / "export" / "contract.json").personal == ["width"]
    recipe = edit(piped, monitor={"personal": []})
    reproduce("export", recipe, piped)
    assert Contract.read(piped.artifacts("tiny") / "export" / "contract.json").personal == []
    reproduce("evaluate", recipe, piped)


@pytest.mark.parametrize("name", ["__pycache__/mlp.cpython-311.pyc", ".mlp.py.swp", ".ipynb_checkpoints/mlp.py"])
def test_bytecode_and_files_of_editors_beside_the_code_rerun_nothing(name: str, piped: Project) -> None:
    path = piped.root / "headrace" / "models" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"written by another program")
    recipe = load_recipe("tiny", piped)
    assert [reproduce(stage, recipe, piped).ran for stage in STAGES] == [False] * 5
    assert "up to date" in dvc(piped, "repro", "evaluate@tiny")


def test_a_stages_error_comes_back_as_it_was_raised(piped: Project) -> None:
    (piped.recipes / "strict.yaml").write_text(
        (piped.recipes / "tiny.yaml").read_text().replace("name: tiny", "name: strict").replace("max_value: 50", "max_value: 1")
    )
    recipe = load_recipe("strict", piped)
    piped.raw_data("strict").mkdir()
    for batch in piped.raw_data("tiny").iterdir():
        (piped.raw_data("strict") / batch.name).write_bytes(batch.read_bytes())
    with pytest.raises(DataRejected, match="expect_column_values_to_be_between") as caught:
        reproduce("validate", recipe, piped)
    assert caught.value.where == "strict, all batches" and "correct the data" in str(caught.value.hint)
    assert not (piped.artifacts("strict") / "validation.json").exists()


def test_a_killed_stage_is_an_error(piped: Project) -> None:
    content = (piped.root / "dvc.yaml").read_text()
    recipe = load_recipe("tiny", piped)
    (piped.root / "dvc.yaml").write_text(content.replace("python -m headrace.pipeline.stages validate ${key}", "kill -9 $$"))
    try:
        with pytest.raises(HeadraceError, match="validate@tiny failed without an error message") as caught:
            reproduce("validate", recipe, piped)
        assert "dvc repro -s validate@tiny" in str(caught.value.hint)
    finally:
        (piped.root / "dvc.yaml").write_text(content)


def test_an_unknown_stage_is_an_error(piped: Project) -> None:
    with pytest.raises(HeadraceError, match="trian@tiny") as caught:
        reproduce("trian", load_recipe("tiny", piped), piped)
    assert caught.value.where == "dvc.yaml"


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with data on a file system of its own, of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # the bytecode of the project's code would take what a test leaves free
    try:
        made = make_project(root / "clone")
        table(60_000).to_csv(made.root / "source.csv", index=False)
        ingest(load_recipe("tiny", made), made, lambda line: None)
        write_json(made.artifacts("tiny") / "validation.json", {"rows": 60_000})
        yield made
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.parametrize("left", [exhaustive(300_000), 1_050_000], ids=["for nothing", "for the files, not for the cache"])
def test_a_full_disk_is_an_error_and_the_next_run_completes(
    left: int, small_disk: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, fill = load_recipe("tiny", small_disk), small_disk.root.parent / "fill"
    stat = os.statvfs(small_disk.root)
    fill.write_bytes(bytes(stat.f_bavail * stat.f_frsize - left))
    with pytest.raises(DiskFull, match="no space left"):
        reproduce("prepare", recipe, small_disk)
    assert "ERROR" not in capfd.readouterr().err, "the error is printed once, not by DVC as well"
    fill.unlink()
    assert reproduce("prepare", recipe, small_disk).ran
    assert not reproduce("prepare", recipe, small_disk).ran
    assert "up to date" in dvc(small_disk, "status", "prepare@tiny")


@pytest.mark.parametrize(
    "damage",
    [
        exhaustive(lambda content: b""),
        lambda content: content[: len(content) // 2],
        exhaustive(lambda content: content[: content.index(b"md5")]),
        exhaustive(lambda content: b"\x00" * len(content)),
        lambda content: b"schema: '2.0'\nstages: [\n",
    ],
    ids=["empty", "half", "cut in an entry", "zeros", "no YAML"],
)
def test_a_damaged_dvc_lock_is_repaired(
    damage: Callable[[bytes], bytes], piped: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, path = load_recipe("tiny", piped), piped.root / "dvc.lock"
    for stage in STAGES:
        reproduce(stage, recipe, piped)
    reproduce("validate", recipe, piped)  # whole, and seen to be so
    whole = path.read_bytes()
    capfd.readouterr()
    path.write_bytes(damage(whole))
    weights = (piped.artifacts("tiny") / "train" / "model.pt").read_bytes()
    for stage in STAGES:
        reproduce(stage, recipe, piped)  # where the cut left valid YAML, what it lost comes from DVC's cache
    assert yaml.safe_load(path.read_bytes()) == yaml.safe_load(whole)
    assert (piped.artifacts("tiny") / "train" / "model.pt").read_bytes() == weights
    assert "epoch" not in capfd.readouterr().err


def test_a_damaged_dvc_lock_without_a_copy_starts_empty(piped: Project, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, path = load_recipe("tiny", piped), piped.root / "dvc.lock"
    weights = (piped.artifacts("tiny") / "train" / "model.pt").read_bytes()
    path.write_bytes(path.read_bytes()[:300])
    (piped.state / "dvc.lock").unlink()
    reproduce("train", recipe, piped)
    assert "epoch" not in capfd.readouterr().err, "DVC's cache still knows what was trained"
    assert (piped.artifacts("tiny") / "train" / "model.pt").read_bytes() == weights


def test_a_new_recipe_adds_its_name_and_changes_nothing_else(project: Project) -> None:
    path = project.root / "dvc.yaml"
    before = path.read_text().splitlines()
    assert any(line.startswith("#") for line in before)
    (project.recipes / "new.yaml").write_text((project.recipes / "tiny.yaml").read_text().replace("name: tiny", "name: new"))
    with pytest.raises(HeadraceError):  # without data
        reproduce("prepare", load_recipe("new", project), project)
    after = path.read_text().splitlines()
    assert [line for line in after if line not in before] == [
        "      new: {task_type: headrace/task_types, model: headrace/models}"
    ]
    assert [line for line in after if not line.startswith("      new:")] == before


@pytest.mark.parametrize("content", ["stages: {}\n", "vars: [\n", "vars:\n  - other: 1\n", "vars:\n  - recipes: {}\n"])
def test_a_dvc_yaml_without_its_lists_is_an_error(content: str, project: Project) -> None:
    (project.root / "dvc.yaml").write_text(content)
    with pytest.raises(HeadraceError, match="cannot read the recipes") as caught:
        reproduce("prepare", load_recipe("tiny", project), project)
    assert "git diff dvc.yaml" in str(caught.value.hint) and "Error(" not in str(caught.value)


@pytest.mark.parametrize("last", ["prepare", exhaustive("evaluate")])  # DVC ran the others in `piped`
def test_dvc_by_hand_works_in_a_fresh_clone_once_the_data_is_ingested(last: str, piped: Project, tmp_path: Path) -> None:
    git(piped.root, "add", "--all")
    git(piped.root, "commit", "--quiet", "--allow-empty", "--message", "Data and stages")
    git(tmp_path, "clone", "--quiet", str(piped.root), "fresh")
    fresh = Project(tmp_path / "fresh")
    assert not fresh.data.exists(), "data is not in git"
    ingest(load_recipe("tiny", fresh), fresh, lambda line: None)
    printed = dvc(fresh, "repro", f"{last}@tiny")
    wanted = [*STAGES][: [*STAGES].index(last) + 1]
    assert [stage for stage in STAGES if f"Running stage '{stage}@tiny'" in printed] == wanted
    for name in MADE if last == "evaluate" else MADE[:3]:
        assert (fresh.artifacts("tiny") / name).read_bytes() == (piped.artifacts("tiny") / name).read_bytes(), name


AT_ONCE = """
import sys
from pathlib import Path
from headrace.data.ingest import ingest
from headrace.pipeline.dvc import reproduce
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
project = Project(Path(sys.argv[1]))
recipe = load_recipe(sys.argv[2], project)
print("ready", flush=True)
sys.stdin.readline()
ingest(recipe, project, lambda line: None)
reproduce("validate", recipe, project)
"""


@pytest.mark.exhaustive
def test_two_recipes_at_once_and_a_commit_beside_them_lose_nothing(project: Project) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, str(project.root), name],
            cwd=project.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("tiny", "pictures")
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    git(project.root, "commit", "--quiet", "--allow-empty", "--message", "Beside them")
    for process in started:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    stages = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    assert stages.keys() == {"validate@tiny", "validate@pictures"}
    assert {file.path.partition("/")[0] for file in listed_files(project)} == {"tiny", "pictures"}
    assert is_tracked(project)


def test_dvc_gc_takes_nothing_that_the_next_run_needs(piped: Project) -> None:
    recipe = load_recipe("tiny", piped)
    for stage in STAGES:  # other tests have changed the project
        reproduce(stage, recipe, piped)
    dvc(piped, "gc", "--workspace", "--force")
    ingest(recipe, piped, lambda line: None)
    assert is_tracked(piped)
    assert [reproduce(stage, recipe, piped).ran for stage in STAGES] == [False] * 5
