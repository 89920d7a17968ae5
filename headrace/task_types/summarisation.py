"""Summarisation: one line for each text, by beam search with an encoder-decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.files import write_text
from headrace.models.onnx_inference import open_graph
from headrace.models.schema import IGNORED, Schema, Shape
from headrace.runtime.beam_search import (
    DECODER,
    ENCODER,
    SEARCH,
    TOKENIZER,
    GraphSteps,
    SearchConfig,
    Summariser,
    encode_source,
    one_line,
)
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import END, PAD, START, Encoder
from headrace.task_types.base import TaskType
from headrace.task_types.text_classification import LONGEST, text_column, texts_or_empty

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig, Seq2SeqConfig
    from headrace.recipe.recipe import Recipe

COVERED = 0.99
"""Share of the training summaries that fit into the longest summary the model writes; the others are truncated."""
MAX_TEST_ROWS = 4000
"""Number of rows, evenly spread, that are summarised from a larger test set."""
BASELINE_ROWS = 2000
"""Training rows on which the baseline's number of words is chosen."""
MAX_WORDS = 40
SAMPLES = 20
"""Number of summaries stored for people to read."""


class Summarisation(TaskType):
    """Writes one line per text. `first_words` in the schema's `extra` is the length of the baseline's answers."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns one vocabulary for texts and summaries, the length of summaries, and the baseline.

        Raises:
            DataError: summaries are missing, or the texts contain too few tokens.
        """
        from headrace.task_types.vocabulary import learn_vocabulary

        assert recipe.data.text is not None
        texts, summaries = sources(train, recipe), references(train, recipe)
        tokenizer = learn_vocabulary([*texts, *summaries], recipe.data.text)
        encoder = Encoder(tokenizer)
        longest = max(1, int(np.quantile([len(encoder.tokens(summary)) for summary in summaries], COVERED)))
        shape = Shape(vocabulary=encoder.vocabulary, length=recipe.data.text.length, answer_length=longest)
        return Schema(shape=shape, tokenizer=tokenizer, extra={"first_words": best_first_words(texts, summaries)})

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns `source` `(rows, S)` and `summary` `(rows, T)`, which begins with a start token; both are padded."""
        summary = _summaries(frame, schema, recipe)
        start = np.full((len(summary), 1), START, dtype=np.int64)
        return {
            "source": encode_source(_encoder(schema), sources(frame, recipe), schema.shape.length),
            "summary": np.concatenate([start, summary], axis=1),
        }

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns, `(rows, T)` int64, the token that follows each token of `summary`: an end token last, then `IGNORED`."""
        summary = _summaries(frame, schema, recipe)
        following = np.concatenate([summary, np.full((len(summary), 1), PAD)], axis=1)
        following[np.arange(len(summary)), (summary != PAD).sum(axis=1)] = END
        return np.where(following == PAD, IGNORED, following)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.summariser import Summarising

        return Summarising(build(config, schema.shape))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[
                InputField(name="text", column=text_column(recipe), dtype="string", longest=LONGEST, tokens=schema.shape.length)
            ],
            output="text",
            target=recipe.data.target,
            sample={"text": sources(sample, recipe)[0][:LONGEST]},
            served_by="bentos.models.summaries:SummaryModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {"text": np.array(sources(frame, recipe), dtype=object)}

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        """Writes the encoder's graph, the graph of one decoding step, and the settings of the search.

        Raises:
            ExportError: the graphs' answers differ from torch's.
        """
        from headrace.models.summariser import check_summary_parity, export_graphs

        assert schema.tokenizer is not None
        config: Seq2SeqConfig = recipe.model  # type: ignore[assignment]
        search = SearchConfig(
            length=schema.shape.length,
            longest=schema.shape.answer_length,
            beams=config.beams,
            length_penalty=config.length_penalty,
        )
        write_text(folder / SEARCH, search.model_dump_json(indent=1) + "\n")
        write_text(folder / TOKENIZER, schema.tokenizer)
        export_graphs(model, schema.shape, folder)
        return check_summary_parity(model, schema.shape, folder, recipe.name)

    def example(self, contract: Contract, folder: Path) -> Feeds:
        """Returns the second decoding step for the contract's sample: in the first, the state is still empty."""
        source = Summariser(folder, open_graph).encode([contract.sample["text"]])
        steps, start = GraphSteps(open_graph(folder / ENCODER), open_graph(folder / DECODER), source), np.full((1, 1), START)
        return steps.feeds(steps(start, None).argmax(axis=2))

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """Returns summaries `(rows,)`, of at most `MAX_TEST_ROWS` rows."""
        texts = sources(evenly_spread(frame), recipe)
        return np.array([summary for summary, _ in Summariser(folder, open_graph).summarise(texts)])

    def truth(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns the true summaries and the baseline's, `(rows, 2)`, for the rows that `answers` summarises."""
        rows, k = evenly_spread(frame), schema.extra["first_words"]
        return np.array([references(rows, recipe), [first_words(text, k) for text in sources(rows, recipe)]]).T

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        references, baseline = y_true.T
        if metric == "rouge_l":
            return rouge_l(outputs, references)
        of_baseline = rouge_l(baseline, references)
        return of_baseline if metric == "rouge_l_baseline" else rouge_l(outputs, references) - of_baseline

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        """Computes ROUGE-L, that of the baseline, and the gain over the baseline."""
        from headrace.evaluation.row_metrics import score_rows

        rows, truth, k = evenly_spread(frame), self.truth(frame, schema, recipe), schema.extra["first_words"]
        texts = sources(rows, recipe)
        notes = [f"the baseline answers with the first {k} words of each text: {k} scored best on the training rows"]
        if len(rows) < len(frame):
            notes.append(f"measured on {len(rows):,} of {len(frame):,} test rows, evenly spread")
        evaluation = score_rows(
            {metric: self.row_scores(metric, truth, outputs) for metric in recipe.task_type.metrics},
            slices={"words of the text": np.array([len(text.split()) for text in texts])},
            notes=notes,
        )
        shown = np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int)
        samples = [{"text": texts[i][:300], "summary": str(outputs[i]), "reference": str(truth[i, 0])} for i in shown]
        return evaluation.model_copy(update={"samples": samples})


