"""A pretrained encoder with a linear layer on top, of which all, the head or small added matrices are trained.

B: rows. L: positions, padded. H: features of a state.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headrace.models.pretrained_base import (
    CONFIG,
    WEIGHTS,
    UnusableBase,
    matched,
    read_weights,
    require_layers,
    require_packages,
)
from headrace.models.schema import Shape
from headrace.models.sequences import Pooling
from headrace.recipe.models import PretrainedConfig
from headrace.runtime.tokenizer import PAD

if TYPE_CHECKING:
    from headrace.models.served import ServedModel

PROJECTIONS = {
    "bert": ["query", "key", "value"],
    "distilbert": ["q_lin", "k_lin", "v_lin"],
    "electra": ["query", "key", "value"],
}
"""Layers of the attention that get added matrices, by architecture."""


class Pretrained(nn.Module):
    """Surrounds tokens with the start and end of the base, encodes them, pools the states, and applies a linear layer.

    Takes padded tokens `(B, L)` int64, returns `(B, outputs)`. Weights are random until `load_base` has loaded those of the
    base. With `tune: lora`, low-rank matrices are added to the attention's projections (Hu et al. 2021, arXiv:2106.09685).
    """

    def __init__(self, config: PretrainedConfig, shape: Shape) -> None:
        super().__init__()
        assert shape.base is not None
        self.base = shape.base
        self.tune = config.tune
        self.encoder = _encoder(shape.base.config)
        features = int(self.encoder.config.hidden_size)
        self.pooling = Pooling(["mean"], features) if config.pooling == "mean" else None
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(features, shape.outputs)
        if config.tune == "lora":
            _add_matrices(self.encoder, config, self.architecture)
        elif config.tune == "head":
            self.encoder.requires_grad_(False)

    @property
    def architecture(self) -> str:
        return str(self.base.config["model_type"])

    def train(self, mode: bool = True) -> Pretrained:
        """Sets the mode; an encoder that is not trained always computes as in evaluation."""
        super().train(mode)
        if self.tune == "head":
            self.encoder.eval()
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        count = (tokens != PAD).sum(dim=1)
        edge = tokens.new_full((tokens.shape[0], 1), PAD)
        ids = torch.cat([edge + self.base.start, tokens, edge], dim=1)
        position = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.masked_fill(position == count[:, None] + 1, self.base.end)
        lengths = count + 2
        valid = position < lengths[:, None]
        states = self.encoder(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        vector = states[:, 0] if self.pooling is None else self.pooling(states, valid, lengths)
        logits: Tensor = self.head(self.dropout(vector))
        return logits

    def load_base(self, weights: dict[str, Tensor]) -> None:
        """Loads the weights of the base.

        Raises:
            UnusableBase: they are not those of its configuration.
        """
        own = {name.replace(".base_layer.", "."): weight for name, weight in self.encoder.state_dict().items()}
        wanted = {name: weight for name, weight in own.items() if ".lora_" not in name}
        found = matched(weights, wanted, self.architecture)
        with torch.no_grad():
            for name, weight in found.items():
                wanted[name].copy_(weight)  # a state dict shares memory with the parameters

    def merge(self) -> None:
        """Adds the added matrices to those of the base, so that the graph has the layers of the base alone."""
        for part in list(self.encoder.modules()):
            for name, layer in list(part.named_children()):
                if hasattr(layer, "get_base_layer"):
                    layer.merge(safe_merge=True)
                    setattr(part, name, layer.get_base_layer())


def load_pretrained(model: ServedModel, folder: Path) -> None:
    """Loads the weights of the base in `folder` into a network that is built on one; leaves other networks as they are.

    Raises:
        UnusableBase: they cannot be read, or are not those of the base's configuration.
    """
    if isinstance(model.network, Pretrained):
        model.network.load_base(read_weights(folder / WEIGHTS))


def merge_added(model: ServedModel) -> None:
    """Merges the added matrices of a network, if it has any."""
    if isinstance(model.network, Pretrained):
        model.network.merge()


def check_weights(config: dict[str, Any], folder: Path) -> None:
    """Compares the weights in `folder` with the configuration of the base.

    Raises:
        UnusableBase: as for `load_pretrained`.
    """
    weights = read_weights(folder / WEIGHTS)
    require_layers(config, weights)
    with torch.device("meta"):
        encoder = _encoder(config)
    matched(weights, encoder.state_dict(), str(config["model_type"]))


def _encoder(config: dict[str, Any]) -> Any:
    """Returns the encoder that a configuration describes, with random weights.

    Raises:
        UnusableBase: the configuration has no valid values.
    """
    require_packages()
    from transformers import AutoConfig, AutoModel

    from_config: Any = AutoModel.from_config
    kind = str(config["model_type"])
    fields = {name: value for name, value in config.items() if name not in ("model_type", "auto_map")}
    try:
        found = AutoConfig.for_model(kind, **fields)
        encoder: Any = from_config(found, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # the library raises errors of many types for wrong values
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnusableBase(f"{CONFIG} cannot be used: {reason}", hint="copy or download the file again") from None
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # trained for another task, and nothing here uses it
    return encoder


def _add_matrices(encoder: nn.Module, config: PretrainedConfig, architecture: str) -> None:
    """Adds low-rank matrices to the attention's projections in place, and freezes all other weights of the encoder."""
    from peft import LoraConfig, inject_adapter_in_model

    wanted = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=PROJECTIONS[architecture],
        bias="none",
    )
    inject_adapter_in_model(wanted, encoder)
