"""A graph with its contract: what it answers, and what it refuses to serve."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from bentos.models import onnx_model
from bentos.models.onnx_model import InvalidOutput, NotServable, OnnxModel, load
from headrace.runtime.contract import RENAMED_CLASSES, Contract
from headrace.runtime.violations import ContractViolation
from tests.tiny_models import image_model, table_model


def test_probabilities_are_the_softmax_of_hand_computed_logits(tmp_path: Path) -> None:
    model = OnnxModel(image_model(tmp_path))
    (answer,) = model.predict([{"pixels": [[255] * 4, [0] * 4, [51] * 4, [0] * 4]}])
    upper = np.exp(4.0) / (np.exp(4.0) + np.exp(0.8))
    assert answer["label"] == "upper"
    assert answer["probabilities"]["upper"] == pytest.approx(upper, abs=1e-5)


def test_an_unknown_category_is_answered(tmp_path: Path) -> None:
    model = OnnxModel(table_model(tmp_path))
    rows = [{"distance": 100, "carrier": "BB"}, {"distance": 1.5, "carrier": "ZZ"}]
    assert model.predict(rows) == [{"minutes": 220.0}, {"minutes": 3.0}]


def test_rows_beyond_one_run_of_the_graph_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "ROWS_PER_RUN", 3)
    model = OnnxModel(table_model(tmp_path))
    rows = [{"distance": float(i), "carrier": "AA"} for i in range(8)]
    assert [answer["minutes"] for answer in model.predict(rows)] == [2.0 * i + 10 for i in range(8)]


def test_an_integer_of_hundreds_of_digits_breaks_the_contract(tmp_path: Path) -> None:
    with pytest.raises(ContractViolation):
        OnnxModel(table_model(tmp_path)).predict([{"distance": 10**400, "carrier": "AA"}])


def test_the_identity_file_gives_the_version(tmp_path: Path) -> None:
    folder = image_model(tmp_path)
    (folder / "identity.json").write_text(json.dumps({"version": "12", "data_md5": "d41d"}))
    model = OnnxModel(folder)
    assert (model.version, model.identity["data_md5"]) == ("12", "d41d")


def test_a_graph_with_another_input_is_not_served(tmp_path: Path) -> None:
    folder = table_model(tmp_path)
    contract = Contract.read(folder / "contract.json")
    contract.model_copy(update={"inputs": contract.inputs[:1], "sample": {"distance": 1.0}}).write(folder / "contract.json")
    with pytest.raises(NotServable, match="carrier"):
        OnnxModel(folder)


def test_a_sample_that_breaks_its_own_contract_is_not_served(tmp_path: Path) -> None:
    folder = table_model(tmp_path)
    contract = Contract.read(folder / "contract.json")
    contract.model_copy(update={"sample": {"distance": "far", "carrier": "AA"}}).write(folder / "contract.json")
    with pytest.raises(NotServable, match=r"instances\.0\.distance"):
        OnnxModel(folder)


def test_a_graph_with_fewer_classes_than_labels_is_not_served(tmp_path: Path) -> None:
    folder = image_model(tmp_path)
    contract = Contract.read(folder / "contract.json")
    contract.model_copy(update={"labels": ["upper", "lower", "left"]}).write(folder / "contract.json")
    with pytest.raises(NotServable, match="shape"):
        OnnxModel(folder)


def test_an_answer_that_is_not_finite_is_never_given(tmp_path: Path) -> None:
    folder = table_model(tmp_path)
    graph = onnx.load(folder / "model.onnx")
    (two,) = graph.graph.initializer
    two.CopyFrom(onnx.numpy_helper.from_array(np.array(3e38, np.float32), "two"))
    onnx.save(graph, folder / "model.onnx")
    contract = Contract.read(folder / "contract.json")
    contract.model_copy(update={"sample": {"distance": 1.0, "carrier": "AA"}}).write(folder / "contract.json")
    with pytest.raises(InvalidOutput):
        OnnxModel(folder).predict([{"distance": 100.0, "carrier": "AA"}])


@pytest.mark.parametrize(("old", "new"), RENAMED_CLASSES.items())
def test_a_contract_with_an_earlier_class_name_loads_the_class_of_today(old: str, new: str, tmp_path: Path) -> None:
    contract = Contract.read(image_model(tmp_path) / "contract.json")
    module, _, name = new.partition(":")
    (tmp_path / "contract.json").write_text(contract.model_dump_json().replace(contract.served_by, old))
    assert Contract.read(tmp_path / "contract.json").served_by == new
    assert issubclass(getattr(importlib.import_module(module), name), OnnxModel)


def test_a_version_registered_under_an_earlier_class_name_still_predicts(tmp_path: Path) -> None:
    contract = Contract.read(image_model(tmp_path) / "contract.json")
    (tmp_path / "contract.json").write_text(contract.model_dump_json().replace(contract.served_by, "bentos.model:ServedModel"))
    assert load(tmp_path).predict([contract.sample])[0]["label"] == "upper"


def test_a_custom_class_that_imports_a_moved_module_gets_an_error_with_the_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = Contract.read(image_model(tmp_path) / "contract.json")
    (tmp_path / "served_halves.py").write_text("from bentos.model import ServedModel\n")
    monkeypatch.syspath_prepend(tmp_path)
    contract.model_copy(update={"served_by": "served_halves:Halves"}).write(tmp_path / "contract.json")
    with pytest.raises(NotServable, match=r"in served_halves, import bentos\.models\.onnx_model"):
        load(tmp_path)
