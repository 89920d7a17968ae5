"""Where pretrained encoders come from: nothing is kept of one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import HeadraceError, SourceError
from headrace.importing.errors import ImportRefused
from headrace.importing.kept import kept_model
from headrace.importing.store import bring_model, require_licence
from headrace.project import Project
from headrace.recipe.models import PretrainedConfig
from tests.tiny_bert import write_tiny_encoder

pytest.importorskip("transformers")


def bring(project: Project, **fields: object) -> dict[str, object]:
    config = PretrainedConfig.model_validate({"source": "encoder/model.safetensors", **fields})
    bring_model("texts", config, project, lambda line: None)
    kept = kept_model("texts", project)
    assert kept is not None
    return kept.record


def test_an_encoder_is_kept_by_the_hash_of_its_three_files(project: Project) -> None:
    weights = write_tiny_encoder(project.root / "encoder")
    first = bring(project)
    assert first["files"] == ["model.safetensors", "config.json", "tokenizer.json"]
    assert bring(project, sha256=first["sha256"]) == first  # unchanged
    weights.with_name("tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="was imported"):
        bring(project)


def test_another_hash_than_that_of_the_recipe_is_refused(project: Project) -> None:
    write_tiny_encoder(project.root / "encoder")
    with pytest.raises(SourceError, match="has sha256"):
        bring(project, sha256="0" * 64)
    assert kept_model("texts", project) is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_nothing_is_kept_of_an_encoder_that_lacks_a_file(project: Project, name: str) -> None:
    write_tiny_encoder(project.root / "encoder").with_name(name).unlink()
    with pytest.raises(HeadraceError, match=name):
        bring(project)
    assert not project.imported_model("texts").exists()


def test_nothing_is_kept_of_an_encoder_with_code_of_its_own(project: Project) -> None:
    config = write_tiny_encoder(project.root / "encoder").with_name("config.json")
    config.write_text(config.read_text().replace("{", '{"auto_map": {"AutoModel": "own.Model"},', 1))
    with pytest.raises(HeadraceError, match="needs code of its own"):
        bring(project)
    assert not project.imported_model("texts").exists()


def test_a_licence_that_the_settings_forbid_is_refused(project: Project, tmp_path: Path) -> None:
    write_tiny_encoder(project.root / "encoder")
    (project.root / "headrace.toml").write_text('licences_refused = ["cc-by-nc-4.0"]\n')
    with pytest.raises(ImportRefused, match="licences_refused"):
        bring(Project(project.root), licence="CC-BY-NC-4.0")
    assert not project.imported_model("texts").exists()
    require_licence("Apache-2.0", Project(project.root).settings)
