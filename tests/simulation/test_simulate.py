"""The past of a recipe, replayed on data that drifts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.data.tables import batch_files
from headrace.errors import HeadraceError, UsageError
from headrace.evaluation.retraining_policy import RetrainingPolicy
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.simulation import candidates
from headrace.simulation.arrivals import Arrival, arrivals
from headrace.simulation.simulate import Simulation, picture_of, scratch_project, simulate
from headrace.training.run import train_model
from tests.tiny_bert import WORDS, write_tiny_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
name: tides
task: regression
data:
  source: tides.csv
  target: height
  incremental: {column: month, first: 3}
  split: {time: {column: month, test: last}, validation: 0.2}
expect: []
model: {name: mlp, hidden: [8]}
train: {epochs: 6, batch_size: 32, learning_rate: 0.02, window: 2}
gate:
  beat_champion: {metric: mae}
serve: {}
"""
TEXTS = """
name: texts
task: text-classification
data:
  source: texts.csv
  columns: [month, text, kind]
  target: kind
  text: {column: text, length: 8}
  incremental: {column: month, first: 3}
  split: {time: {column: month, test: last}, validation: 0.2}
expect: []
model: {name: pretrained, source: encoder/model.safetensors, tune: head}
train: {epochs: 1, batch_size: 32, learning_rate: 0.01, device: cpu}
gate:
  beat_champion: {metric: accuracy}
serve: {}
"""
ROWS = 160


def drifting(months: int) -> pd.DataFrame:
    """A line whose slope turns in month 5 and stays as it is from then on."""
    rng = np.random.default_rng(2)
    month = np.repeat(np.arange(1, months + 1), ROWS)
    x = rng.normal(0, 1, len(month))
    slope = np.where(month < 5, 3.0, -3.0)
    return pd.DataFrame({"month": month, "x": x, "height": slope * x + rng.normal(0, 0.5, len(month))})


@pytest.fixture
def tides(project: Project) -> Recipe:
    drifting(8).to_csv(project.root / "tides.csv", index=False)
    (project.recipes / "tides.yaml").write_text(RECIPE)
    return load_recipe("tides", project)


def replayed(recipe: Recipe, project: Project, batches: int | None = None, **policy: Any) -> tuple[Simulation, list[str]]:
    said: list[str] = []
    arrived = batches_of(recipe, project)
    scratch = scratch_project(recipe, project)
    return simulate(recipe, arrived, scratch, RetrainingPolicy(**policy), said.append, batches=batches), said


def batches_of(recipe: Recipe, project: Project, **options: Any) -> list[Arrival]:
    chosen = {"by": None, "every": None, "first": None, "rows": None, **options}
    return arrivals(recipe, project, lambda line: None, **chosen)


