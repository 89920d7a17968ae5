"""A served table with a text: clients send the columns and the text, and the graph takes token ids instead of the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bentos.models.onnx_model import NotServable, OnnxModel
from headrace.runtime.contract import Feeds
from headrace.runtime.tokenizer import Encoder, run_with_text


class TextTableModel(OnnxModel):
    """Encodes the contract's one field with tokens by `tokenizer.json`; the graph's input has the name of the field.

    Raises:
        NotServable: also when the tokenizer is missing, or the contract does not have exactly one such field.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            self._encoder = Encoder((folder / "tokenizer.json").read_text(encoding="utf-8"))
            _ = self._encoder.vocabulary  # loads it now instead of with the first request
        except (OSError, ValueError) as error:
            raise NotServable(f"the model's tokenizer cannot be read: {error}") from error
        super().__init__(folder, threads)

    def run(self, feeds: Feeds) -> NDArray[Any]:
        rows = self._encoder.truncate(feeds[self._text].tolist(), self._length)
        return run_with_text(feeds, self._text, rows, super().run)

    def _check_inputs(self) -> None:
        super()._check_inputs()
        texts = [field for field in self.contract.inputs if field.tokens is not None]
        if len(texts) != 1 or texts[0].name not in self._inputs:
            raise NotServable(f"expected one text in the contract that the graph takes, got {[field.name for field in texts]}")
        self._text, self._length = texts[0].name, texts[0].tokens or 0
