"""JSON Schemas from contracts."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtime.contract import Contract
from headrace.services.api.json_schemas import instance_schema
from tests.tiny_models import table_model


@pytest.mark.parametrize(
    ("served_by", "is_list"),
    [
        ("bentos.models.graphs:GraphModel", True),
        ("bentos.models.nodes:NodeModel", True),
        ("bentos.graphs:GraphModel", True),  # as registered before the modules were renamed
        ("bentos.graph:NodeModel", True),
        ("bentos.models.onnx_model:OnnxModel", False),
    ],
)
def test_fields_of_graph_models_are_lists(served_by: str, is_list: bool, tmp_path: Path) -> None:
    contract = Contract.read(table_model(tmp_path / "trips") / "contract.json")
    stored = contract.model_dump(mode="json") | {"served_by": served_by}
    schema = instance_schema(Contract.model_validate(stored))
    distance = schema["properties"]["distance"]
    assert (distance["type"] == "array") == is_list, distance
