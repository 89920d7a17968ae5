"""A pretrained encoder: what is trained, that it computes what `transformers` does, and that its graph does the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from headrace.models.onnx_export import export_graph, save_graph
from headrace.models.pretrained import Pretrained, check_weights, load_pretrained, merge_added
from headrace.models.pretrained_base import UnusableBase, read_base
from headrace.models.schema import PretrainedBase, Shape
from headrace.models.sequences import Trim
from headrace.models.served import Classifier
from headrace.recipe.models import PretrainedConfig
from headrace.runtime.tokenizer import Encoder
from tests.tiny_bert import write_tiny_encoder

pytest.importorskip("transformers")


def built(folder: Path, **fields: object) -> Classifier:
    base, _ = read_base(folder, "0" * 64)
    config = PretrainedConfig.model_validate({"source": "x/model.safetensors", **fields})
    model = Classifier(Trim(), Pretrained(config, Shape(vocabulary=100, length=32, outputs=3, base=base)))
    load_pretrained(model, folder)
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder")).parent


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])
def test_a_text_is_encoded_as_transformers_does_it_alone(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModel

    write_tiny_encoder(tmp_path, architecture)
    model = built(tmp_path).eval()
    alone = AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    tokens = torch.tensor([[7, 8, 9, 0], [10, 0, 0, 0], [0, 0, 0, 0], [11, 12, 13, 14]])
    network = model.network
    assert isinstance(network, Pretrained)
    for row, given in zip(tokens, model.raw(tokens), strict=True):
        ids = torch.tensor([[2, *row[row != 0].tolist(), 3]])
        expected = network.head(alone(input_ids=ids).last_hidden_state.mean(dim=1))[0]
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize(
    ("fields", "trained"),
    [({"tune": "head"}, {"head"}), ({"tune": "lora", "rank": 2}, {"head", "lora"}), ({"pooling": "cls"}, {"head", "encoder"})],
)
def test_training_changes_what_the_recipe_says_and_the_graph_answers_the_same(
    encoder: Path, tmp_path: Path, fields: dict[str, object], trained: set[str]
) -> None:
    torch.manual_seed(1)
    model = built(encoder, **fields)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    tokens, target = torch.randint(5, 100, (8, 6)), torch.randint(0, 3, (8,))
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model.raw(tokens), target).backward()
        optimizer.step()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    parts = {"head" if ".head." in name else "lora" if ".lora_" in name else "encoder" for name in changed}
    assert parts == trained

    model.eval()
    unmerged = model(tokens)
    merge_added(model)
    torch.testing.assert_close(model(tokens), unmerged)
    assert not any("lora" in name for name in model.state_dict())
    path = tmp_path / "model.onnx"
    save_graph(export_graph(model, {"tokens": tokens[:2]}, {"tokens": {1: "length"}}), path)
    session = onnxruntime.InferenceSession(path)
    tokens[3, 2:] = 0
    for part in (tokens, tokens[:1, :1], torch.randint(5, 100, (33, 32))):
        served = session.run(None, {"tokens": part.numpy()})[0]
        np.testing.assert_allclose(served, model(part).detach().numpy(), atol=1e-5)


def test_the_tokenizer_of_a_base_neither_pads_nor_truncates(encoder: Path) -> None:
    base, tokenizer = read_base(encoder, "0" * 64)
    assert (base.start, base.end) == (2, 3)
    assert Encoder(tokenizer).truncate([" ".join(["word1"] * 20)], 18) == [[6] * 18]
    assert Encoder(tokenizer).tokens("other word1") == [Encoder(tokenizer).unknown, 6] == [4, 6]
    assert PretrainedBase.model_validate_json(base.model_dump_json()) == base


def rewritten(encoder: Path, tmp_path: Path, **fields: object) -> Path:
    """A copy of an encoder with other fields in its configuration."""
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((encoder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "needs code of its own"),
        ({"model_type": "berd"}, "cannot be adapted; did you mean 'bert'"),
        ({"hidden_size": 15}, "config.json cannot be used"),
        ({"intermediate_size": 48}, r"has the shape \(32, 16\), and by config.json it is \(48, 16\)"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 10**12}, "says num_hidden_layers 1,000,000,000,000, and model.safetensors has"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 1}, "has weights that config.json does not have"),
        ({"vocab_size": 50}, "tokenizer.json has 100 tokens, and config.json says vocab_size 50"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"model_type": "distilbert"}, "missing"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(
    encoder: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    folder = rewritten(encoder, tmp_path, **fields)
    with pytest.raises(UnusableBase, match=message):
        check_weights(read_base(folder, "0" * 64)[0].config, folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "model.safetensors cannot be read"),
        ("model.safetensors", b"\x80\x04K\x01.", "model.safetensors cannot be read"),
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"[]", "says no model_type"),
        ("tokenizer.json", b"{}", "tokenizer.json is not a valid tokenizer"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("config.json", None, "config.json is missing"),
        ("model.safetensors", None, "model.safetensors is missing"),
    ],
)
def test_damaged_and_missing_files_are_refused(
    encoder: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = rewritten(encoder, tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UnusableBase, match=message):
        check_weights(read_base(folder, "0" * 64)[0].config, folder)


def test_a_truncated_file_of_weights_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = rewritten(encoder, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnusableBase, match="truncated, damaged or in another format"):
        check_weights(read_base(folder, "0" * 64)[0].config, folder)


def test_weights_of_half_precision_are_trained_in_single_precision(tmp_path: Path) -> None:
    """Configurations say in which type the weights were saved."""
    write_tiny_encoder(tmp_path, dtype="float16")
    assert '"float16"' in (tmp_path / "config.json").read_text()
    assert {weight.dtype for weight in built(tmp_path).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rank": 4}, "rank: applies to `tune: lora` only"), ({"source": "folder"}, "does not name the weights")],
)
def test_settings_that_do_not_apply_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainedConfig.model_validate({"source": "x/model.safetensors", **fields})
