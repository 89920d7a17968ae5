"""The reference profile of a model version: the distributions of its training rows, and of its answers on the test rows.

Tens of KB of JSON, stored beside the model. It is made in one pass over parts of the data, in bounded memory. Each feature
has a distribution for people, and buckets of ranks (`headrace.monitoring.ranks`) for the alarms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import DamagedFile, DataError, near_miss
from headrace.files import read_json, write_text
from headrace.monitoring.embedding import Embedding
from headrace.monitoring.embedding_rows import EmbeddedRows
from headrace.monitoring.features import UNKNOWN_TOKENS, Feature, Kind, Values, answer_values, features_of, input_values
from headrace.monitoring.ranks import MAX_LEVELS, RankBuckets, buckets_of_levels, buckets_of_numbers
from headrace.runtime.contract import Contract
from headrace.runtime.tokenizer import Encoder

if TYPE_CHECKING:
    import pandas as pd

PROFILE_VERSION = 1
"""Of the schema of a profile's file."""
MAX_BINS = 64
ATOM_SHARE = 1 / MAX_BINS
"""A number with at least this share of the rows has a bucket of its own."""
SAMPLE_ROWS = 65_536
"""Rows of a feature of numbers that are kept while a profile is made; a random sample of more."""
ORDER_SHARE = 0.2
"""Share of the rows that give the order of categories; the others are the reference sample."""
MAX_TRACKED = 20_000
"""Different categories that are counted while a profile is made; further ones count as others."""
OTHER = "\0other"
"""Stands for the categories that are not counted; no recorded text has this character."""


class FeatureProfile(BaseModel):
    """The reference distribution of one feature.

    The shares of `atoms`, `bins`, `level_shares`, `other` and `missing` are of all rows, and add up to 1.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    field: str
    kind: Kind
    rows: int
    missing: float
    """Share of missing values."""
    minimum: float | None = None
    maximum: float | None = None
    atoms: list[tuple[float, float]] = []
    """Frequent single numbers, and their shares."""
    edges: list[float] = []
    """Edges of the bins that contain the other numbers, in rising order; a number at an edge is in the bin above it."""
    bins: list[float] = []
    """Shares of the bins: between two edges each, at most 64."""
    levels: list[str] = []
    level_shares: list[float] = []
    other: float = 0.0
    """Share of categories that are not in `levels`."""
    known: list[str] | None = None
    """Categories that training knew, if they are limited and more than `levels`."""
    ranks: RankBuckets


class Profile(BaseModel):
    """The reference profile of one model version."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = PROFILE_VERSION
    model: str
    version: str | None = None
    features: list[FeatureProfile]
    embeddings: list[Embedding] = Field(default=[], exclude_if=lambda value: not value)
    """Of texts and pictures. Profiles of earlier versions of Headrace have none."""

    def feature(self, name: str) -> FeatureProfile:
        """Returns one feature.

        Raises:
            DataError: an unknown feature.
        """
        found = {feature.name: feature for feature in self.features}
        if name not in found:
            raise DataError(f"no feature {name!r} in the profile", where=self.model, hint=near_miss(name, found))
        return found[name]

    def write(self, path: Path) -> None:
        """Writes the profile as JSON, completely or not at all."""
        write_text(path, self.model_dump_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a profile.

        Raises:
            DamagedFile: the file does not exist, or is not a profile.
            NewerFile: a newer version of Headrace wrote it.
        """
        hint = "make the profile again from the version's training rows"
        content = read_json(path, hint, PROFILE_VERSION)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            reason = "the file does not exist" if content is None else f"not a profile: {error.errors()[0]['msg']}"
            raise DamagedFile(reason, where=str(path), hint=hint) from None


class ProfileBuilder:
    """Makes a profile in one pass: `add` parts of the training rows, `add_answers` of the test rows, then `finish`.

    Memory: half a MB for each feature of numbers, the different categories of the others, and of each text or picture field
    the tokens or thumbnails of some rows.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        version: str | None = None,
        exclude: Collection[str] = (),
        encoder: Encoder | None = None,
        seed: int = 0,
        sample_rows: int = SAMPLE_ROWS,
    ) -> None:
        """`exclude` names fields that are not monitored; `encoder` counts unknown tokens of texts."""
        self._contract, self._version, self._encoder = contract, version, encoder
        self._features = features_of(contract, exclude, encoder)
        self._rng = np.random.default_rng(seed)
        self._collectors: dict[str, _Numbers | _Categories] = {
            feature.name: _Numbers(feature, sample_rows) if feature.kind == "numeric" else _Categories(feature)
            for feature in self._features
        }
        self._embedded = [EmbeddedRows(field) for field in contract.inputs if field.name not in exclude]

    def add(self, frame: pd.DataFrame) -> None:
        """Adds training rows."""
        features = [one for one in self._features if not one.name.endswith(f": {UNKNOWN_TOKENS}")]
        self.add_values(input_values(frame, self._contract, features))
        for one in self._embedded:
            one.add(frame, self._rng)

    def add_held_out(self, frame: pd.DataFrame) -> None:
        """Adds rows that the model was not trained on, for the unknown tokens: the vocabulary was learned from the training
        rows, and knows more of their tokens than of later ones."""
        features = [one for one in self._features if one.name.endswith(f": {UNKNOWN_TOKENS}")]
        values = input_values(frame, self._contract, features, self._encoder)
        self.add_values({feature.name: values[feature.name] for feature in features})

    def add_answers(self, outputs: Any) -> None:
        """Adds the model's outputs for rows that it was not trained on: on training rows it is more confident.

        Raises:
            DataError: the outputs do not have the contract's shape.
        """
        self.add_values(answer_values(self._contract, outputs))

    def add_values(self, values: Mapping[str, Values]) -> None:
        """Adds values by feature; those of features that are not monitored are left out."""
        for name, column in values.items():
            if name in self._collectors:
                self._collectors[name].add(column, self._rng)

    def finish(self) -> Profile:
        """Returns the profile of the rows so far. Features without any row, for example answers, are left out.

        Raises:
            DataError: no rows were added.
        """
        embeddings = self._embeddings()
        found = [one.finish(self._rng) for one in self._collectors.values() if one.rows]
        if not found:
            raise DataError("a profile needs at least one row", where=self._contract.model, hint="add the training rows")
        return Profile(model=self._contract.model, version=self._version, features=found, embeddings=embeddings)

    def _embeddings(self) -> list[Embedding]:
        """Learns the embeddings, and adds the values of the rows that they were not learned from."""
        found = []
        for rows in self._embedded:
            if (learned := rows.learn(self._rng)) is not None:
                embedding, others = learned
                found.append(embedding)
                self._collectors |= {feature.name: _Numbers(feature, SAMPLE_ROWS) for feature in embedding.features}
                self.add_values(embedding.values(others))
        return found