def sources(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Returns the text of each row on one line; empty for missing values."""
    return [one_line(text) for text in texts_or_empty(frame, recipe)]


def references(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Returns the summary of each row on one line.

    Raises:
        DataError: a row has none.
    """
    column = recipe.data.target
    if missing := int(frame[column].isna().sum()):
        raise DataError(
            f"{missing} of {len(frame)} rows have no summary",
            where=f"column {column}",
            hint=f"add {column} to data.drop_missing in the recipe",
        )
    return [one_line(str(text)) for text in frame[column]]


def evenly_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns at most `MAX_TEST_ROWS` rows of a table, evenly spread."""
    if len(frame) <= MAX_TEST_ROWS:
        return frame
    return frame.iloc[np.linspace(0, len(frame) - 1, MAX_TEST_ROWS).astype(int)]


def first_words(text: str, k: int) -> str:
    """Returns the baseline's summary: the first `k` words."""
    return " ".join(text.split()[:k])


def best_first_words(texts: list[str], summaries: list[str]) -> int:
    """Returns the number of first words that are the best summary, by ROUGE-L on training rows: the strongest such baseline."""
    step = max(1, len(texts) // BASELINE_ROWS)
    texts, wanted = texts[::step], np.array(summaries[::step])
    scores = [rouge_l(np.array([first_words(text, k) for text in texts]), wanted).mean() for k in range(1, MAX_WORDS + 1)]
    return int(np.argmax(scores)) + 1


def rouge_l(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the F-measure of the longest common subsequence of words, `(rows,)` (Lin 2004, ROUGE, section 3.1)."""
    from torchmetrics.functional.text.rouge import rouge_score

    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return np.array([float(rouge_score(a, b, rouge_keys="rougeL")["rougeL_fmeasure"]) for a, b in pairs])


def _summaries(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[np.int64]:
    return _encoder(schema).encode(references(frame, recipe), schema.shape.answer_length)


def _encoder(schema: Schema) -> Encoder:
    assert schema.tokenizer is not None
    return Encoder(schema.tokenizer)
