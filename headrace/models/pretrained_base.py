"""The files of a pretrained encoder, as `transformers` writes them: configuration, tokenizer, and weights as safetensors.

They are data: no code of the model is run, and no pickle is read.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import DataError, near_miss
from headrace.models.schema import PretrainedBase
from headrace.runtime.tokenizer import PAD, SPECIAL

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
FILES = (WEIGHTS, CONFIG, TOKENIZER)
"""The files of a base; the weights first, since `model.source` names them."""
ARCHITECTURES = ("bert", "distilbert", "electra")
"""Values of `model_type` in the configuration."""
OTHER = f"use a model of one of the architectures {', '.join(ARCHITECTURES)}"
PACKAGES, EXTRA = ("transformers", "peft", "safetensors"), "headrace[pretrained]"
START, END = "[CLS]", "[SEP]"
PARTS = ("embeddings", "encoder.", "transformer.")
"""Beginnings of the names of an encoder's weights; others are of the heads that it was trained with."""
SHOWN = 3
"""Most names of weights in a message."""


class UnusableBase(DataError):
    """A pretrained model that cannot be adapted, with the reason."""

    def __init__(self, message: str, *, where: str = "model.source", hint: str) -> None:
        super().__init__(message, where=where, hint=hint)


def require_packages() -> None:
    """
    Raises:
        UnusableBase: a package that reads or adapts pretrained models is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UnusableBase(
            f"`pretrained` needs the {'package' if len(missing) == 1 else 'packages'} {' and '.join(missing)}",
            where="model.name",
            hint=f"pip install '{EXTRA}'",
        )


def read_base(folder: Path, sha256: str) -> tuple[PretrainedBase, str]:
    """Returns the checked configuration in `folder`, and the tokenizer, which neither pads nor truncates.

    Args:
        sha256: that of the files, from the record beside them.

    Raises:
        UnusableBase: a file is missing or damaged; the model needs code of its own, is of an architecture that cannot be
            adapted, or its tokenizer has other special tokens.
    """
    config, tokenizer = _read_config(folder / CONFIG), _read_tokenizer(folder / TOKENIZER)
    _require_number(config.get("vocab_size"), "vocab_size")
    known = tokenizer.get_vocab_size()
    if known > config["vocab_size"]:
        raise UnusableBase(
            f"{TOKENIZER} has {known:,} tokens, and {CONFIG} says vocab_size {config['vocab_size']:,}",
            hint="take both files from the same model",
        )
    start, end, padding = (_special(tokenizer, token) for token in (START, END, SPECIAL[PAD]))
    if padding != PAD:
        raise UnusableBase(
            f"{TOKENIZER}: the token {SPECIAL[PAD]} has the id {padding}, and only {PAD} can be used", hint=OTHER
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return PretrainedBase(config=config, start=start, end=end, sha256=sha256), tokenizer.to_str()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of safetensors, by name.

    Raises:
        UnusableBase: it is missing, truncated or in another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UnusableBase(f"{path.name} is missing", hint=f"copy it beside {CONFIG}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnusableBase(
            f"{path.name} cannot be read: {error}; it is truncated, damaged or in another format",
            hint="copy or download the file again",
        ) from None


def require_layers(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuses a configuration of more layers than there are weights before anything is built from it, which would not end.

    Raises:
        UnusableBase: the number is not one, or too high.
    """
    for name in ("num_hidden_layers", "n_layers"):
        layers = config.get(name, 0)
        _require_number(layers, name)
        if layers > len(weights):
            raise UnusableBase(
                f"{CONFIG} says {name} {layers:,}, and {WEIGHTS} has {len(weights):,} weights",
                hint="take both files from the same model",
            )


def matched(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Returns those of `weights` that an encoder has, by its names, as float32.

    Args:
        wanted: the encoder's weights, whose names and shapes count.

    Raises:
        UnusableBase: weights are missing or have other shapes: they are not of the configuration's architecture.
    """
    import torch

    plain = {name.removeprefix(f"{architecture}."): weight for name, weight in weights.items()}
    missing = [name for name in wanted if name not in plain]
    if missing:
        raise UnusableBase(
            f"{WEIGHTS} has not the weights of {CONFIG} (model_type {architecture}): {_few(missing)} missing; "
            f"{near_miss(missing[0], list(plain))}",
            hint=f"take {WEIGHTS} and {CONFIG} from the same model",
        )
    for name, weight in wanted.items():
        if plain[name].shape != weight.shape:
            raise UnusableBase(
                f"{WEIGHTS}: {name} has the shape {tuple(plain[name].shape)}, and by {CONFIG} it is {tuple(weight.shape)}",
                hint=f"take {WEIGHTS} and {CONFIG} from the same model",
            )
    if later := [name for name in plain if name.startswith(PARTS) and name not in wanted and "position_ids" not in name]:
        raise UnusableBase(
            f"{WEIGHTS} has weights that {CONFIG} does not have: {_few(later)}",
            hint=f"take {WEIGHTS} and {CONFIG} from the same model",
        )
    return {name: plain[name].to(torch.float32) for name in wanted}


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UnusableBase(f"{CONFIG} is missing", hint=f"copy it beside {WEIGHTS}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnusableBase(f"{CONFIG} is not valid JSON: {error}", hint="copy or download the file again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UnusableBase(f"{CONFIG} says no model_type", hint="name a model that transformers has saved")
    if "auto_map" in config:
        raise UnusableBase(
            f"the model needs code of its own ({CONFIG}: auto_map), which is never run",
            hint=OTHER,
        )
    kind = str(config["model_type"])
    if kind not in ARCHITECTURES:
        raise UnusableBase(
            f"{CONFIG}: the model_type {kind!r} cannot be adapted; {near_miss(kind, ARCHITECTURES)}",
            hint=OTHER,
        )
    return config


def _read_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UnusableBase(
            f"{TOKENIZER} is missing",
            hint=f"copy it beside {WEIGHTS}; transformers writes it: tokenizer.save_pretrained(FOLDER)",
        )
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise UnusableBase(f"{TOKENIZER} is not a valid tokenizer: {error}", hint="copy or download the file again") from None


def _special(tokenizer: Any, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UnusableBase(f"{TOKENIZER} has no token {token}", hint=OTHER)
    return int(found)


def _require_number(value: object, name: str) -> None:
    if not isinstance(value, int):
        raise UnusableBase(f"{CONFIG}: {name} is {value!r}, not a number", hint="copy or download the file again")
