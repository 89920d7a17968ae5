"""Every recipe of the repository, on a small slice of its data: released with every tool, and called through the gateway."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from bentos.models.onnx_model import load
from headrace.project import Project
from headrace.release import journal
from headrace.runtime.contract import Contract
from headrace.tracking import registry
from tests.paths import ROOT
from tests.release.live import Live
from tests.release.slices import SLICES
from tests.tiny_bert import write_tiny_encoder

SMALL: dict[str, dict[str, Any]] = {
    "appnp": {"hidden": [8]},
    "attention": {"width": 16, "heads": 2, "layers": 1},
    "cnn": {"channels": [4]},
    "gcn": {"hidden": [8, 8]},
    "gpt": {"width": 16, "heads": 2, "layers": 1},
    "mlp": {"hidden": [8]},
    "recurrent": {"embedding": 8, "hidden": 8},
    "recurrent-language": {"embedding": 8, "hidden": 16},
    "seq2seq": {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "beams": 2},
}
"""Widths of a model for a slice; the rest of its settings are the recipe's."""


def slice_of(name: str, project: Project) -> dict[str, Any]:
    """The recipe with a slice for its source, a smaller network, less training, and a gate that it passes."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    data = recipe["data"]
    for section in (data, data.get("join"), data.get("graph")):
        (section or {}).pop("sha256", None)
    folder = project.root / "slices" / name
    folder.mkdir(parents=True)
    SLICES[name](folder, data, np.random.default_rng(7))
    is_adapted = recipe["model"]["name"] == "pretrained"
    if "text" in data:
        most = {"length": 32} if is_adapted else {"vocabulary": 400, "length": 32}
        data["text"] |= {field: min(value, data["text"].get(field, value)) for field, value in most.items()}
    small = {"source": str(write_tiny_encoder(folder / "encoder"))} if is_adapted else SMALL[recipe["model"]["name"]]
    recipe["model"] |= small
    recipe["train"] |= {"epochs": 2, "batch_size": 32, "device": "cpu"}
    recipe["serve"]["replicas"] = 1
    gate = recipe["gate"]["require"]
    for metric, bound in gate.items():
        gate[metric] = re.sub(r"-?\d.*", "-1000000" if bound.startswith(">") else "1000000", bound)
    return recipe


@dataclass
class Asked:
    """A released model, as its users reach it."""

    live: Live
    name: str
    contract: Contract
    folder: Path
    """For files that a user has."""

    @property
    def url(self) -> str:
        return f"{self.live.gateway}/v1/models/{self.name}/predict"

    def predict(self, instance: dict[str, Any]) -> Any:
        """The prediction for one instance, sent as JSON."""
        return self._only(httpx.post(self.url, json={"instances": [instance]}, headers=self.live.headers, timeout=60))

    def look(self, picture: bytes) -> Any:
        """The prediction for a PNG as the whole body."""
        return self._only(
            httpx.post(self.url, content=picture, headers={**self.live.headers, "content-type": "image/png"}, timeout=60)
        )

    def stream(self, instance: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of one answer."""
        with httpx.stream(
            "POST", self.url, json={**instance, "stream": True}, headers=self.live.headers, timeout=60
        ) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: ")]

    def by_hand(self, *arguments: str) -> Any:
        """The prediction that `headrace predict` prints."""
        (prediction,) = self.live.json("predict", self.name, *arguments)["predictions"]
        return prediction

    def _only(self, response: httpx.Response) -> Any:
        assert response.status_code == 200, response.text
        (prediction,) = response.json()["predictions"]
        return prediction


# -- how users ask. Each asks in several ways that mean the same, and returns the instance and its answer.


def with_a_picture(asked: Asked) -> tuple[dict[str, Any], Any]:
    pixels = asked.contract.sample["image"]
    packed = BytesIO()
    if isinstance(pixels, str):  # a file in base64, where pictures of any size are taken
        packed.write(base64.b64decode(pixels))
    else:
        Image.fromarray(np.array(pixels, np.uint8)).save(packed, "PNG")
    (asked.folder / "digit.png").write_bytes(packed.getvalue())
    answer = asked.predict({"image": pixels})
    assert asked.look(packed.getvalue()) == answer
    assert asked.by_hand("--file", str(asked.folder / "digit.png")) == answer
    return {"image": pixels}, answer


def with_fields(asked: Asked) -> tuple[dict[str, Any], Any]:
    instance = asked.contract.sample
    answer = asked.predict(instance)
    assert asked.by_hand(*(f"{field}={'' if value is None else value}" for field, value in instance.items())) == answer
    return instance, answer


def with_a_text(asked: Asked) -> tuple[dict[str, Any], Any]:
    text = "The miller's daughter was lovely, and the water of the mill turned to bread in the oven."
    answer = asked.predict({"text": text})
    assert asked.by_hand("--text", text) == answer
    return {"text": text}, answer


