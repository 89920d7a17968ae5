"""Stages of a recipe that adapts a pretrained encoder: what is trained and served, and what a kill or a repetition gives."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from headrace.errors import HeadraceError, RecipeError
from headrace.files import read_json
from headrace.importing.base import bring_base
from headrace.models.pretrained_base import UnusableBase
from headrace.monitoring.profile import Profile
from headrace.pipeline.prepare import prepare
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.training.run import train_model
from tests.bento_projects import another, run_stages
from tests.projects import make_project
from tests.tiny_bert import WORDS, write_tiny_encoder
from tests.training.killed_runs import killed

pytest.importorskip("transformers")

RECIPE: dict[str, Any] = {
    "name": "texts",
    "task": "text-classification",
    "data": {"source": "texts.csv", "target": "kind", "text": {"column": "text", "length": 12}},
    "expect": [],
    "model": {"name": "pretrained", "source": "encoder/model.safetensors", "tune": "lora", "rank": 4},
    "train": {"epochs": 8, "batch_size": 16, "learning_rate": 0.03, "device": "cpu"},
    "serve": {"replicas": 1},
}


def texts(rows: int) -> pd.DataFrame:
    """Texts of two kinds, which have different words."""
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 2, rows)
    words = np.array(WORDS[:80]).reshape(2, 40)
    return pd.DataFrame(
        {
            "text": [" ".join([*rng.choice(words[kind], 8), "unheard"]) for kind in kinds],
            "kind": np.array(["first", "second"])[kinds],
        }
    )


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("adapted") / "clone")
    write_tiny_encoder(project.root / "encoder")
    texts(300).to_csv(project.root / "texts.csv", index=False)
    (project.recipes / "texts.yaml").write_text(yaml.safe_dump(RECIPE))
    bring_base(load_recipe("texts", project), project, lambda line: None)
    run_stages(project, "texts")
    return project


def like(project: Project, name: str, **train: Any) -> Recipe:
    """A recipe with data, encoder and artifacts of `texts`, not trained."""
    recipe = another(project, name, "texts", train=train)
    if not project.raw_data(name).exists():
        project.raw_data(name).symlink_to(project.raw_data("texts"))
    for path in (project.artifacts(name) / "train").iterdir():
        path.unlink()
    return recipe


def test_the_served_model_has_learned_what_its_added_matrices_allow(adapted: Project) -> None:
    artifacts = adapted.artifacts("texts")
    assert read_json(artifacts / "evaluation" / "metrics.json")["accuracy"] >= 0.75  # type: ignore[index]
    summary = read_json(artifacts / "train" / "summary.json")
    assert summary is not None
    matrices, head = 2 * 3 * 2 * 4 * 16, 2 * 17  # layers x projections x (in and out) x rank x width
    assert summary["trainable_parameters"] == matrices + head < summary["parameters"] / 2
    names = torch.load(artifacts / "train" / "model.pt", weights_only=True).keys()
    assert any(".lora_A." in name for name in names)


def test_drift_is_compared_with_the_unknown_tokens_of_the_encoder(adapted: Project) -> None:
    profile = Profile.read(adapted.artifacts("texts") / "evaluation" / "profile.json")
    ((value, share),) = profile.feature("text: unknown tokens").atoms
    assert (value, share) == (pytest.approx(1 / 9), 1.0), "each text has one word that the encoder does not know"


def test_a_killed_training_of_an_encoder_ends_as_one_never_killed(adapted: Project) -> None:
    never, recipe = like(adapted, "never"), like(adapted, "killed")
    train_model(never, adapted)
    killed(recipe, adapted, f"{recipe.name}.pt", 2)
    train_model(recipe, adapted)
    for name in ("model.pt", "curves.csv", "summary.json"):
        made = [(adapted.artifacts(one.name) / "train" / name).read_bytes() for one in (never, recipe)]
        assert made[0] == made[1], name


@pytest.mark.parametrize("tune", ["head", "full"])
def test_the_head_alone_or_all_weights_are_trained(adapted: Project, tune: str) -> None:
    model = {"name": "pretrained", "source": RECIPE["model"]["source"], "tune": tune}
    fields = {**RECIPE, "name": tune, "model": model, "train": {**RECIPE["train"], "epochs": 1}}
    (adapted.recipes / f"{tune}.yaml").write_text(yaml.safe_dump(fields))
    recipe = load_recipe(tune, adapted)
    bring_base(recipe, adapted, lambda line: None)
    run_stages(adapted, tune)
    summary = read_json(adapted.artifacts(tune) / "train" / "summary.json")
    assert summary is not None
    assert summary["trainable_parameters"] == (2 * 17 if tune == "head" else summary["parameters"])


def test_texts_longer_than_the_encoder_takes_are_the_recipes_mistake(adapted: Project) -> None:
    recipe = another(adapted, "long", "texts", data={"text": {"column": "text", "length": 33}})
    adapted.raw_data("long").symlink_to(adapted.raw_data("texts"))
    with pytest.raises(RecipeError, match="length is 33, and the encoder takes texts of at most 32 tokens"):
        prepare(recipe, adapted)


def test_an_encoder_that_is_gone_is_named_with_the_command_that_fetches_it(adapted: Project) -> None:
    recipe = like(adapted, "gone")
    adapted.raw_data("gone").unlink()
    adapted.raw_data("gone").mkdir()
    for file in adapted.raw_data("texts").glob("*.parquet"):
        (adapted.raw_data("gone") / file.name).symlink_to(file)
    with pytest.raises(HeadraceError, match="has no pretrained encoder") as caught:
        prepare(recipe, adapted)
    assert caught.value.hint == "headrace run gone fetches it"


def test_packages_that_are_missing_are_named(adapted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peft", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnusableBase, match="needs the packages transformers and peft") as caught:
        bring_base(load_recipe("texts", adapted), adapted, lambda line: None)
    assert caught.value.hint == "pip install 'headrace[pretrained]'"
