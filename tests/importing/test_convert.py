"""Models of scikit-learn, XGBoost and LightGBM: converted, and compared with the original."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentos.models.onnx_model import OnnxModel
from headrace.importing.errors import ImportRefused
from headrace.models.parity import TOLERANCE
from tests.exhaustive import exhaustive
from tests.importing.made import LABELS, NAMES, built, rows, write_skops


def probabilities(folder: Path, instance: dict[str, Any]) -> list[float]:
    return list(OnnxModel(folder / "export").predict([instance])[0]["probabilities"].values())


def test_a_classifier_of_skops_knows_its_columns_and_labels(tmp_path: Path) -> None:
    found = built(write_skops(tmp_path / "m.skops"))
    assert found.contract.task == "classification" and found.contract.labels == LABELS
    assert [one.name for one in found.contract.inputs] == NAMES
    assert found.facts["library"] == "scikit-learn" and found.facts["largest_difference"] <= TOLERANCE


def test_a_scaler_that_only_centres_says_no_ranges(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(with_std=False), LogisticRegression()).fit(*rows())
    assert built(write_skops(tmp_path / "m.skops", model)).facts["largest_difference"] <= TOLERANCE


@pytest.mark.parametrize(
    ("task", "message"),
    [("regression", "is one of classification"), ("text-generation", "is not a language model")],
)
def test_another_task_than_the_models_is_refused(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(ImportRefused, match=message) as caught:
        built(write_skops(tmp_path / "m.skops"), task)
    assert "`task: classification`" in str(caught.value)


def test_trees_and_texts_of_a_column_transformer(tmp_path: Path) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame, labels = rows()
    frame["main colour"] = np.where(frame["length"] > 0, "red", "blue")
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["main colour"]), remainder="passthrough")
    model = make_pipeline(encoder, RandomForestClassifier(4, random_state=1)).fit(frame, labels)
    found = built(write_skops(tmp_path / "m.skops", model))
    assert [(one.name, one.dtype, one.levels) for one in found.contract.inputs][-1] == (
        "main colour",
        "string",
        ["blue", "red"],
    )
    row = frame.iloc[[5]]
    assert probabilities(tmp_path, row.to_dict("records")[0]) == pytest.approx(model.predict_proba(row)[0], abs=1e-5)


def test_a_regression_without_names_takes_a_matrix(tmp_path: Path) -> None:
    from sklearn.ensemble import GradientBoostingRegressor

    frame, _ = rows()
    model = GradientBoostingRegressor(n_estimators=4).fit(frame.to_numpy(), frame.sum(axis=1))
    found = built(write_skops(tmp_path / "m.skops", model), targets=["total"])
    (field,) = found.contract.inputs
    assert (field.name, field.shape, found.contract.output) == ("X", (3,), "value")
    answer = OnnxModel(tmp_path / "export").predict([{"X": frame.to_numpy()[3].tolist()}])
    assert answer == [{"total": pytest.approx(model.predict(frame.to_numpy()[3:4])[0], abs=1e-4)}]


def test_unknown_types_are_refused_by_name_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = write_skops(tmp_path / "m.skops")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    schema = content["schema.json"].decode().replace('"StandardScaler"', '"Popen"')
    content["schema.json"] = schema.replace('"sklearn.preprocessing._data"', '"subprocess"').encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(ImportRefused, match=r"types that are not trusted: subprocess\.Popen; nothing of it was loaded"):
        built(path)


def test_a_tree_that_leads_nowhere_is_refused_before_it_predicts(tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeClassifier

    frame, labels = rows()
    model = DecisionTreeClassifier(max_depth=2).fit(frame, labels)
    state = model.tree_.__getstate__()
    state["nodes"]["left_child"][0] = 10_000
    model.tree_.__setstate__(state)
    with pytest.raises(ImportRefused, match="nodes that do not exist"):
        built(write_skops(tmp_path / "m.skops", model))


@pytest.mark.parametrize("kept", [40, 2000])
def test_a_truncated_skops_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = write_skops(tmp_path / "m.skops")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ImportRefused, match="damaged or truncated"):
        built(path)


def test_what_is_no_predictor_or_has_no_probabilities_is_refused(tmp_path: Path) -> None:
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    frame, labels = rows()
    with pytest.raises(ImportRefused, match="a StandardScaler, which is neither"):
        built(write_skops(tmp_path / "s.skops", StandardScaler().fit(frame)))
    with pytest.raises(ImportRefused, match="no predict_proba") as caught:
        built(write_skops(tmp_path / "l.skops", LinearSVC().fit(frame, labels)))
    assert "CalibratedClassifierCV" in str(caught.value)


@pytest.mark.parametrize("ending", ["json", exhaustive("ubj")])
def test_a_classifier_of_xgboost(tmp_path: Path, ending: str) -> None:
    import xgboost

    frame, labels = rows()
    model = xgboost.XGBClassifier(n_estimators=3, max_depth=2).fit(frame, np.searchsorted(LABELS, labels))
    path = tmp_path / f"m.{ending}"
    model.save_model(path)
    found = built(path, labels=LABELS)
    assert [one.name for one in found.contract.inputs] == NAMES and found.facts["library"] == "XGBoost"
    row = frame.iloc[[7]].astype(np.float32)
    assert probabilities(tmp_path, row.to_dict("records")[0]) == pytest.approx(model.predict_proba(row)[0], abs=1e-5)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ImportRefused, match=r"cannot be read|not a model of XGBoost"):
        built(path, labels=LABELS)


def test_a_file_that_ends_the_process_of_xgboost_is_refused(tmp_path: Path) -> None:
    """A text of 2 GB is announced, and XGBoost copies as much from memory."""
    path = tmp_path / "m.ubj"
    path.write_bytes(b"{L" + (7).to_bytes(8, "big") + b"learnerSL" + (2**31).to_bytes(8, "big") + b"x")
    with pytest.raises(ImportRefused, match=r"xgboost was ended by SIG(SEGV|BUS) while it read the file"):
        built(path, labels=LABELS)


def test_a_regression_of_xgboost_and_a_ranking_that_is_refused(tmp_path: Path) -> None:
    import xgboost

    frame, _ = rows()
    xgboost.XGBRegressor(n_estimators=3, max_depth=2).fit(frame.to_numpy(), frame.sum(axis=1)).save_model(tmp_path / "m.ubj")
    assert built(tmp_path / "m.ubj").contract.output == "value"
    ranker = xgboost.XGBRanker(n_estimators=1).fit(frame.to_numpy(), np.arange(90) % 2, qid=np.arange(90) // 10)
    ranker.save_model(tmp_path / "r.ubj")
    with pytest.raises(ImportRefused, match="its objective is rank"):
        built(tmp_path / "r.ubj")


def test_a_classifier_of_lightgbm(tmp_path: Path) -> None:
    import lightgbm

    frame, labels = rows()
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(frame, np.searchsorted(LABELS, labels))
    path = tmp_path / "m.txt"
    model.booster_.save_model(path)
    found = built(path, labels=LABELS)
    assert [one.name for one in found.contract.inputs] == NAMES and found.facts["library"] == "LightGBM"
    row = frame.iloc[[7]]
    assert probabilities(tmp_path, row.to_dict("records")[0]) == pytest.approx(model.predict_proba(row)[0], abs=1e-5)
    path.write_text(path.read_text()[: -len(path.read_text()) // 2])
    with pytest.raises(ImportRefused, match="its last trees are missing"):
        built(path, labels=LABELS)


@pytest.mark.exhaustive
def test_a_binary_classifier_and_a_regression_of_lightgbm(tmp_path: Path) -> None:
    import lightgbm

    frame, labels = rows()
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(frame.to_numpy(), labels == "large")
    model.booster_.save_model(tmp_path / "m.txt")
    assert built(tmp_path / "m.txt").contract.labels == [0, 1]
    regression = lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(frame.to_numpy(), frame.sum(axis=1))
    regression.booster_.save_model(tmp_path / "r.txt")
    assert built(tmp_path / "r.txt").contract.output == "value"


def test_facts_can_be_written_as_json(tmp_path: Path) -> None:
    found = built(write_skops(tmp_path / "m.skops"))
    assert json.loads((tmp_path / "export" / "import.json").read_text()) == json.loads(json.dumps(found.facts))
