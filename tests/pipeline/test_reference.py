"""The reference profile that the stage `evaluate` makes of a recipe with a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headrace.monitoring.profile import Profile
from headrace.pipeline.reference import write_profile
from headrace.recipe.monitor import personal_fields
from headrace.recipe.recipe import parse_recipe
from headrace.task_types.lookup import task_type_for

TEXTS = """
name: notes
task: text-classification
data: {source: notes.csv, target: kind, text: {column: notes, tokens: words}}
expect: []
model: {name: attention, width: 8, heads: 2}
train: {}
serve: {}
"""
TABLE = """
name: notes
task: classification
data: {source: notes.csv, target: kind, text: {column: notes, tokens: words}}
expect: []
model: {name: mlp, hidden: [4]}
train: {}
serve: {}
"""


def rows(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    words = np.array([f"word{i}" for i in range(60)])
    notes = [" ".join(rng.choice(words, 8)) + f" name{seed}x{i}" for i in range(count)]
    return pd.DataFrame({"notes": notes, "size": rng.normal(size=count), "kind": rng.choice(["a", "b"], count)})


def profile_of(recipe_text: str, folder: Path) -> Profile:
    recipe = parse_recipe(recipe_text, "recipes/notes.yaml")
    columns = ["notes", "kind"] if "text-classification" in recipe_text else ["notes", "size", "kind"]
    train, test = rows(600, 1)[columns], rows(80, 2)[columns]
    task_type = task_type_for(recipe)
    learner = task_type.learner(recipe)
    if learner is None:
        schema = task_type.fit(train, recipe)
    else:
        learner.add(train)
        schema = learner.schema()
    (folder / "prepared").mkdir(parents=True)
    (folder / "export").mkdir()
    train.to_parquet(folder / "prepared" / "train.parquet")
    test.to_parquet(folder / "prepared" / "test.parquet")
    contract = task_type.contract(schema, recipe, test)
    personal = personal_fields(recipe.monitor, recipe.data, contract)
    contract.model_copy(update={"personal": personal}).write(folder / "export" / "contract.json")
    (folder / "export" / "tokenizer.json").write_text(schema.tokenizer or "")
    write_profile(recipe, folder, np.full((80, 2), 0.5))
    return Profile.read(folder / "evaluation" / "profile.json")


@pytest.mark.parametrize(("recipe", "field"), [(TEXTS, "text"), (TABLE, "notes")])
def test_a_text_has_its_unknown_tokens_of_the_test_rows_and_components_of_the_training_rows(
    recipe: str, field: str, tmp_path: Path
) -> None:
    profile = profile_of(recipe, tmp_path)
    unknown = profile.feature(f"{field}: unknown tokens")
    # each row has a name of its own: the vocabulary has none, as each occurs once, and words in training occur often
    (atom,) = unknown.atoms
    assert unknown.rows == 80 and atom == pytest.approx((1 / 9, 1.0))
    assert profile.feature(f"{field}: length").rows == 600
    assert profile.feature(f"{field}: component 4").rows == 450, "the other rows are those that it was learned from"


def test_a_personal_text_is_in_no_profile(tmp_path: Path) -> None:
    profile = profile_of(TABLE + "monitor: {personal: [notes]}\n", tmp_path)
    fields = {one.field for one in profile.features}
    assert "size" in fields and "notes" not in fields and profile.embeddings == []
