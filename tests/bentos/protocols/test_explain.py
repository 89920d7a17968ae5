"""Explanations of a replica: attributions that can be worked out by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentos.app import PredictionApp
from bentos.models.onnx_model import load
from bentos.protocols.explain import MAX_EVALUATIONS
from tests.bentos.models.word_counter import up, word_counter
from tests.bentos.protocols.explain_requests import ask, send
from tests.tiny_models import image_model, language_model, table_model

UPPER = [[255] * 4, [255] * 4, [0] * 4, [0] * 4]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PredictionApp]:
    folder, apps = tmp_path_factory.mktemp("models"), {}
    makers = {"trips": table_model, "halves": image_model, "moods": word_counter, "letters": language_model}
    for name, make in makers.items():
        apps[name] = PredictionApp()
        apps[name].model = load(make(folder / name))
    return apps


def test_attributions_of_fields_sum_to_the_difference_from_the_sample(models: dict[str, PredictionApp]) -> None:
    """minutes = 2 * distance + code; the sample is 3.5 by AA (10), this one 5 by BB (20)."""
    found = ask(models["trips"], instance={"distance": 5, "carrier": "BB"})
    assert (found["method"], found["target"], found["value"], found["base_value"]) == ("Shapley values", "minutes", 30, 17)
    assert found["attributions"] == {"distance": 3, "carrier": 10} and found["standard_errors"] == {"distance": 0, "carrier": 0}
    assert found["evaluations"] == 4 and found["model"] == "trips" and found["id"].endswith(found["request_id"])


def test_a_custom_baseline(models: dict[str, PredictionApp]) -> None:
    baseline = {"distance": 0, "carrier": "?"}
    found = ask(models["trips"], instance={"distance": 5, "carrier": "BB"}, baseline=baseline)
    assert found["base_value"] == 0 and found["attributions"] == {"distance": 10, "carrier": 20}


def test_patches_of_an_image_are_occluded_one_by_one(models: dict[str, PredictionApp]) -> None:
    """Logits are sums of the halves over 255; a covered patch becomes the image's median, 127."""
    found = ask(models["halves"], instance={"pixels": UPPER}, patch=2)
    assert (found["method"], found["target"], found["patch"], found["evaluations"]) == ("occlusion", "upper", 2, 6)

    def probability(pixels: list[list[int]]) -> float:
        logits = np.array([np.sum(pixels[:2]), np.sum(pixels[2:])]) / 255
        return float(1 / (1 + np.exp(logits[1] - logits[0])))

    whole = probability(UPPER)
    assert found["value"] == pytest.approx(whole, abs=1e-6)
    grid = [[0.0] * 2 for _ in range(2)]
    for row in range(2):
        for column in range(2):
            covered = np.array(UPPER)
            covered[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 127
            grid[row][column] = whole - probability(covered.tolist())
    assert np.array(found["attributions"]) == pytest.approx(np.array(grid), abs=1e-6)
    assert found["base_value"] == pytest.approx(0.5)
    other = ask(models["halves"], instance={"pixels": UPPER}, patch=2, target="lower")
    assert np.array(other["attributions"]) == pytest.approx(-np.array(grid), abs=1e-6)


def test_patches_grow_until_the_evaluation_limit_is_met(models: dict[str, PredictionApp]) -> None:
    assert ask(models["halves"], instance={"pixels": UPPER})["patch"] == 1
    assert ask(models["halves"], instance={"pixels": UPPER}, evaluations=17)["patch"] == 2


def test_words_of_a_text_are_left_out_one_by_one(models: dict[str, PredictionApp]) -> None:
    found = ask(models["moods"], instance={"text": "good, plane bad good"})
    assert found["method"] == "leave one word out" and found["target"] == "up"
    value, without_good, without_bad = up(2, 1), up(1, 1), up(2, 0)
    assert found["value"] == pytest.approx(value) and found["base_value"] == pytest.approx(0.5)
    spans = found["attributions"]
    assert [(one["start"], one["end"], one["text"]) for one in spans] == [
        (0, 5, "good,"),
        (6, 11, "plane"),
        (12, 15, "bad"),
        (16, 20, "good"),
    ]
    wanted = [value - without_good, 0, value - without_bad, value - without_good]
    assert [one["attribution"] for one in spans] == pytest.approx(wanted, abs=1e-6)


def test_the_same_seed_explains_the_same(models: dict[str, PredictionApp]) -> None:
    first, second = (ask(models["trips"], instance={"distance": 1, "carrier": "AA"}, seed=3) for _ in range(2))
    assert {**first, "id": "", "request_id": ""} == {**second, "id": "", "request_id": ""}


def test_nodes_of_a_graph_are_left_out_one_by_one() -> None:
    from bentos.models.graphs import GraphModel
    from bentos.protocols.explain import ExplainRequest, explanation_for

    class Counting(GraphModel):
        """The probability of the first class is the share of ones among the nodes' features."""

        def __init__(self) -> None:
            pass

        def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
            for instance in instances:
                assert all(0 <= end < len(instance["nodes"]) for edge in instance["edges"] for end in edge)
            shares = [float(np.mean(instance["nodes"])) for instance in instances]
            return [{"probabilities": {"a": share, "b": 1 - share}} for share in shares]

    graph = {"nodes": [[1.0], [0.0], [1.0], [1.0]], "edges": [[0, 1], [1, 3], [3, 2]]}
    plan = explanation_for(Counting(), ExplainRequest(instance=graph))
    values = np.concatenate([plan.outputs(0, 3), plan.outputs(3, plan.rows)])[:, 0]
    found = plan.attribute(values)["attributions"]
    assert found == pytest.approx([0.75 - 2 / 3, 0.75 - 1, 0.75 - 2 / 3, 0.75 - 2 / 3])


@pytest.mark.parametrize(
    ("model", "fields", "path"),
    [
        ("trips", {"instance": {"distance": "far", "carrier": "AA"}}, "instance.distance"),
        ("trips", {"instance": {"distance": 1}}, "instance.carrier"),
        ("trips", {"instance": {"distance": 1, "carrier": "AA"}, "baseline": {"distance": 1}}, "baseline.carrier"),
        ("trips", {"instance": {"distance": 1, "carrier": "AA"}, "target": "minutes"}, "target"),
        ("trips", {"instance": {"distance": 1, "carrier": "AA"}, "patch": 2}, "patch"),
        ("trips", {"instance": []}, "instance"),
        ("trips", {}, "body"),
        ("trips", {"instance": {}, "instances": []}, "body"),
        ("halves", {"instance": {"pixels": UPPER}, "target": "middle"}, "target"),
        ("halves", {"instance": {"pixels": UPPER}, "baseline": {"pixels": UPPER}}, "baseline"),
        ("halves", {"instance": {"pixels": UPPER}, "patch": 0}, "patch"),
        ("halves", {"instance": {"pixels": UPPER}, "patch": 1, "evaluations": 5}, "patch"),
        ("halves", {"instance": {"pixels": UPPER}, "evaluations": MAX_EVALUATIONS + 1}, "evaluations"),
        ("halves", {"instance": {"pixels": UPPER}, "evaluations": 3}, "evaluations"),
        ("halves", {"instance": {"pixels": UPPER}, "seed": -1}, "seed"),
        ("moods", {"instance": {"text": "x" * 1001}}, "instance.text"),
        ("moods", {"instance": {"text": "good"}, "seed": "a"}, "seed"),
    ],
)
def test_input_that_cannot_be_explained_names_the_field(
    models: dict[str, PredictionApp], model: str, fields: dict[str, Any], path: str
) -> None:
    response = send(models[model], json.dumps(fields).encode())
    assert response.status_code == 422, response.text
    assert response.json()["error"]["path"] == path


def test_text_generation_is_not_explained(models: dict[str, PredictionApp]) -> None:
    response = send(models["letters"], json.dumps({"instance": {"prompt": "a"}}).encode())
    assert response.status_code == 422 and response.json()["error"]["code"] == "no_explanation"


@pytest.mark.parametrize("body", [b"", b"[]", b"{" * 10_000, b'{"instance": ' + b'{"a":' * 10_000, b'{"instance": NaN}'])
def test_no_body_makes_the_server_fail(models: dict[str, PredictionApp], body: bytes) -> None:
    assert send(models["trips"], body).status_code in (400, 422)


def test_rows_evaluated_for_an_explanation_are_metered(models: dict[str, PredictionApp]) -> None:
    def rows() -> float:
        text = bytes(models["trips"].metrics.render().body).decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("headrace_rows_total{"))

    before = rows()
    ask(models["trips"], instance={"distance": 5, "carrier": "BB"})
    assert rows() == before + 4


def test_an_empty_text_has_no_words_to_leave_out(tmp_path: Path, models: dict[str, PredictionApp]) -> None:
    found = ask(models["moods"], instance={"text": ""})
    assert found["attributions"] == [] and found["value"] == found["base_value"]
