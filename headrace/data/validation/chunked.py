"""Runs Great Expectations over a table in chunks: each chunk is validated on its own and the counts are added up exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.console import bar
from headrace.data.chunks import Chunks
from headrace.data.moments import Moments
from headrace.data.validation.context import ValidationContext
from headrace.data.validation.suite import PIXELS, expectation_key
from headrace.errors import DataError, RecipeError

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation as GXExpectation

    from headrace.recipe.recipe import Recipe

MAX_FAILING_ROWS = 10_000
"""Failing rows of an expectation that are named; all are counted."""
MAX_DISTINCT = 1_000_000
"""Most distinct values of a column in memory."""
VALUES_AT_ONCE = 4_000_000
"""Values in memory while looking for duplicates: about 64 MB of numbers."""

ROW_EXPECTATIONS = frozenset(
    {
        "expect_column_value_lengths_to_be_between",
        "expect_column_value_lengths_to_equal",
        "expect_column_values_to_be_between",
        "expect_column_values_to_be_dateutil_parseable",
        "expect_column_values_to_be_in_set",
        "expect_column_values_to_be_json_parseable",
        "expect_column_values_to_be_null",
        "expect_column_values_to_match_json_schema",
        "expect_column_values_to_match_regex",
        "expect_column_values_to_match_regex_list",
        "expect_column_values_to_match_strftime_format",
        "expect_column_values_to_not_be_in_set",
        "expect_column_values_to_not_be_null",
        "expect_column_values_to_not_match_regex",
        "expect_column_values_to_not_match_regex_list",
        "expect_column_pair_values_a_to_be_greater_than_b",
        "expect_column_pair_values_to_be_equal",
        "expect_column_pair_values_to_be_in_set",
        "expect_multicolumn_sum_to_equal",
        "expect_select_column_values_to_be_unique_within_record",
        PIXELS,
    }
)
"""Each row is checked on its own, so counts of chunks add up."""
SCHEMA_EXPECTATIONS = frozenset(
    {
        "expect_column_to_exist",
        "expect_column_values_to_be_in_type_list",
        "expect_column_values_to_be_of_type",
        "expect_table_column_count_to_be_between",
        "expect_table_column_count_to_equal",
        "expect_table_columns_to_match_ordered_list",
        "expect_table_columns_to_match_set",
    }
)
"""Names and types are the same in every chunk, so the first chunk gives the result."""
ROW_COUNT_EXPECTATIONS = frozenset({"expect_table_row_count_to_be_between", "expect_table_row_count_to_equal"})
UNIQUE = "expect_column_values_to_be_unique"


class RunningExtreme:
    """The smallest or the largest value of a column."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: list[Any] = []

    def add(self, values: pd.Series[Any]) -> None:
        one = getattr(values, self._name)()
        self._found = [one] if not self._found else [{"min": min, "max": max}[self._name](self._found[0], one)]

    def equivalent_values(self) -> list[Any]:
        return self._found


class RunningSum:
    """Sum, mean or standard deviation of a column."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._moments = Moments()
        self._sum: float = 0

    def add(self, values: pd.Series[Any]) -> None:
        numbers = values.to_numpy(dtype=np.float64)
        self._moments.add(len(numbers), float(numbers.mean()), float(numbers.var()))
        total: Any = values.sum()
        self._sum += total.item()  # integers stay integers

    def equivalent_values(self) -> list[Any]:
        """Returns a column with this sum, mean or sample deviation: one value, or two at the distance that it needs."""
        rows, mean, variance = self._moments.rows, self._moments.mean, self._moments.variance
        if self._what == "std":
            distance = math.sqrt(variance * rows / (rows - 1) / 2) if rows > 1 else math.nan
            return [mean - distance, mean + distance]
        return [self._sum if self._what == "sum" else mean]


class DistinctValues:
    """The distinct values of a column."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: dict[Any, None] = {}

    def add(self, values: pd.Series[Any]) -> None:
        """
        Raises:
            DataError: there are more than `MAX_DISTINCT`.
        """
        self._found |= dict.fromkeys(values.unique().tolist())
        if len(self._found) > MAX_DISTINCT:
            raise DataError(
                f"{values.name} has more than {MAX_DISTINCT:,} distinct values, and {self._kind} needs all of them",
                where="expect",
                hint=f"remove {self._kind}, or raise data.memory if the machine has more",
            )

    def equivalent_values(self) -> list[Any]:
        return list(self._found)


ColumnAggregate = RunningExtreme | RunningSum | DistinctValues
COLUMN_AGGREGATES: Mapping[str, Callable[[], ColumnAggregate]] = {
    "expect_column_min_to_be_between": lambda: RunningExtreme("min"),
    "expect_column_max_to_be_between": lambda: RunningExtreme("max"),
    "expect_column_sum_to_be_between": lambda: RunningSum("sum"),
    "expect_column_mean_to_be_between": lambda: RunningSum("mean"),
    "expect_column_stdev_to_be_between": lambda: RunningSum("std"),
    "expect_column_distinct_values_to_be_in_set": lambda: DistinctValues("expect_column_distinct_values_to_be_in_set"),
    "expect_column_distinct_values_to_contain_set": lambda: DistinctValues("expect_column_distinct_values_to_contain_set"),
    "expect_column_distinct_values_to_equal_set": lambda: DistinctValues("expect_column_distinct_values_to_equal_set"),
    "expect_column_unique_value_count_to_be_between": lambda: DistinctValues("expect_column_unique_value_count_to_be_between"),
}
"""These depend on one number, or on the set of values: Great Expectations validates a small column with the same ones."""


