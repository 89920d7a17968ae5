"""Features of what a text says and of what a picture shows, in a few numbers: an embedding that is learned from training rows.

A text is a bag of words, a picture is its thumbnail. (The words are not the model's own tokens: its vocabulary was learned from
all training rows, and describes them better than it does later texts.) Principal components of the training rows
give the directions in which they vary most: for texts those of weighted word counts (latent semantic analysis, Deerwester et
al. 1990, with the weights of Arora, Liang & Ma 2017, *A simple but tough-to-beat baseline for sentence embeddings*), for
pictures those of the pixels. Pictures have one number more: the error with which a picture is put together from more components
than are compared. (The perplexity of a text under the frequencies of words in training finds a change of topics later than the
components do, and random directions instead of principal ones do not find it: both were measured on newsgroups.)

A shift to other topics or another style of drawing changes these numbers although lengths, brightness and sizes stay the same.
`benchmarks.drift` shows how soon that is found. Nothing of this runs in a replica: a look computes it from sampled rows.

The rows that an embedding is learned from are not those of the reference distribution, or they would fit it better than later
rows do.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.monitoring.features import Feature, Values
from headrace.runtime.sample_file import TEXT_CHARACTERS
from headrace.runtime.thumbnail import thumbnail

Floats = NDArray[np.float32]
Row = NDArray[Any] | None
"""A text as the buckets of its words, or a picture as its thumbnail; None for a missing one."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
"""A word, a sign, or a character of a writing without blanks between words."""
BUCKETS = 4096
"""Buckets of words: the CRC-32 of a word modulo this number."""
COMPONENTS = {"text": 4, "image": 4}
"""Components that are features."""
MOST_COMPONENTS = {"text": 4, "image": 16}
"""Components that are learned; those of pictures beyond the features count for the reconstruction error."""
ERROR = "reconstruction error"
"""The feature of a picture that says how far it is from all that its components can show."""
FEWEST_ROWS = 100
"""Rows below which nothing is learned."""
LEARNED_SHARE, MOST_LEARNED = 0.25, 5_000
"""Share of the rows that an embedding is learned from, and their most."""
SMOOTHING = 0.5
"""Added to the count of each bucket of words."""
WEIGHT_AT = 1e-3
"""The share of a word at which its weight is a half (Arora et al. 2017)."""


class Embedding(BaseModel):
    """What was learned of one field. Arrays are base64 of little-endian numbers: tens of kilobytes."""

    model_config = ConfigDict(frozen=True)
    field: str
    kind: Literal["text", "image"]
    size: int
    """Length of a row's vector: buckets of words, or numbers of a thumbnail."""
    centre: str
    """float16 `(size,)`: of texts the base-2 logarithm of the share of each bucket, of pictures the mean thumbnail, 0 to 1."""
    components: str
    """int8 `(components, size)`."""
    scales: list[float]
    """What each component is multiplied by, `(components,)`."""

    @property
    def features(self) -> list[Feature]:
        """The features that it gives, all of them numbers."""
        parts = [f"component {i + 1}" for i in range(min(COMPONENTS[self.kind], len(self.scales)))]
        parts += [ERROR] if self.kind == "image" else []
        return [Feature(f"{self.field}: {part}", self.field, "numeric") for part in parts]

    def values(self, rows: Sequence[Row]) -> dict[str, Values]:
        """Returns the values of each feature `(rows,)`; NaN for a missing row, and for a thumbnail of another size."""
        measure = self._of_text if self.kind == "text" else self._of_picture
        centre, components = self._arrays()
        table = np.full((len(rows), len(self.features)), np.nan)
        for i, row in enumerate(rows):
            if row is not None and len(row) and (self.kind == "text" or len(row) == self.size):
                table[i] = measure(row, centre, components)
        return {feature.name: table[:, at] for at, feature in enumerate(self.features)}

    def _of_text(self, row: NDArray[Any], centre: Floats, components: Floats) -> Floats:
        buckets, weights = text_vector(row, centre)
        found: Floats = components[:, buckets] @ weights
        return found

    def _of_picture(self, row: NDArray[Any], centre: Floats, components: Floats) -> Floats:
        difference = row / np.float32(255) - centre
        at = components @ difference
        rest = difference - at @ components
        return np.concatenate([at[: COMPONENTS["image"]], [np.sqrt((rest**2).mean())]]).astype(np.float32)

    def _arrays(self) -> tuple[Floats, Floats]:
        centre = np.frombuffer(base64.b64decode(self.centre), dtype="<f2").astype(np.float32)
        steps = np.frombuffer(base64.b64decode(self.components), dtype=np.int8).reshape(-1, self.size)
        return centre, (steps * np.array(self.scales, dtype=np.float32)[:, None]).astype(np.float32)


