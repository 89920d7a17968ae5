"""Personal columns: known ones only, and the fields of the contract that hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from headrace.data.ingest import ingest
from headrace.errors import DataError, RecipeError
from headrace.project import Project
from headrace.recipe.data import DataConfig
from headrace.recipe.monitor import MonitorConfig, personal_fields
from headrace.recipe.recipe import load_recipe, parse_recipe
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from tests.projects import TINY_TABLE


def contract(*fields: InputField) -> Contract:
    return Contract(model="m", task="classification", inputs=list(fields), output="value", target="y", sample={})


def data(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"source": "a.csv", "target": "y", **fields})


def test_a_column_that_is_not_in_the_recipes_columns_has_a_near_miss() -> None:
    recipe = yaml.safe_load(TINY_TABLE)
    recipe["data"]["columns"] = ["length", "width", "kind"]
    recipe["monitor"] = {"personal": ["lenght"]}
    with pytest.raises(RecipeError, match=r"monitor\.personal: 'lenght' is not in data\.columns; did you mean 'length'\?"):
        parse_recipe(yaml.safe_dump(recipe), "recipes/tiny.yaml")


def test_a_column_that_the_data_does_not_have_ends_the_ingest(project: Project) -> None:
    path = project.recipes / "tiny.yaml"
    path.write_text(path.read_text() + "monitor: {personal: [lenght]}\n")
    for _ in range(2):  # also when the data is there already
        with pytest.raises(DataError, match="no column 'lenght'; did you mean 'length'") as caught:
            ingest(load_recipe("tiny", project), project, lambda line: None)
        assert caught.value.where == "monitor.personal"
    path.write_text(path.read_text().replace("lenght", "length"))
    ingest(load_recipe("tiny", project), project, lambda line: None)


def test_fields_are_found_by_their_name_and_by_that_of_their_column() -> None:
    fields = [InputField(name=name, dtype="float32") for name in ("age", "income")]
    renamed = InputField(name="postcode", column="plz", dtype="string", levels=["1"])
    found = personal_fields(MonitorConfig(personal=["plz", "age", "not-sent"]), data(), contract(*fields, renamed))
    assert found == ["age", "postcode"]


def test_a_personal_text_makes_all_free_texts_personal() -> None:
    prompt = InputField(name="prompt", dtype="string")
    fields = (prompt, InputField(name="stop", dtype="string"), InputField(name="top_p", dtype="float32"))
    monitor = MonitorConfig(personal=["verse"])
    assert personal_fields(monitor, data(text={"column": "verse"}), contract(*fields)) == ["prompt", "stop"]
    assert personal_fields(monitor, data(), contract(*fields)) == []


def test_a_contract_without_personal_fields_is_as_before_and_older_ones_load(tmp_path: Path) -> None:
    contract(InputField(name="age", dtype="float32")).write(tmp_path / "contract.json")
    assert "personal" not in (tmp_path / "contract.json").read_text()
    assert Contract.read(tmp_path / "contract.json").personal == []
