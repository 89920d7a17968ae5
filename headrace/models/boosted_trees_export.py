"""Exports boosted trees: the features of a row, the trees and the answer as one ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.models.boosted_trees import BoostedTrees
from headrace.models.onnx_export import ML_OPSET, to_graph
from headrace.models.served import ServedModel

if TYPE_CHECKING:
    import onnx
    import torch

SCORES = "trees/scores"


def export_trees(model: ServedModel, example: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """Exports a model whose network are trees, as a graph that takes any number of rows."""
    import onnx
    import torch

    trees = model.network
    assert isinstance(trees, BoostedTrees)
    (features,) = model.preprocess(*example.values())
    rows = torch.export.Dim("rows")
    inputs = {"inputs": tuple({0: rows} for _ in example)}
    front = to_graph(model.preprocess, example, inputs, ["features"])
    scores = {"scores": torch.zeros((len(features), trees.scores_per_row))}
    back = to_graph(_answers(model, trees), scores, {"scores": {0: rows}}, ["answer"])
    middle = _trees_graph(trees, features.shape[1], front)
    for graph in (front, back):
        graph.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    front = onnx.compose.add_prefix(front, "features/", rename_inputs=False)
    back = onnx.compose.add_prefix(back, "answer/", rename_outputs=False)
    joined = onnx.compose.merge_models(front, middle, [("features/features", "trees/features")])
    return onnx.compose.merge_models(joined, back, [(SCORES, "answer/scores")])


def _answers(model: ServedModel, trees: BoostedTrees) -> torch.nn.Module:
    """Returns what follows the trees: scores to probabilities, or to values in the target's unit."""
    import torch

    class Answers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, scores: torch.Tensor) -> torch.Tensor:
            return model.answer(trees.logits(scores))

    return Answers().eval()


def _trees_graph(trees: BoostedTrees, features: int, like: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the trees alone. A converter adds the library's own output, such as a class, which is not needed: only what it
    says about nodes and leaves is kept."""
    from onnx import TensorProto, helper

    converted = trees.convert(features)
    (node,) = (one for one in converted.graph.node if one.op_type.startswith("TreeEnsemble"))
    found: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    nodes = {name: value for name, value in found.items() if name.startswith("nodes_")}
    leaf = "class" if "class_treeids" in found else "target"
    targets = {f"target_{name}": found[f"{leaf}_{name}"] for name in ("treeids", "nodeids", "ids", "weights")}
    if trees.scores_per_row == 1:
        targets["target_ids"] = [0] * len(targets["target_ids"])
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["trees/features"],
        [SCORES],
        domain="ai.onnx.ml",
        n_targets=trees.scores_per_row,
        post_transform="NONE",
        **nodes,
        **targets,
    )
    graph = helper.make_graph(
        [ensemble],
        "trees",
        [helper.make_tensor_value_info("trees/features", TensorProto.FLOAT, ["rows", features])],
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["rows", trees.scores_per_row])],
    )
    opsets = [*like.opset_import, helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=like.ir_version)
