"""A served text classifier: clients send texts, and the graph takes token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bentos.models.onnx_model import NotServable, OnnxModel
from headrace.runtime.contract import Feeds
from headrace.runtime.tokenizer import Encoder, run_by_length


class TokenizedModel(OnnxModel):
    """A model with a `tokenizer.json`.

    Raises:
        NotServable: also when it is missing or damaged.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            self._encoder = Encoder((folder / "tokenizer.json").read_text(encoding="utf-8"))
            _ = self._encoder.vocabulary  # loads it now instead of with the first request
        except (OSError, ValueError) as error:
            raise NotServable(f"the model's tokenizer cannot be read: {error}") from error
        super().__init__(folder, threads)


class TextModel(TokenizedModel):
    """Encodes one text field into the graph's `tokens` `(rows, length)`.

    Raises:
        NotServable: also when the contract does not have exactly one text field.
    """

    def run(self, feeds: Feeds) -> NDArray[Any]:
        (texts,) = feeds.values()
        rows = self._encoder.truncate(texts.tolist(), self._length)
        return run_by_length(rows, lambda tokens: super(TextModel, self).run({"tokens": tokens}))

    def _check_inputs(self) -> None:
        fields = self.contract.inputs
        if self._inputs != ["tokens"] or len(fields) != 1 or fields[0].dtype != "string" or not fields[0].tokens:
            raise NotServable(f"the graph takes {self._inputs}, expected tokens of the contract's one text field")
        self._length = fields[0].tokens