@dataclass
class ChunkedExpectation:
    """The counts of one expectation over the chunks so far."""

    expectation: GXExpectation
    elements: int = 0
    considered: int = 0
    unexpected: int | None = None
    rows: list[int] = field(default_factory=list)
    """The first rows that failed, counted from 0."""
    samples: list[Any] = field(default_factory=list)
    """Their values."""
    failed: ExpectationValidationResult | None = None
    """The result of the first chunk that failed without a count of rows."""
    first: ExpectationValidationResult | None = None

    @property
    def kind(self) -> str:
        return self.expectation.expectation_type

    def add(self, result: ExpectationValidationResult, first_row: int) -> None:
        """Adds the result of a chunk."""
        details: dict[str, Any] = dict(result.result or {})
        self.first = self.first or result
        if not result.success and "unexpected_count" not in details:
            self.failed = self.failed or result
        elements = details.get("element_count") or 0
        self.elements += elements
        self.considered += elements - (0 if self.kind.endswith("_be_null") else details.get("missing_count") or 0)
        if details.get("unexpected_count") is not None:
            self.unexpected = (self.unexpected or 0) + int(details["unexpected_count"])
        if self.kind in ROW_COUNT_EXPECTATIONS:
            self.elements += int(details.get("observed_value") or 0)
        free = MAX_FAILING_ROWS - len(self.rows)
        self.rows += [first_row + int(row) for row in (details.get("unexpected_index_list") or [])[:free]]
        self.samples += (details.get("unexpected_list") or [])[: max(0, 20 - len(self.samples))]

    def result(self) -> ExpectationValidationResult:
        """Returns the result that Great Expectations would give for the table as a whole."""
        assert self.first is not None
        if self.failed is not None and self.kind not in ROW_COUNT_EXPECTATIONS:
            return self.failed
        if self.kind in ROW_COUNT_EXPECTATIONS:
            return _with(self.first, _is_between(self.elements, self.expectation), {"observed_value": self.elements})
        if self.unexpected is None:
            return self.first
        return counted(self.first, self.expectation, self.elements, self.considered, self.unexpected, self.rows, self.samples)


def counted(
    like: ExpectationValidationResult,
    expectation: GXExpectation,
    elements: int,
    considered: int,
    unexpected: int,
    rows: list[int],
    samples: list[Any],
) -> ExpectationValidationResult:
    """Returns the result of a row-wise expectation in the form of Great Expectations (its `_mostly_success` and
    `_format_map_output`)."""
    mostly = float(getattr(expectation, "mostly", 1.0))
    success = not considered or (considered - unexpected) / considered >= mostly
    details = {
        "element_count": elements,
        "unexpected_count": unexpected,
        "unexpected_percent": unexpected / considered * 100 if considered else None,
        "partial_unexpected_list": samples,
        "missing_count": elements - considered,
        "missing_percent": (elements - considered) / elements * 100 if elements else None,
        "unexpected_percent_total": unexpected / elements * 100 if elements else None,
        "unexpected_percent_nonmissing": unexpected / considered * 100 if considered else None,
        "unexpected_index_list": rows,
    }
    return _with(like, success, details)


def validate_chunks(
    chunks: Chunks, context: ValidationContext, first: pd.DataFrame
) -> tuple[ExpectationSuiteValidationResult, list[ExpectationValidationResult], str]:
    """Returns the suite's result over all chunks, the failed expectations with their first rows, and the page in Data Docs.

    Args:
        first: the first chunk. Its result is stored first, and replaced by that of all chunks.
    """
    result = context.run(first)
    found = _row_results(chunks, context) | _column_results(chunks, context, first)
    result.results = [found[_id(config)] for one in result.results if (config := one.expectation_config)]
    met, total = sum(bool(one.success) for one in result.results), len(result.results)
    result.success = met == total
    result.statistics = {
        "evaluated_expectations": total,
        "successful_expectations": met,
        "unsuccessful_expectations": total - met,
        "success_percent": 100 * met / total,
    }
    context.replace_result(result)
    return result, [one for one in result.results if not one.success], context.build_page(result)


def _row_results(chunks: Chunks, context: ValidationContext) -> dict[str, ExpectationValidationResult]:
    """Returns the results that add up over chunks, in one pass over the rows."""
    counters = [ChunkedExpectation(e) for e in context.expectations if e.expectation_type not in (*COLUMN_AGGREGATES, UNIQUE)]
    with bar("validating", chunks.rows) as progress:
        for frame in chunks.frames():
            batch = context.batch(frame.reset_index(drop=True))
            for counter in counters:
                counter.add(batch.validate(counter.expectation, result_format="COMPLETE"), int(frame.index[0]))
            progress.update(int(frame.index[-1]) + 1)
    return {_id(counter.expectation.configuration): counter.result() for counter in counters}


