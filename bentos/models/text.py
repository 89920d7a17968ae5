"""A served model whose clients send texts and whose graph takes token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bentos.models.served_model import NotServable, ServedModel
from headrace.runtime.contract import Feeds
from headrace.runtime.tokenizer import Encoder, answer_by_length


class TextModel(ServedModel):
    """One text field in, by `tokenizer.json` to the graph's `tokens` `(rows, length)`.

    Raises:
        NotServable: also when there is no tokenizer, or the contract has no such field.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            self._encoder = Encoder((folder / "tokenizer.json").read_text(encoding="utf-8"))
            _ = self._encoder.vocabulary  # reads it, so that no request has to
        except (OSError, ValueError) as error:
            raise NotServable(f"the model has no tokenizer that can be read: {error}") from error
        super().__init__(folder, threads)

    def run(self, feeds: Feeds) -> NDArray[Any]:
        (texts,) = feeds.values()
        rows = self._encoder.cut(texts.tolist(), self._length)
        return answer_by_length(rows, lambda tokens: super(TextModel, self).run({"tokens": tokens}))

    def _check_inputs(self) -> None:
        fields = self.contract.inputs
        if self._inputs != ["tokens"] or len(fields) != 1 or fields[0].dtype != "string" or not fields[0].tokens:
            raise NotServable(f"the graph takes {self._inputs}, not tokens of the contract's one text")
        self._length = fields[0].tokens
