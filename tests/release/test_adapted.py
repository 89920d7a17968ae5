"""A recipe that adapts a pretrained encoder, released by the real command line: served, traced, trained on and reproduced."""

from __future__ import annotations

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml

from headrace.files import read_json
from tests.release.live import Live
from tests.tiny_bert import WORDS, write_tiny_encoder

pytest.importorskip("transformers")


@pytest.mark.exhaustive
def test_an_adapted_encoder_is_released_traced_trained_on_and_reproduced(live: Live) -> None:
    root = live.project.root
    write_tiny_encoder(root / "encoder")
    rng, words = np.random.default_rng(2), np.array(WORDS[:80]).reshape(2, 40)
    kinds = rng.integers(0, 2, 300)
    rows = [{"text": " ".join(rng.choice(words[kind], 8)), "kind": ("first", "second")[kind]} for kind in kinds]
    pd.DataFrame(rows[:260]).to_csv(root / "texts.csv", index=False)
    recipe = {
        "name": "texts",
        "task": "text-classification",
        "data": {"source": "texts.csv", "target": "kind", "text": {"column": "text", "length": 12}},
        "expect": [],
        "model": {"name": "pretrained", "source": "encoder/model.safetensors", "licence": "MIT", "tune": "lora", "rank": 4},
        "train": {"epochs": 6, "batch_size": 16, "learning_rate": 0.03, "device": "cpu"},
        "gate": {"require": {"accuracy": ">= 0.8"}},
        "serve": {"replicas": 1},
    }
    path = live.project.recipes / "texts.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert live.json("run", "texts")["version"] == "1"
    assert live.json("run", "texts")["unchanged"]
    address = f"{live.gateway}/v1/models/texts/predict"
    for number, kind in enumerate(("first", "second")):
        text = " ".join(words[number][:8])
        answer = httpx.post(address, json={"instances": [{"text": text}]}, headers=live.headers, timeout=30)
        assert answer.json()["predictions"][0]["label"] == kind
    links = {link["link"]: link["id"] for link in live.json("trace", "texts@1")["chain"]}
    record = read_json(live.project.imported_model("texts") / "source.json")
    assert record is not None
    assert (links["adapted from"], links["licence"]) == ("encoder/model.safetensors", "MIT")
    assert links["adapted model"] == f"sha256 {record['sha256']}"
    assert live.json("reproduce", "texts@1")["identical"]

    pd.DataFrame(rows).to_csv(root / "texts.csv", index=False)
    path.write_text(yaml.safe_dump(recipe | {"train": recipe["train"] | {"start": "champion"}}, sort_keys=False))
    live.run("run", "texts", "--json")
    summary = read_json(live.project.artifacts("texts") / "train" / "summary.json")
    assert summary is not None and summary["start"] == "texts@1", summary