def test_the_policy_trains_after_the_drift_and_continues_after_a_kill(
    tides: Recipe, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(recipe: Recipe, scratch: Project) -> None:
        trained.append(batch_files(scratch, recipe.name)[-1].stem)
        if len(trained) == 4:
            raise KeyboardInterrupt
        train_model(recipe, scratch)

    monkeypatch.setattr(candidates, "train_model", train)
    with pytest.raises(KeyboardInterrupt):
        replayed(tides, project)
    found, said = replayed(tides, project)
    assert "continues after batch 5" in said
    assert trained == ["0000", "0001", "0002", "0003", "0003", "0004", "0005"], "policies share a model of the same rows"

    # Month 4 is as before. In month 5 the slope turns, and the candidate has months 3 and 4 as its training rows. In month 6
    # a second one has learned month 5 too, and serves until the next has learned nothing but what is true now.
    assert [step.batch for step in found.steps] == ["4", "5", "6", "7", "8"]
    assert found.steps[0].retrained is None and found.steps[0].frozen == found.steps[0].policy == found.steps[0].always < 1
    assert found.steps[1].retrained is not None and "above the reference" in found.steps[1].retrained
    assert any("on the same 160 rows" in line for line in found.steps[1].verdict)
    assert found.steps[2].promoted is True
    assert found.totals["policy"].error < found.totals["frozen"].error
    assert found.steps[-1].policy < found.steps[-1].frozen * 0.7
    assert found.totals["policy"].trainings < found.totals["always"].trainings == 5
    assert found.totals["policy"].worse == 0 and found.totals["frozen"].trainings == 0
    for step in found.steps:
        assert (step.promoted is None) == (step.retrained is None) == (not step.verdict)
    assert not (project.mlruns / "mlflow.db").exists(), "nothing is logged in the project's own MLflow"

    again, _ = replayed(tides, project, batches=2)
    assert again.steps == found.steps[:2] and len(trained) == 7, "a shorter one is a part of it"


def test_a_champion_as_the_start_is_trained_further_by_each_policy(tides: Recipe, project: Project) -> None:
    warm = tides.model_copy(update={"train": tides.train.model_copy(update={"start": "champion", "epochs": 2, "window": 2})})
    found, _ = replayed(warm, project, batches=2, tolerance=100.0)
    kept = candidates.Candidates(warm, scratch_project(warm, project), "mae")
    [name] = [path.name for path in (kept.folder("0000").parent).glob("0002-*")]
    second = kept.facts(name)
    assert second["start"] == "tides@0001-after-0000" and kept.facts("0000")["start"] == "random"
    assert second["rows"] < 2 * ROWS, "training rows of the two months before the test rows"
    assert found.totals["policy"].trainings == 0 and found.totals["policy"].error == found.totals["frozen"].error


def test_an_adapted_encoder_is_simulated_from_the_projects_own_copy(project: Project) -> None:
    pytest.importorskip("transformers")
    write_tiny_encoder(project.root / "encoder")
    rng, words = np.random.default_rng(3), np.array(WORDS[:80]).reshape(2, 40)
    kinds = rng.integers(0, 2, 240)
    texts = [" ".join(rng.choice(words[kind], 6)) for kind in kinds]
    table = pd.DataFrame({"month": np.repeat([1, 2, 3, 4], 60), "text": texts, "kind": np.array(["a", "b"])[kinds]})
    table.to_csv(project.root / "texts.csv", index=False)
    (project.recipes / "texts.yaml").write_text(TEXTS)
    arguments = ["simulate", "texts", "--batches", "1", "--json"]
    found = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    assert [step["batch"] for step in found["steps"]] == ["4"]
    assert (project.imported_model("texts") / "model.safetensors").is_file()


def test_the_command_prints_a_table_and_draws_a_picture(tides: Recipe, project: Project) -> None:
    arguments = ["simulate", "tides", "--batches", "1", "--epochs", "1", "--rows", "60"]
    printed = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    assert "mean error (mae)" in printed and "4      60" in printed
    picture = picture_of(scratch_project(tides, project))
    assert picture.read_bytes().startswith(b"\x89PNG")
    elsewhere = project.root / "figure.png"
    result = CliRunner().invoke(cli, [*arguments, "--json", "--plot", str(elsewhere)], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found["totals"]["always"]["trainings"] == 1 and found["picture"] == str(elsewhere)
    assert elsewhere.read_bytes() == picture.read_bytes()


def test_times_arrive_by_month_and_a_sample_has_rows_of_each(project: Project) -> None:
    days = pd.date_range("2024-01-01", "2024-05-31", freq="D")
    pd.DataFrame({"day": days, "x": range(len(days)), "height": 1.5}).to_csv(project.root / "tides.csv", index=False)
    fields = yaml.safe_load(RECIPE)
    fields["data"] |= {"times": {"day": {}}, "split": {"time": {"column": "day", "test": "1 month"}}, "incremental": None}
    (project.recipes / "tides.yaml").write_text(yaml.safe_dump(fields))
    recipe = load_recipe("tides", project)
    found = batches_of(recipe, project, rows=10)
    assert [(one.name, one.table.num_rows) for one in found] == [
        ("2024-02", 20),
        ("2024-03", 10),
        ("2024-04", 10),
        ("2024-05", 10),
    ]
    assert [one.name for one in batches_of(recipe, project, every="quarter", first=1)] == ["2024Q1", "2024Q2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "mnth"}, "did you mean 'month'"),
        ({"first": 8}, "no batch arrives"),
        ({"by": "x"}, "more than 500 batches"),
        ({"every": "month"}, "'month' holds no times"),
    ],
)
def test_batches_that_cannot_be_are_explained(tides: Recipe, project: Project, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadraceError, match=message) as caught:
        batches_of(tides, project, **options)
    assert caught.value.hint


def test_a_recipe_without_a_column_of_time_or_without_such_a_metric_is_refused(project: Project) -> None:
    recipe = load_recipe("tiny", project)
    with pytest.raises(UsageError, match="names no column of time") as caught:
        batches_of(recipe, project)
    assert "--by COLUMN" in str(caught.value.hint)
    several = recipe.model_copy(update={"task": "text-generation", "gate": recipe.gate.model_copy(update={"require": {}})})
    with pytest.raises(UsageError, match="measures models by metrics of classification and regression"):
        candidates.metric_of(several.model_copy(update={"gate": several.gate.model_copy(update={"beat_champion": None})}))


def test_an_invalid_window_is_refused_before_anything_is_read(tides: Recipe, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["simulate", "tides", "--window", "some"])
    assert isinstance(result.exception, HeadraceError) and "expected a number of values" in str(result.exception)
