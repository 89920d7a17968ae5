"""A pretrained encoder for tests: random weights, two layers of width 16, and a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [f"word{i}" for i in range(95)]


def write_tiny_encoder(folder: Path, architecture: str = "bert", **fields: Any) -> Path:
    """Writes the three files of an encoder, and returns the path of its weights."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import AutoConfig, AutoModel

    sizes: dict[str, Any] = {"vocab_size": 100, "max_position_embeddings": 34}
    if architecture == "distilbert":
        sizes |= {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(architecture, **sizes, **fields)).save_pretrained(folder)
    special = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]"]  # not where Headrace's own vocabularies have [UNK]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(16)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "model.safetensors"