def make_profile(
    contract: Contract,
    frames: Iterable[pd.DataFrame],
    answers: Iterable[Any] = (),
    *,
    version: str | None = None,
    exclude: Collection[str] = (),
    encoder: Encoder | None = None,
    held_out: Iterable[pd.DataFrame] = (),
    seed: int = 0,
) -> Profile:
    """Returns the profile of training rows, and of the model's outputs for test rows; both in parts.

    Args:
        held_out: test rows, for the unknown tokens that `encoder` counts.

    Raises:
        DataError: no rows, or outputs of another shape.
    """
    builder = ProfileBuilder(contract, version=version, exclude=exclude, encoder=encoder, seed=seed)
    for frame in frames:
        builder.add(frame)
    for frame in held_out:
        builder.add_held_out(frame)
    for outputs in answers:
        builder.add_answers(outputs)
    return builder.finish()


def feature_profile(feature: Feature, values: Values, seed: int = 0) -> FeatureProfile:
    """Returns the reference distribution of one feature, from all of its values `(rows,)`.

    Raises:
        DataError: no rows.
    """
    if not len(values):
        raise DataError("a profile needs at least one row", where=feature.name, hint="add the rows to compare with")
    rng = np.random.default_rng(seed)
    collector = _Numbers(feature, SAMPLE_ROWS) if feature.kind == "numeric" else _Categories(feature)
    collector.add(values, rng)
    return collector.finish(rng)


