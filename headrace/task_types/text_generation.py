"""Texts to more text: every row is a whole text, and the network learns which token comes next.

A model is measured in bits per character, which does not depend on its tokens, passage by passage of the test texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, RecipeError
from headrace.runtime.contract import Contract, Feeds, InputField
from headrace.runtime.generation import TOKENS, Language, Writing
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN, Encoder
from headrace.task_types.base import Schema, Shape, TaskType

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.data import TextConfig
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

METRIC = "bits_per_character"
PASSAGE = 1000
"""Characters of a test text that are one row of the evaluation: what the gate resamples."""
MOST_TOKENS = 10_000
"""Most tokens of one text that a client may ask for: minutes of writing, which only a stream has the time for."""
CHARACTERS_A_TOKEN = 20
"""A prompt of more characters than its tokens could have is refused before it is cut into any."""
LONGEST_STOP = 100
"""Characters at which a client may have a text end."""
SHOWN_PROMPT = 60
"""Characters of a test text's beginning, as a prompt to look at."""
SAMPLES = 3
"""Texts written for a person to read."""


class TextGeneration(TaskType):
    """A prompt and what follows it. Rows of the training are windows of `data.text.length` tokens."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns the vocabulary.

        Raises:
            RecipeError: tokens from which no text can be put together again.
            DataError: the texts are missing, or give no vocabulary.
        """
        from headrace.task_types.vocabulary import learn_vocabulary

        config = _config(recipe)
        if config.tokens == "words":
            raise RecipeError(
                "words alone make no text: what stands between them is lost",
                where="data.text.tokens",
                hint="write `tokens: pieces` (or characters) into data.text",
            )
        tokenizer = learn_vocabulary(texts_of(train, recipe), config)
        shape = Shape(vocabulary=Encoder(tokenizer).vocabulary, length=max(2, config.length))
        return Schema(shape=shape, tokenizer=tokenizer)

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """`tokens` `(windows, length)` int64: each text behind a start token, cut into windows, the last one padded."""
        return {TOKENS: np.concatenate([_windows(ids[:-1], schema.shape.length) for ids in _all_ids(frame, schema, recipe)])}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """`(windows, length)` int64: the token that follows each one of `encode`, an end token last, then `PAD`."""
        return np.concatenate([_windows(ids[1:], schema.shape.length) for ids in _all_ids(frame, schema, recipe)])

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.language import LanguageModel, LanguageNetwork
        from headrace.recipe.models import build_as

        return LanguageModel(build_as(config, schema.shape, LanguageNetwork))  # type: ignore[type-abstract]

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        length = schema.shape.length
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=generation_inputs(length),
            output="text",
            target=recipe.data.target,
            sample={
                "prompt": _beginning(texts_of(sample, recipe)[0], _encoder(schema), length),
                "max_tokens": 20,
                "temperature": 0.0,
            },
            served_by="bentos.models.generation:GenerationModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """What a client sends who has the rows' texts continued."""
        return contract.to_feeds([{"prompt": text} for text in texts_of(frame, recipe)])

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        """Writes the graph of one step, and what it has to know of the steps before.

        Raises:
            ExportError: the graph's answers differ from torch's.
        """
        from headrace.models.language_export import check_parity, export_step

        layout = export_step(model, schema.shape, folder)
        return check_parity(model, schema.shape, folder, layout, recipe.name)

    def example(self, contract: Contract, folder: Path) -> Feeds:
        """The second step of the contract's sample: in the first there is nothing to remember yet."""
        language = _open(folder)
        prompt, steps = language.prompt(contract.sample["prompt"]), language.steps()
        return steps.feeds(steps(np.array([prompt])).argmax(axis=2)[:, -1:])

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """`(passages, 2)`: bits and characters of each passage of the rows' texts, in order."""
        language = _open(folder)
        return np.concatenate([_passage_bits(language, text) for text in texts_of(frame, recipe)])

    def truth(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """`(passages,)`: the row that each passage is of."""
        counts = [-(-len(text) // PASSAGE) for text in texts_of(frame, recipe)]
        return np.repeat(np.arange(len(frame)), counts)

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        """Bits per character; by the other columns, such as a work's name."""
        from headrace.evaluation.row_metrics import score_rows

        rows = self.truth(frame, schema, recipe)
        others = [column for column in frame.columns if column != _config(recipe).column]
        slices = {column: frame[column].to_numpy()[rows] for column in others}
        return score_rows({METRIC: outputs}, slices, _notes(frame, schema, recipe))

    def samples(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> list[dict[str, str]]:
        """A text from nothing, and continuations of the first rows' beginnings."""
        language = _open(folder)
        shown = texts_of(frame, recipe)[: SAMPLES - 1]
        prompts = ["", *(_beginning(text, language.encoder, language.layout.length) for text in shown)]
        writing = Writing(seed=recipe.train.seed)
        return [
            {"prompt": p, "text": "".join(piece.text for piece in language.write(language.prompt(p), writing))} for p in prompts
        ]


def generation_inputs(length: int) -> list[InputField]:
    """What a client may send: a prompt of at most `length` tokens, and how to go on (`headrace.runtime.generation.Writing`)."""
    usual = Writing()
    return [
        InputField(name="prompt", dtype="string", longest=length * CHARACTERS_A_TOKEN),
        InputField(name="max_tokens", dtype="int64", minimum=1, maximum=MOST_TOKENS, default=usual.max_tokens),
        InputField(name="temperature", dtype="float32", minimum=0, maximum=10, default=usual.temperature),
        InputField(name="top_k", dtype="int64", minimum=0, default=usual.top_k),
        InputField(name="top_p", dtype="float32", minimum=0, maximum=1, default=usual.top_p),
        InputField(name="seed", dtype="int64", minimum=-1, default=-1),
        InputField(name="stop", dtype="string", nullable=True, longest=LONGEST_STOP),
    ]


def texts_of(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """The text of each row.

    Raises:
        DataError: one is missing, or empty.
    """
    column = _config(recipe).column
    texts = frame[column]
    if bad := int((~texts.map(lambda value: isinstance(value, str) and bool(value))).sum()):
        raise DataError(
            f"{bad} of {len(texts)} texts are empty or missing",
            where=f"column {column}",
            hint=f"write `drop_missing: [{column}]` into data of the recipe, or expect its values to be present",
        )
    found: list[str] = texts.tolist()
    return found


def _config(recipe: Recipe) -> TextConfig:
    config = recipe.data.text
    assert config is not None
    if recipe.data.target != config.column:
        raise RecipeError(
            f"data.target is {recipe.data.target!r}, and the texts to continue stand in {config.column!r}",
            where="data.target",
            hint=f"write `target: {config.column}`: what is predicted is the text itself",
        )
    return config


def _open(folder: Path) -> Language:
    from headrace.models.onnx_export import open_graph

    return Language(folder, open_graph(folder / "model.onnx"))


def _encoder(schema: Schema) -> Encoder:
    assert schema.tokenizer is not None
    return Encoder(schema.tokenizer)


def _all_ids(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> list[list[int]]:
    encoder = _encoder(schema)
    return [[START, *encoder.tokens(text), END] for text in texts_of(frame, recipe)]


def _windows(ids: list[int], length: int) -> NDArray[np.int64]:
    """`(windows, length)`, filled up with `PAD`."""
    windows = np.full(-(-len(ids) // length) * length, PAD, dtype=np.int64)
    windows[: len(ids)] = ids
    return windows.reshape(-1, length)


def _passage_bits(language: Language, text: str) -> NDArray[np.float64]:
    """`(passages, 2)`; a token's bits count where its first character stands."""
    ids, places = language.encoder.located(text)
    passages = -(-len(text) // PASSAGE)
    bits = np.bincount(np.array(places, dtype=np.int64) // PASSAGE, language.bits(ids), minlength=passages)
    characters = np.full(passages, float(PASSAGE))
    characters[-1] = len(text) - PASSAGE * (passages - 1)
    return np.stack([bits, characters], axis=1)


def _beginning(text: str, encoder: Encoder, length: int) -> str:
    """The text's beginning, without white space around it: as much as `SHOWN_PROMPT` and `length` tokens allow."""
    cut = text.strip()[:SHOWN_PROMPT].rstrip()
    while len(encoder.tokens(cut)) > length:
        cut = cut[: len(cut) // 2].rstrip()
    return cut


def _notes(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> list[str]:
    """What the metric leaves out."""
    config, notes = _config(recipe), []
    unknown = sum(ids.count(UNKNOWN) for ids in _all_ids(frame, schema, recipe))
    if unknown:
        notes.append(f"{unknown:,} characters stand in no training text: which one it is costs nothing in {METRIC}")
    if config.lowercase:
        notes.append(f"data.text.lowercase: texts are read and written in lower case, and {METRIC} is of that")
    return notes
