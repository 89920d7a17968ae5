"""A served table with a text: clients send the columns and the text, and the graph takes token ids instead of the text."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bentos.models.onnx_model import NotServable
from bentos.models.text import TokenizedModel
from headrace.runtime.contract import Feeds
from headrace.runtime.tokenizer import run_with_text


class TextTableModel(TokenizedModel):
    """Encodes the contract's one field with tokens; the graph's input has the name of the field.

    Raises:
        NotServable: also when the contract does not have exactly one such field.
    """

    def run(self, feeds: Feeds) -> NDArray[Any]:
        rows = self._encoder.truncate(feeds[self._text].tolist(), self._length)
        return run_with_text(feeds, self._text, rows, super().run)

    def _check_inputs(self) -> None:
        super()._check_inputs()
        texts = [field for field in self.contract.inputs if field.tokens is not None]
        if len(texts) != 1 or texts[0].name not in self._inputs:
            raise NotServable(f"expected one text in the contract that the graph takes, got {[field.name for field in texts]}")
        self._text, self._length = texts[0].name, texts[0].tokens or 0