class _Numbers:
    """Collects a feature of numbers: exact counts, and a random sample of its values."""

    def __init__(self, feature: Feature, sample_rows: int) -> None:
        self._feature, self._sample_rows = feature, sample_rows
        self.rows = self._missing = 0
        self._minimum, self._maximum = np.inf, -np.inf
        self._keys = np.zeros(0)
        self._sample = np.zeros(0)

    def add(self, values: Values, rng: np.random.Generator) -> None:
        finite = values[np.isfinite(values)]
        self.rows += len(values)
        self._missing += int(np.isnan(values).sum())
        if len(finite):
            self._minimum = min(self._minimum, float(finite.min()))
            self._maximum = max(self._maximum, float(finite.max()))
        # The rows with the smallest random keys are a simple random sample of all rows.
        keys = np.concatenate([self._keys, rng.random(len(values))])
        sample = np.concatenate([self._sample, values])
        if len(keys) > self._sample_rows:
            kept = np.argpartition(keys, self._sample_rows)[: self._sample_rows]
            keys, sample = keys[kept], sample[kept]
        self._keys, self._sample = keys, sample

    def finish(self, rng: np.random.Generator) -> FeatureProfile:
        some = np.isfinite(self._minimum)
        missing = self._missing / self.rows
        atoms, edges, bins = summarise(self._sample[~np.isnan(self._sample)], 1 - missing)
        return FeatureProfile(
            name=self._feature.name,
            field=self._feature.field,
            kind="numeric",
            rows=self.rows,
            missing=missing,
            minimum=float(self._minimum) if some else None,
            maximum=float(self._maximum) if some else None,
            atoms=atoms,
            edges=edges,
            bins=bins,
            ranks=buckets_of_numbers(self._sample, rng),
        )


class _Categories:
    """Counts the categories of a feature: on some rows for their order, on the others as the reference sample."""

    def __init__(self, feature: Feature) -> None:
        self._feature = feature
        self.rows = 0
        self._for_order: Counter[str | None] = Counter()
        self._reference: Counter[str | None] = Counter()

    def add(self, values: Values, rng: np.random.Generator) -> None:
        self.rows += len(values)
        for_order = rng.random(len(values)) < ORDER_SHARE
        for counter, part in ((self._for_order, values[for_order]), (self._reference, values[~for_order])):
            for level, count in Counter(part.tolist()).items():
                tracked = level is None or level in counter or len(counter) < MAX_TRACKED
                counter[level if tracked else OTHER] += count

    def finish(self, rng: np.random.Generator) -> FeatureProfile:
        counts = self._for_order + self._reference
        missing = counts.pop(None, 0)
        shown = [(level, count) for level, count in counts.most_common() if level is not None and level != OTHER][:MAX_LEVELS]
        known = self._feature.known
        return FeatureProfile(
            name=self._feature.name,
            field=self._feature.field,
            kind="categorical",
            rows=self.rows,
            missing=missing / self.rows,
            levels=[level for level, _ in shown],
            level_shares=[count / self.rows for _, count in shown],
            other=(sum(counts.values()) - sum(count for _, count in shown)) / self.rows,
            known=sorted(known - {""}) if known is not None and len(known) <= MAX_TRACKED else None,
            ranks=buckets_of_levels(self._for_order, self._reference, rng),
        )


def summarise(numbers: NDArray[np.float64], share: float) -> tuple[list[tuple[float, float]], list[float], list[float]]:
    """Returns frequent single numbers with their shares, and the edges and shares of bins for the others.

    Args:
        numbers: without NaN.
        share: what all shares add up to.
    """
    if not len(numbers):
        return [], [], []
    values, counts = np.unique(numbers, return_counts=True)
    frequent = counts >= ATOM_SHARE * len(numbers)
    atoms = [(float(v), float(share * c / len(numbers))) for v, c in zip(values[frequent], counts[frequent], strict=True)]
    rest = np.repeat(values[~frequent], counts[~frequent])
    if not len(rest):
        return atoms, [], []
    edges = np.unique(np.quantile(rest, np.linspace(0, 1, MAX_BINS + 1), method="inverted_cdf"))
    edges[-1] = np.nextafter(edges[-1], np.inf)  # the largest number is inside of the last bin
    edges = edges if len(edges) > 1 else np.array([rest[0], np.nextafter(rest[0], np.inf)])
    inside = np.histogram(rest, edges)[0]
    return atoms, edges.tolist(), (share * inside / len(numbers)).tolist()