def with_a_prompt(asked: Asked) -> tuple[dict[str, Any], Any]:
    instance = {"prompt": "The river ", "max_tokens": 12, "temperature": 1.0, "seed": 7}
    answer = asked.predict(instance)
    events = asked.stream(instance)
    assert "".join(event["text"] for event in events) == answer["text"]
    assert events[-1]["finish_reason"] == answer["finish_reason"] and events[-1]["model"] == asked.name
    assert len(events) > 1, "a text of several tokens comes in several pieces"
    assert asked.by_hand(*(f"{field}={value}" for field, value in instance.items())) == answer
    assert asked.by_hand("--text", "The river ").keys() == answer.keys()
    return instance, answer


def with_a_node(asked: Asked) -> tuple[dict[str, Any], Any]:
    node = asked.contract.sample["node"]
    answer = asked.predict({"node": node})
    assert asked.by_hand(f"node={node}") == answer
    for example in asked.contract.examples:  # a node that is not in the graph, and a graph of the user's own
        assert "label" in json.dumps(asked.predict(example))
    return {"node": node}, answer


ASK: dict[str, Callable[[Asked], tuple[dict[str, Any], Any]]] = {
    "image-classification": with_a_picture,
    "classification": with_fields,
    "regression": with_fields,
    "text-classification": with_a_text,
    "text-generation": with_a_prompt,
    "summarisation": with_a_text,
    "node-classification": with_a_node,
    "graph-classification": with_fields,
}


def broken(contract: Contract) -> tuple[dict[str, Any], str]:
    """An instance with one wrong value, and the name of its field."""
    if contract.task == "node-classification":
        return {"node": "unknown"}, "node"
    field = next((one for one in contract.inputs if one.dtype != "string"), contract.inputs[0])
    field = contract.inputs[0] if contract.output == "text" else field
    wrong: Any = 7 if field.dtype == "string" else [[1, 2], [3, 4]] if field.dtype == "uint8" else "seven"
    return {**contract.sample, field.name: wrong}, field.name


# -- the test


OFTEN = {"shakespeare"}
"""A language model. Images and tables are released by tests/test_docs.py; `make test-all` adds the rest."""
RECIPES = [
    pytest.param(path.stem, marks=() if path.stem in OFTEN else pytest.mark.exhaustive)
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_released_and_asked_through_the_balancer(name: str, live: Live, tmp_path: Path) -> None:
    recipe = slice_of(name, live.project)
    (live.project.recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    released = live.json("run", name)

    assert (released["version"], released["unchanged"]) == ("1", False)
    assert [entry.event for entry in journal.entries(live.project, name)] == ["released"]
    version = registry.get(f"{name}@champion", live.project)
    metrics = json.loads((live.project.artifacts(name) / "evaluation" / "metrics.json").read_text())
    assert recipe["gate"]["require"].keys() <= metrics.keys()
    described = httpx.get(f"{live.gateway}/v1/models/{name}", headers=live.headers, timeout=60).json()
    assert (described["version"], described["contract"]["task"]) == ("1", recipe["task"])

    asked = Asked(live, name, Contract.model_validate(described["contract"]), tmp_path)
    assert asked.predict(asked.contract.sample), "the contract's sample is answered"
    instance, answer = ASK[recipe["task"]](asked)
    assert_alike(answer, load(version.folder).predict([instance])[0])
    assert_fits(answer, asked.contract)

    wrong, field = broken(asked.contract)
    refused = httpx.post(asked.url, json={"instances": [asked.contract.sample, wrong]}, headers=live.headers, timeout=60)
    assert refused.status_code == 422
    assert refused.json()["error"]["path"].startswith(f"instances.1.{field}")


def test_all_of_them_are_served_side_by_side(live: Live) -> None:
    released = {entry.model for entry in journal.entries(live.project) if entry.event == "released"}
    served = {model["name"]: (model["ready"] > 0, model["alias"]) for model in live.json("status")["models"]}
    assert len(released) > 1 and served == dict.fromkeys(released, (True, "champion"))


def assert_alike(answer: Any, graph: Any) -> None:
    """The answers through the gateway are those of the registered model."""
    if isinstance(graph, dict):
        assert answer.keys() == graph.keys()
        for key, value in graph.items():
            assert_alike(answer[key], value)
    elif isinstance(graph, list):
        assert answer == pytest.approx(graph, rel=1e-4, abs=1e-5)
    else:
        assert answer == (pytest.approx(graph, rel=1e-4, abs=1e-5) if isinstance(graph, float) else graph)


def assert_fits(answer: Any, contract: Contract) -> None:
    if contract.output == "probabilities":
        assert answer["label"] in (contract.labels or ())
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    elif contract.output == "text":
        assert isinstance(answer[contract.target], str)
    elif contract.interval is not None:
        low, high = answer["interval"]
        assert low <= answer[contract.target] <= high


def test_every_recipe_has_a_slice() -> None:
    names = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert names <= SLICES.keys(), "write a slice of the new recipe's data into tests/release/slices.py"
