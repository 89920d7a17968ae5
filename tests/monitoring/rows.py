"""A small contract, and rows for it, for the tests of monitoring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from headrace.monitoring.profile import Profile, make_profile
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import Encoder

LEVELS = ["AA", "BB", "CC"]


def contract(**fields: Any) -> Contract:
    """A classifier of three inputs and two classes."""
    defaults: dict[str, Any] = {
        "model": "small",
        "task": "tabular",
        "output": "probabilities",
        "labels": ["no", "yes"],
        "target": "label",
        "inputs": [
            InputField(name="distance", dtype="float32", nullable=True),
            InputField(name="hour", dtype="int64", column="Hour"),
            InputField(name="carrier", dtype="string", levels=LEVELS, nullable=True),
        ],
        "sample": {"distance": 1.0, "hour": 2, "carrier": "AA"},
    }
    return Contract(**(defaults | fields))


def rows(seed: int, count: int, shift: float = 0.0, shares: tuple[float, float, float] = (0.6, 0.3, 0.1)) -> pd.DataFrame:
    """Independent rows: `shift` moves the mean of `distance`, whose standard deviation is 1."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "distance": rng.normal(size=count) + shift,
            "hour": rng.integers(0, 24, count),
            "carrier": rng.choice(LEVELS, count, p=shares),
        }
    )


def outputs(seed: int, count: int) -> np.ndarray[Any, Any]:
    p = np.random.default_rng(seed).beta(2, 2, count)
    return np.stack([1 - p, p], axis=1)


def profile(training_rows: int = 2_000, version: str = "1") -> Profile:
    return make_profile(contract(), [rows(1, training_rows)], [outputs(2, training_rows)], version=version)


def encoder() -> Encoder:
    """Of words, of which it knows two: good and film."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    found = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "[BOS]": 2, "[EOS]": 3, "good": 4, "film": 5}, unk_token="[UNK]"))
    found.pre_tokenizer = Whitespace()
    return Encoder(found.to_str())
