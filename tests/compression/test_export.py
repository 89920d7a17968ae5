"""The section `compress` in a release: export, evaluation, the gate, the registry and the journal."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from bentos.models.onnx_model import load
from headrace.compression import compress as compressing
from headrace.compression import quantise
from headrace.compression.compress import UNCOMPRESSED, Outcome, read_outcome
from headrace.compression.graphs import operators, size_of
from headrace.compression.smaller import half_as_wide
from headrace.errors import DataError, DiskFull, ExportError, RecipeError
from headrace.files import read_json
from headrace.pipeline.evaluate import evaluate_export
from headrace.pipeline.export import export_model, trained_model, write_export
from headrace.processes import as_headrace_error
from headrace.project import Project
from headrace.recipe.compress import CompressConfig
from headrace.recipe.models import AttentionConfig, CNNConfig, MLPConfig, RecurrentConfig
from headrace.recipe.recipe import Recipe
from headrace.release import journal
from headrace.runtime.contract import Contract
from headrace.task_types.lookup import task_type_for
from headrace.tracking.artifact import served_parts
from headrace.training.run import train_model
from tests.bento_projects import another
from tests.release.candidates import decide, register

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def wide(built: Project) -> Recipe:
    """A trained recipe with layers that are wide enough to compress."""
    recipe = another(built, "wide", model={"hidden": [64, 64]}, train={"epochs": 4})
    train_model(recipe, built)
    return recipe


def with_section(recipe: Recipe, **section: Any) -> Recipe:
    return recipe.model_copy(update={"compress": CompressConfig.model_validate({"max_loss": 0.2, **section})})


def export(recipe: Recipe, project: Project) -> Path:
    export_model(recipe, project)
    evaluate_export(recipe, project)
    return project.artifacts(recipe.name) / "export"


@pytest.fixture(scope="module")
def original(built: Project, wide: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uncompressed model."""
    folder = tmp_path_factory.mktemp("original")
    write_export(wide, built, folder)
    return folder


def compressed(recipe: Recipe, project: Project, original: Path, folder: Path, **section: Any) -> Outcome:
    config = with_section(recipe, **section).compress
    assert config is not None
    return compressing.compress(config, original, folder, recipe, project, lambda: trained_model(recipe, project))


def test_the_compressed_graph_is_exported_judged_and_recorded_and_the_other_is_kept(built: Project, wide: Recipe) -> None:
    recipe = with_section(wide, method="int8-dynamic")
    folder = export(recipe, built)
    graph, original = (onnx.load(at / "model.onnx") for at in (folder, folder / UNCOMPRESSED))
    assert operators(graph)["MatMulInteger"] and not operators(original)["MatMulInteger"]
    assert read_json(folder / "parity.json")["largest_relative_difference"] < 1e-4, "of the uncompressed graph"
    assert [path.name for path in served_parts(folder)] == ["contract.json", "model.onnx"]
    assert load(folder).predict([load(folder).contract.sample])

    version = register(recipe, built)
    sizes = [(at / "model.onnx").stat().st_size for at in (folder / UNCOMPRESSED, folder)]
    how = f"int8-dynamic (max_loss 0.2), {sizes[0]:,} to {sizes[1]:,} bytes"
    assert version.identity["compression"] == how
    decision = decide(recipe, version, built)
    assert decision.result == "promote"
    (sentence,) = [check.sentence for check in decision.verdict.checks if "uncompressed" in check.sentence]
    assert (
        "compressed (int8-dynamic) against" in sentence
        and "less than 0.2 required (Tango's score interval): passed" in sentence
    )
    assert any(reason.startswith("compressed by int8-dynamic (max_loss 0.2)") for reason in decision.verdict.reasons)

    strict = with_section(wide, method="int8-dynamic", max_loss=1e-6)
    decision = decide(strict, version, built)
    assert decision.result == "refused" and decision.verdict.reasons[0].endswith("failed")
    assert (
        "compressed (int8-dynamic)" in decision.verdict.reasons[0] and "less than 1e-06 required" in decision.verdict.reasons[0]
    )
    entry = journal.entries(built, recipe.name)[-1]
    assert (entry.event, entry.facts["compression"]) == ("refused", how)

    export(wide, built)
    assert not (folder / UNCOMPRESSED).exists() and read_outcome(folder) is None
    assert register(wide, built).identity.keys().isdisjoint({"compression"})


@pytest.mark.parametrize(
    ("section", "remark"),
    [
        ({"method": "int8-static", "calibration_rows": 64}, None),
        ({"method": "float16"}, None),
        ({"method": "prune", "share": 0.75}, "75.0% of the weights of 3 layers are zero"),
        ({"method": "distil", "student": {"name": "mlp", "hidden": [32]}, "epochs": 3}, "parameters instead of"),
    ],
)
def test_each_method_makes_a_smaller_model_that_is_served(
    section: dict[str, Any], remark: str | None, built: Project, wide: Recipe, original: Path, tmp_path: Path
) -> None:
    outcome = compressed(wide, built, original, tmp_path, **section)
    assert outcome == read_outcome(tmp_path)
    assert outcome.applied and outcome.bytes < 0.9 * outcome.original_bytes
    assert any(remark in one for one in outcome.remarks) if remark else outcome.remarks == []
    test = pd.read_parquet(built.artifacts(wide.name) / "prepared" / "test.parquet")
    answers = task_type_for(wide).answers(tmp_path, test, wide)
    model = load(tmp_path)
    labels = [str((model.contract.labels or [])[place]) for place in answers.argmax(axis=1)]
    assert (test["kind"].to_numpy() == labels).mean() > 0.7
    assert model.contract.labels == Contract.read(original / "contract.json").labels
    assert model.predict([model.contract.sample] * 3)


