"""`headrace import`, up to the release: what it writes, and that it leaves nothing of a model that cannot be served."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.cli import main
from headrace.project import Project
from tests.importing.made import LABELS, NAMES, write_network, write_skops


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> str:
    """Runs `headrace import ARGUMENTS --no-release`; returns what it prints."""
    monkeypatch.setattr(sys, "argv", ["headrace", "import", *arguments, "--no-release"])
    ended = 0
    try:
        main()
    except SystemExit as exit_:
        ended = int(exit_.code or 0)
    printed = capsys.readouterr()
    assert ended == code, printed.err
    return printed.out + printed.err


def recipe(project: Project, name: str = "imp") -> Any:
    return yaml.safe_load((project.recipes / f"{name}.yaml").read_text())


def test_a_recipe_is_written_with_the_sha256_and_can_be_replaced(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_skops(project.root / "m.skops")
    printed = command(capsys, monkeypatch, "imp", "m.skops", "--json")
    found = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert found["recipe"] == "recipes/imp.yaml" and found["labels"] == LABELS and found["library"] == "scikit-learn"
    assert recipe(project) == {
        "name": "imp",
        "task": "classification",
        "model": {"source": "m.skops", "sha256": found["sha256"]},
        "serve": {"replicas": 1},
    }
    path = project.recipes / "imp.yaml"
    path.write_text(path.read_text().replace("replicas: 1", "replicas: 3  # mine"))
    write_network(project.root / "n.onnx")
    shown = command(
        capsys, monkeypatch, "imp", "n.onnx", "--labels", ",".join(LABELS), "--activation", "softmax", "--licence", "MIT"
    )
    assert "n.onnx, licence MIT" in shown and "wrote recipes/imp.yaml: classification" in shown
    model = recipe(project)["model"]
    assert (model["source"], model["labels"], model["licence"]) == ("n.onnx", LABELS, "MIT")
    assert "replicas: 3  # mine" in path.read_text()


def test_what_is_missing_is_shown_as_the_completed_command(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_network(project.root / "n.onnx")
    shown = command(capsys, monkeypatch, "imp", "n.onnx", "--inputs", "a,b,c,d", code=2)
    assert "headrace import imp n.onnx --inputs a,b,c,d --task classification --no-release" in shown
    options = ["--task", "classification", "--labels", ",".join(LABELS)]
    shown = command(capsys, monkeypatch, "imp", "n.onnx", *options, code=2)
    assert f"--labels {','.join(LABELS)} --activation softmax" in shown
    assert not (project.recipes / "imp.yaml").exists() and not project.raw_data("imp").exists()
    assert not list((project.state / "incoming").iterdir())


def test_labels_come_from_a_file_and_a_shape_from_an_option(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_network(project.root / "n.onnx", inputs=[("x", 1, ["n", "features"])])
    (project.root / "labels.txt").write_text("\n".join(LABELS))
    options = ["--task", "classification", "--labels", "labels.txt", "--activation", "softmax"]
    shown = command(capsys, monkeypatch, "imp", "n.onnx", *options, code=2)
    assert "--shapes x=SIZE" in shown
    command(capsys, monkeypatch, "imp", "n.onnx", *options, "--shapes", "x=4")
    assert recipe(project)["model"]["shapes"] == {"x": [4]} and recipe(project)["model"]["labels"] == LABELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Imp", "m.skops"), "invalid recipe name 'Imp'"),
        (("tiny", "m.skops"), "recipe 'tiny' already exists, and its model is trained here"),
        (("imp", "m.skop"), "no such file: m.skop; did you mean 'm.skops'?"),
        (("imp", "m.skops", "--sample", "{x"), "--sample is not JSON"),
        (("imp", "m.skops", "--shapes", "x"), "--shapes x: expected"),
        (("imp", "m.skops", "--sha256", "abc"), "sha256: String should match pattern"),
        (("imp", "m.skops", "--inputs", ",".join(NAMES[:2])), "2 names are given, and the input 'X' has 3 columns"),
    ],
)
def test_wrong_input_is_explained_and_leaves_nothing(
    arguments: tuple[str, ...],
    message: str,
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_skops(project.root / "m.skops")
    before = {path.name for path in project.recipes.iterdir()}
    shown = " ".join(command(capsys, monkeypatch, *arguments, code=3 if "no such file" in message else 2).split())
    assert message in shown
    assert {path.name for path in project.recipes.iterdir()} == before and not project.raw_data("imp").exists()


def test_a_path_outside_of_the_project_is_kept_absolute(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_skops(tmp_path / "m.skops")
    command(capsys, monkeypatch, "imp", str(tmp_path / "m.skops"))
    assert recipe(project)["model"]["source"] == str(tmp_path / "m.skops")
