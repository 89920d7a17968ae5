"""`headrace compress`: the table, the picture, what is logged, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from headrace.cli.main import cli
from headrace.compression.loss import compare_with_original, groups_of, metric_interval, sentence_of
from headrace.compression.measure import measure
from headrace.errors import ExportError, HeadraceError
from headrace.project import Project
from headrace.recipe.compress import CompressConfig
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract
from headrace.tracking import runs
from headrace.tracking.artifact import content_hash
from tests.bento_projects import another, make_recipe
from tests.tiny_models import image_model


def invoke(project: Project, *arguments: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        return CliRunner().invoke(cli, ["compress", *arguments])


def test_variants_are_compared_and_nothing_that_serves_changes(built: Project) -> None:
    recipe = another(built, "varied")
    served = content_hash(built.artifacts("varied") / "export")
    done = invoke(built, "varied", "--methods", "int8-static,distil", "--max-loss", "0.3", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    original, static, distilled = found["variants"]
    assert [one["method"] for one in found["variants"]] == ["original", "int8-static", "distil"]
    assert [one["verdict"] for one in found["variants"]][:2] == ["", "unchanged"]
    assert (found["metric"], found["max_loss"]) == ("accuracy", 0.3)
    assert static["bytes"] == original["bytes"] and "no weights of 256 values" in static["sentences"][0]
    assert distilled["bytes"] < original["bytes"] and distilled["comparison"]["rows"] == found["rows"]
    assert set(original["latency_ms"]) == {"1", "32"} and 20 < original["memory_mb"] < 1000
    assert original["interval"][0] < original["metric"] < original["interval"][1]
    assert Image.open(found["picture"]).width > 800
    assert Contract.read(Path(distilled["folder"]) / "contract.json").model == "varied"

    assert content_hash(built.artifacts("varied") / "export") == served
    run = runs.run_of_training(recipe, built)
    logged = {one.path for one in runs.client(built).list_artifacts(run.id, "compression")}
    assert logged == {"compression/variants.json", "compression/variants.png"}


def test_a_method_that_cannot_be_used_is_a_row_of_the_table(built: Project) -> None:
    another(built, "failing")
    rows = built.artifacts("failing") / "prepared" / "train.parquet"
    pd.read_parquet(rows).iloc[:1].to_parquet(rows, index=False)
    done = invoke(built, "failing", "--methods", "int8-static,float16")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["variant", "size"] and "loss < 0.005" in lines[0]
    assert lines[2].split() == ["int8-static", "not", "made"] and lines[3].split()[-1] == "unchanged"
    assert "int8-static: int8-static measures the ranges of activations on training rows, and there is 1" in done.stdout
    assert "float16: it has no weights that float16 could hold" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "--methods", "int8-dynamik"), "unknown method 'int8-dynamik'; did you mean 'int8-dynamic'?"),
        (("tiny", "--methods", "int4"), "weights of 4 bits are a format of language models"),
        (("tiny", "--methods", ","), "no methods are named"),
        (("tinny",), "unknown recipe 'tinny'; did you mean 'tiny'?"),
        (("untrained",), "untrained has no trained model yet"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_way_on(arguments: tuple[str, ...], message: str, built: Project) -> None:
    if not (built.recipes / "untrained.yaml").exists():
        text = (built.recipes / "tiny.yaml").read_text()
        (built.recipes / "untrained.yaml").write_text(text.replace("name: tiny", "name: untrained"))
    done = invoke(built, *arguments)
    assert isinstance(done.exception, HeadraceError) and message in done.exception.message and done.exception.hint
    if "untrained" in arguments:
        assert done.exception.hint == "train it first: headrace run untrained"


def test_a_model_that_cannot_be_served_is_not_measured(built: Project, tmp_path: Path) -> None:
    folder = image_model(tmp_path)
    found = measure(folder, built.root)
    assert found.latency_ms[1] > 0 and found.threads == 1
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="the model cannot be served"):
        measure(folder, built.root)


# -- the test of what is lost


def config(**fields: Any) -> CompressConfig:
    return CompressConfig.model_validate({"method": "float16", **fields})


def classes(rows: int, wrong: int) -> np.ndarray[Any, Any]:
    """Probabilities of two classes, whose first `wrong` rows miss the true class 0."""
    p = np.tile([0.9, 0.1], (rows, 1))
    p[:wrong] = [0.2, 0.8]
    return p


@pytest.mark.parametrize(
    ("rows", "wrong", "max_loss", "passed"),
    [(50, 0, 0.005, True), (50, 1, 0.05, False), (2000, 2, 0.005, True), (2000, 20, 0.005, False), (2000, 20, 0.02, True)],
)
def test_a_loss_has_to_be_shown_to_be_small(rows: int, wrong: int, max_loss: float, passed: bool) -> None:
    y = np.zeros(rows, np.int64)
    found = compare_with_original(config(max_loss=max_loss), make_recipe(), y, classes(rows, wrong), classes(rows, 0))
    assert found.promoted is passed
    assert sentence_of(found, "float16").endswith("passed" if passed else "failed")


def test_a_loss_of_an_error_counts_upwards() -> None:
    recipe = make_recipe("regression")
    y = np.random.default_rng(0).normal(0, 1, 400)
    noise = np.random.default_rng(1).normal(0, 0.005, 400)
    found = compare_with_original(config(metric="mae", max_loss=0.01), recipe, y, y + 0.105 + noise, y + 0.1)
    assert found.promoted and found.lower is not None and -0.01 < found.lower < -0.0045
    assert "loss +0.00459, with 0.95 confidence below" in sentence_of(found, "float16")
    assert not compare_with_original(config(metric="mae", max_loss=0.004), recipe, y, y + 0.105 + noise, y + 0.1).promoted


def test_intervals_contain_the_metric_and_are_wider_by_groups(built: Project) -> None:
    recipe: Recipe = make_recipe()
    y = np.zeros(400, np.int64)
    value, interval = metric_interval("accuracy", recipe, y, classes(400, 40))
    assert value == 0.9 and interval is not None and interval[0] < 0.9 < interval[1]
    by_groups = metric_interval("accuracy", recipe, y, classes(400, 40), np.arange(400) // 40)[1]
    assert by_groups is not None and by_groups[1] - by_groups[0] > 2 * (interval[1] - interval[0])
    assert metric_interval("auc", recipe, y, classes(400, 40))[1] is None, "one class only"
    assert groups_of(recipe, built, 400) is None