def test_a_student_that_is_calibrated_has_its_own_temperature(
    built: Project, wide: Recipe, original: Path, tmp_path: Path
) -> None:
    calibrated = wide.model_copy(update={"train": wide.train.model_copy(update={"calibrate": "temperature"})})
    compressed(calibrated, built, original, tmp_path, method="distil", epochs=1)
    assert Contract.read(tmp_path / "contract.json").temperature not in (None, 1.0)
    assert Contract.read(original / "contract.json").temperature is None, "the teacher was not calibrated"


def test_a_graph_with_nothing_to_compress_stays_as_it_is_and_the_verdict_says_so(
    built: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = with_section(another(built, "narrow"), method="int8-static")
    folder = export(recipe, built)
    assert (folder / "model.onnx").read_bytes() == (folder / UNCOMPRESSED / "model.onnx").read_bytes()
    said = "int8-static changes nothing, since it has no weights of 256 values or more"
    assert said in " ".join(capsys.readouterr().err.split())
    version = register(recipe, built)
    assert "compression" not in version.identity
    assert any(said in reason for reason in decide(recipe, version, built).verdict.reasons)


def test_too_few_rows_to_calibrate_with_are_refused(built: Project, original: Path, tmp_path: Path) -> None:
    recipe = another(built, "one-row")
    rows = built.artifacts("one-row") / "prepared" / "train.parquet"
    pd.read_parquet(rows).iloc[:1].to_parquet(rows, index=False)
    with pytest.raises(DataError, match=r"on training rows, and there is 1: at least 16 are needed") as caught:
        compressed(recipe, built, original, tmp_path, method="int8-static")
    assert "int8-dynamic" in str(caught.value.hint) and caught.value.where == "artifacts/one-row/prepared/train.parquet"


def test_a_graph_that_answers_with_nan_is_refused(built: Project, wide: Recipe, original: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(original, damaged)
    graph = onnx.load(original / "model.onnx")
    tensor = next(one for one in graph.graph.initializer if size_of(one) == 64 * 64)
    values = np.full((64, 64), 3e38, np.float32)  # bfloat16 rounds it down, and the sum is infinite
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, damaged / "model.onnx")
    with pytest.raises(ExportError, match=r"the graph of bfloat16 answers \d+ of \d+ training rows with NaN or infinity"):
        compressed(wide, built, damaged, tmp_path / "made", method="bfloat16")


def test_a_model_of_several_graphs_is_refused(built: Project, wide: Recipe, original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "two")
    shutil.copy(original / "model.onnx", tmp_path / "two" / "decoder.onnx")
    with pytest.raises(RecipeError, match="several graphs that run in turns"):
        compressed(wide, built, tmp_path / "two", tmp_path / "made", method="float16")


def test_a_full_disk_is_an_error_of_its_own(
    built: Project, wide: Recipe, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")

    monkeypatch.setattr(quantise, "_prepared", full)
    with pytest.raises(OSError) as caught:
        compressed(wide, built, original, tmp_path, method="int8-dynamic")
    assert isinstance(as_headrace_error(caught.value), DiskFull)
    assert not list(tmp_path.glob(".quantise-*"))


def test_distillation_needs_classes() -> None:
    from headrace.compression.distillation import Distillation
    from headrace.models.served import AsIs, Classifier, Regressor

    network = torch.nn.Linear(3, 2)
    with pytest.raises(RecipeError, match="one label in each row, and Regressor is none"):
        Distillation(Regressor(AsIs(), network, 0.0, 1.0), Classifier(AsIs(), network), 2.0, 0.5)


def test_the_loss_of_a_student_is_zero_for_the_answers_of_its_teacher() -> None:
    from headrace.compression.distillation import Distillation
    from headrace.models.served import AsIs, Classifier

    class First(AsIs):
        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return inputs[:1]

    torch.manual_seed(0)
    teacher, student = (Classifier(First(), torch.nn.Linear(3, 4)) for _ in range(2))
    x, y = torch.randn(8, 3), torch.arange(8) % 4
    soft = Distillation(teacher, student, 3.0, 1.0).train()
    p, q = ((model.network(x) / 3).softmax(1) for model in (teacher, student))
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(soft.loss(soft.raw(x), y), expected, atol=1e-6)
    assert {name for name, _ in soft.named_parameters()} == {name for name, _ in student.named_parameters()}
    student.network.load_state_dict(teacher.network.state_dict())
    assert float(soft.loss(soft.raw(x), y).detach()) < 1e-6
    assert soft.eval().raw(x).shape == (8, 4)


def test_the_student_is_half_as_wide_where_the_recipe_names_none() -> None:
    assert half_as_wide(MLPConfig(hidden=[64, 9])).model_dump()["hidden"] == [32, 4]
    assert half_as_wide(CNNConfig(channels=[16, 1])).model_dump()["channels"] == [8, 1]
    found = half_as_wide(RecurrentConfig(embedding=96, hidden=48, members=4)).model_dump()
    assert (found["embedding"], found["hidden"], found["members"]) == (48, 24, 1)
    with pytest.raises(RecipeError, match="the student has to be named: 'attention' cannot have half of it") as caught:
        half_as_wide(AttentionConfig(width=8, heads=4))
    assert "student:" in str(caught.value.hint)
