"""Answers with several labels or values: schemas, results of batches, feedback, metrics, and the comparison of versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

from bentos.telemetry.metrics import Metrics
from bentos.telemetry.records import recorded_answers
from headrace.runtime.contract import Contract
from headrace.runtime.http import Refused
from headrace.runtime.input_field import InputField
from headrace.services.api.batch_rows import write_parquet
from headrace.services.api.batch_store import Part
from headrace.services.api.feedback import _check_truths, _Feedback, _one_row_of_labels
from headrace.services.api.json_schemas import answer_schema, truth_schema
from headrace.serving.rollout.recorded_answers import AnswerReader, ComparedAnswers
from headrace.serving.rollout.shadow import agreement

FIELDS = [InputField(name="x", dtype="float32")]
LABELS = Contract(
    model="tags",
    task="multilabel-classification",
    inputs=FIELDS,
    output="labels",
    labels=["late", "paid", 3],
    thresholds=[0.5, 0.25, 0.5],
    target="tags",
    sample={"x": 1.0},
)
VALUES = Contract(
    model="flats",
    task="regression",
    inputs=FIELDS,
    output="values",
    targets=["rent", "row"],
    target="rent, row",
    sample={"x": 1.0},
)
ANSWERS = {
    "tags": LABELS.to_answers(np.array([[0.75, 0.25, 0.5], [0.25, 0.125, 0.0]], np.float32)),
    "flats": VALUES.to_answers(np.array([[900.5, 4.0], [800.0, 3.5]], np.float32)),
}


def test_contracts_turn_outputs_into_answers_and_back_into_json() -> None:
    assert ANSWERS["tags"] == [
        {"labels": ["late", "paid", 3], "probabilities": {"late": 0.75, "paid": 0.25, "3": 0.5}},
        {"labels": [], "probabilities": {"late": 0.25, "paid": 0.125, "3": 0.0}},
    ]
    assert ANSWERS["flats"] == [{"rent": 900.5, "row": 4.0}, {"rent": 800.0, "row": 3.5}]
    assert (LABELS.answer_shape, VALUES.answer_shape) == ((3,), (2,))
    for contract in (LABELS, VALUES):
        assert Contract.model_validate_json(contract.model_dump_json()) == contract
    older = Contract(model="m", task="regression", inputs=FIELDS, output="value", target="y", sample={"x": 1.0})
    assert not {"thresholds", "targets"} & older.model_dump().keys()  # the files of older models keep their bytes


@pytest.mark.parametrize(("contract", "truth"), [(LABELS, ["late", 3]), (LABELS, []), (VALUES, {"rent": 1, "row": 2.5})])
def test_schemas_fit_answers_and_truths(contract: Contract, truth: Any) -> None:
    for answer in ANSWERS[contract.model]:
        jsonschema.validate(answer, answer_schema(contract))
    jsonschema.validate(truth, truth_schema(contract))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate("late", truth_schema(contract))


@pytest.mark.parametrize("contract", [LABELS, VALUES], ids=["labels", "values"])
def test_results_of_batches_have_a_column_for_each(contract: Contract, tmp_path: Path) -> None:
    lines = [
        {"row": row, "prediction": answer, "error": None, "id": "a", "id_row": row}
        for row, answer in enumerate(ANSWERS[contract.model])
    ]
    lines.append({"row": 2, "prediction": None, "error": {"code": "c", "message": "m"}, "id": None, "id_row": None})
    (tmp_path / "part").write_text("\n".join(json.dumps(line) for line in lines))
    write_parquet([Part(0, 3, 1, tmp_path / "part")], contract, tmp_path / "result.parquet")
    table = pq.read_table(tmp_path / "result.parquet")
    if contract is VALUES:  # a target with the name of another column of the result
        assert table.column_names == ["row", "rent", "value_row", "error", "id", "id_row", "warnings"]
        assert table["value_row"].to_pylist() == [4.0, 3.5, None]
    else:
        assert table["labels"].to_pylist() == [["late", "paid", "3"], [], None]
        assert dict(table["probabilities"].to_pylist()[1]) == {"late": 0.25, "paid": 0.125, "3": 0.0}


def truths(contract: Contract, given: Any) -> list[Any]:
    feedback = _Feedback("r", contract.model, "1", 0, given)
    _one_row_of_labels(feedback, contract)
    _check_truths(feedback, contract)
    return feedback.truths


@pytest.mark.parametrize(
    ("contract", "given", "found"),
    [
        (LABELS, ["late", 3], [["late", 3]]),
        (LABELS, [], [[]]),
        (LABELS, [["late"], []], [["late"], []]),
        (VALUES, {"rent": 1, "row": 2.5}, [{"rent": 1, "row": 2.5}]),
        (VALUES, [{"rent": 1, "row": 2}, {"rent": 3, "row": 4}], [{"rent": 1, "row": 2}, {"rent": 3, "row": 4}]),
    ],
)
def test_feedback_takes_lists_of_labels_and_named_values(contract: Contract, given: Any, found: list[Any]) -> None:
    assert truths(contract, given) == found


@pytest.mark.parametrize(
    ("contract", "given", "message"),
    [
        (LABELS, ["lost"], "truth: expected a list of different labels of late, paid, 3, got str 'lost'"),
        (LABELS, ["late", "late"], "a list of different labels"),
        (LABELS, "late", "expected a list of different labels"),
        (LABELS, [["late"], "paid"], r"truth\.1: expected a list"),
        (VALUES, {"rent": 1}, "an object with a finite number for each of rent, row"),
        (VALUES, {"rent": 1, "row": True}, r"truth\.row: expected a finite number"),
        (VALUES, 3.5, "an object with a finite number for each"),
        (VALUES, [], "1 to 10000 true answers"),
    ],
)
def test_other_feedback_is_refused(contract: Contract, given: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        truths(contract, given)


def test_labels_and_values_are_recorded_and_counted() -> None:
    labels, values = (recorded_answers(contract, ANSWERS[contract.model]) for contract in (LABELS, VALUES))
    assert labels == [["late", "paid", 3], []] and values == ANSWERS["flats"]
    metrics = Metrics()
    metrics.count_answers([*labels, *values])
    text = bytes(metrics.render().body).decode()
    for answer in ("late", "paid", "3", "(none)", "rent 500", "row 2"):
        assert f'answer="{answer}"' in text, answer


def test_versions_are_compared_by_their_labels_and_values(tmp_path: Path) -> None:
    one = {("t", "1"): [["late"], []], ("t", "2"): [["paid"]]}
    assert agreement(one, {("t", "1"): [["late"], []], ("t", "2"): [[]]}) == (1, 2)
    champion = {("t", str(i)): [{"rent": 100.0 * i, "rating": float(i)}] for i in range(10)}
    near = {key: [{"rent": answers[0]["rent"] + 0.001, "rating": answers[0]["rating"]}] for key, answers in champion.items()}
    far = {**near, ("t", "3"): [{"rent": 300.0, "rating": 9.0}]}
    assert agreement(champion, near) == (10, 10) and agreement(champion, far) == (9, 10)
    for name, answers in (("new", [["late"]]), ("champion", [{"rent": 1.0, "rating": 2.0}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "answers-1.jsonl").write_text(json.dumps({"answers": answers}) + "\n")
    readers = [AnswerReader([tmp_path / name], with_past=True) for name in ("new", "champion")]
    assert ComparedAnswers(*readers).votes() == ({"['late']": 1.0}, {"1.0 and above": 1.0})