def _column_results(chunks: Chunks, context: ValidationContext, first: pd.DataFrame) -> dict[str, ExpectationValidationResult]:
    """Returns the results that need a whole column: one pass over that column for each."""
    import pandas as pd

    found = {}
    for expectation in context.expectations:
        kind, config = expectation.expectation_type, expectation.configuration
        if kind not in COLUMN_AGGREGATES and kind != UNIQUE:
            continue
        name = config.kwargs["column"]
        if kind == UNIQUE:
            like = context.batch(first.iloc[:1].reset_index(drop=True)).validate(expectation, result_format="COMPLETE")
            present, repeated, rows, samples = find_duplicates(chunks, name)
            found[_id(config)] = counted(like, expectation, chunks.rows, present, repeated, rows, samples)
            continue
        aggregate = COLUMN_AGGREGATES[kind]()
        for frame in chunks.frames([name]):
            if len(values := frame[name].dropna()):
                aggregate.add(values)
        values = aggregate.equivalent_values()
        small = pd.DataFrame({name: pd.Series(values, dtype=None if values else first[name].dtype)})
        found[_id(config)] = context.batch(small).validate(expectation, result_format="COMPLETE")
    return found


def _id(config: Any) -> str:
    return expectation_key(config.type, config.kwargs)


def check_types(expectations: list[GXExpectation], recipe: Recipe) -> None:
    """
    Raises:
        RecipeError: an expectation needs all rows at once and cannot be computed from chunks.
    """
    for expectation in expectations:
        kind = expectation.expectation_type
        is_whole = kind in COLUMN_AGGREGATES or kind == UNIQUE
        has_condition = bool(getattr(expectation, "row_condition", None))
        if kind in ROW_EXPECTATIONS | SCHEMA_EXPECTATIONS | ROW_COUNT_EXPECTATIONS or (is_whole and not has_condition):
            continue
        with_condition = " with a row_condition" if is_whole else ""
        raise RecipeError(
            f"expect: {kind}{with_condition} needs all rows at once, and the table is read in chunks",
            where=f"recipes/{recipe.name}.yaml",
            hint="remove it, replace it by an expectation on each row, or raise data.memory if the machine has more",
        )


def find_duplicates(chunks: Chunks, column: str) -> tuple[int, int, list[int], list[Any]]:
    """Finds rows whose value is in another row too. Returns the number of rows with a value, the number of repeated ones,
    the first of these, and their values.

    Values are divided into buckets by their hash, one pass over the column for each bucket, so that memory holds one bucket
    at a time. Within a bucket values are compared, not hashes.
    """
    import pandas as pd

    passes = max(1, math.ceil(chunks.rows / VALUES_AT_ONCE))
    present, repeated, rows = 0, 0, dict[int, Any]()
    for bucket in range(passes):
        kept = [_hash_bucket(frame[column].dropna(), bucket, passes) for frame in chunks.frames([column])]
        values = pd.concat(kept)
        present += len(values)
        same = values[values.duplicated(keep=False)]
        repeated += len(same)
        rows |= dict(zip(same.index[:MAX_FAILING_ROWS].tolist(), same.iloc[:MAX_FAILING_ROWS].tolist(), strict=True))
    first = sorted(rows)[:MAX_FAILING_ROWS]
    return present, repeated, first, [rows[row] for row in first[:20]]


def _hash_bucket(values: pd.Series[Any], bucket: int, buckets: int) -> pd.Series[Any]:
    import pandas as pd

    if buckets == 1:
        return values
    hashes = np.asarray(pd.util.hash_pandas_object(values, index=False), dtype=np.uint64)
    found: pd.Series[Any] = values[hashes % np.uint64(buckets) == bucket]
    return found


def read_rows(chunks: Chunks, rows: list[int]) -> pd.DataFrame:
    """Returns the rows with these numbers, ascending."""
    import pandas as pd

    return pd.concat(list(_picked(chunks, np.asarray(rows))))


def _picked(chunks: Chunks, rows: NDArray[np.int64]) -> Iterator[pd.DataFrame]:
    for frame in chunks.frames():
        yield frame.loc[rows[(rows >= frame.index[0]) & (rows <= frame.index[-1])]]


def _is_between(count: int, expectation: GXExpectation) -> bool:
    wanted: dict[str, Any] = expectation.configuration.kwargs
    if "value" in wanted:
        return bool(count == wanted["value"])
    low, high = wanted.get("min_value"), wanted.get("max_value")
    above = low is None or (count > low if wanted.get("strict_min") else count >= low)
    below = high is None or (count < high if wanted.get("strict_max") else count <= high)
    return bool(above and below)


def _with(like: ExpectationValidationResult, success: bool, details: dict[str, Any]) -> ExpectationValidationResult:
    from great_expectations.core import ExpectationValidationResult

    return ExpectationValidationResult(
        success=success,
        expectation_config=like.expectation_config,
        result=details,
        meta=like.meta,
        exception_info=like.exception_info,
    )