def text_row(text: Any) -> Row:
    """Returns the bucket of each word of a text's beginning."""
    if not isinstance(text, str):
        return None
    words = WORD.findall(text[:TEXT_CHARACTERS].lower())
    return np.array([zlib.crc32(word.encode("utf-8", "replace")) % BUCKETS for word in words], dtype=np.int64)


def picture_row(value: Any) -> Row:
    """Returns the thumbnail of a picture's pixels; None for what is none."""
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3) or not value.size:
        return None
    return thumbnail(value)


def text_vector(row: NDArray[Any], centre: Floats) -> tuple[NDArray[Any], Floats]:
    """Returns the buckets of a text, each once, and their weights: rare words count more; of length 1."""
    buckets, counts = np.unique(row, return_counts=True)
    share = np.exp2(centre[buckets])
    weights = np.sqrt(counts) * WEIGHT_AT / (WEIGHT_AT + share)
    return buckets, (weights / np.sqrt((weights**2).sum())).astype(np.float32)


def learn_text(field: str, rows: Sequence[Row]) -> Embedding | None:
    """Learns an embedding from texts; None from too few."""
    from scipy import sparse

    some = [row for row in rows if row is not None and len(row)]
    if len(some) < FEWEST_ROWS:
        return None
    counts = np.bincount(np.concatenate(some), minlength=BUCKETS) + SMOOTHING
    centre = np.log2(counts / counts.sum()).astype("<f2").astype(np.float32)
    vectors = [text_vector(row, centre) for row in some]
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in vectors)])
    matrix = sparse.csr_matrix(
        (np.concatenate([one for _, one in vectors]), np.concatenate([one for one, _ in vectors]), ends),
        shape=(len(some), BUCKETS),
        dtype=np.float64,
    )
    return _embedding(field, "text", centre, _principal(matrix))


def learn_pictures(field: str, rows: Sequence[Row]) -> Embedding | None:
    """Learns an embedding from thumbnails; None from too few, or if they do not have the same size."""
    some = [row for row in rows if row is not None]
    if len(some) < FEWEST_ROWS or len({len(row) for row in some}) != 1:
        return None
    table = np.stack(some) / np.float32(255)
    centre = table.mean(axis=0).astype("<f2").astype(np.float32)
    _, _, directions = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    return _embedding(field, "image", centre, directions[: MOST_COMPONENTS["image"]])


def _principal(matrix: Any) -> NDArray[np.float64]:
    """Returns the first principal components `(components, size)` of a sparse matrix, which centring would make dense."""
    from scipy.sparse.linalg import LinearOperator, svds

    mean = np.asarray(matrix.mean(axis=0)).ravel()
    rows, size = matrix.shape
    centred = LinearOperator(
        shape=(rows, size),
        matvec=lambda x: matrix @ x.ravel() - mean @ x.ravel(),
        rmatvec=lambda y: matrix.T @ y.ravel() - mean * y.sum(),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).normal(size=min(rows, size))
    _, strengths, directions = svds(centred, k=min(MOST_COMPONENTS["text"], rows - 1), v0=start)
    return np.asarray(directions[np.argsort(-strengths)])


def _embedding(field: str, kind: Literal["text", "image"], centre: Floats, directions: NDArray[Any]) -> Embedding:
    # The sign of a component is arbitrary: the largest number is made positive, so that a profile is always the same.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    directions = directions * np.where(signs == 0, 1.0, signs)[:, None]
    scales = np.maximum(np.abs(directions).max(axis=1), 1e-12) / 127
    steps = np.rint(directions / scales[:, None]).astype(np.int8)
    return Embedding(
        field=field,
        kind=kind,
        size=len(centre),
        centre=base64.b64encode(centre.astype("<f2").tobytes()).decode("ascii"),
        components=base64.b64encode(steps.tobytes()).decode("ascii"),
        scales=scales.tolist(),
    )
