"""Great Expectations over a table in chunks: each chunk is judged by itself, and what was counted is added up exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.console import bar
from headrace.data.chunks import Chunks
from headrace.data.validation.context import Opened
from headrace.data.validation.suite import identity
from headrace.errors import DataError, RecipeError

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation as GXExpectation

    from headrace.recipe.recipe import Recipe

ROWS_KEPT = 10_000
"""Failing rows of an expectation that are named; all are counted."""
MOST_DISTINCT = 1_000_000
"""Distinct values of a column that are held at a time."""
VALUES_AT_ONCE = 4_000_000
"""Values held at a time while looking for duplicates, about 64 MB of numbers."""

BY_ROW = frozenset(
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
    }
)
"""A row fails by itself: counts of chunks add up."""
OF_THE_COLUMNS = frozenset(
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
"""Names and types are the same in every chunk: the first one says it."""
ROW_COUNTS = frozenset({"expect_table_row_count_to_be_between", "expect_table_row_count_to_equal"})
UNIQUE = "expect_column_values_to_be_unique"


class Extreme:
    """The least or the largest value."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: list[Any] = []

    def add(self, values: pd.Series[Any]) -> None:
        one = getattr(values, self._name)()
        self._found = [one] if not self._found else [{"min": min, "max": max}[self._name](self._found[0], one)]

    def stand_in(self) -> list[Any]:
        return self._found


class Added:
    """Sum, mean or standard deviation, by way of the moments."""

    def __init__(self, what: str) -> None:
        from headrace.task_types.table_columns import Moments

        self._what = what
        self._moments = Moments()
        self._sum: float = 0

    def add(self, values: pd.Series[Any]) -> None:
        numbers = values.to_numpy(dtype=np.float64)
        self._moments.add(len(numbers), float(numbers.mean()), float(numbers.var()))
        total: Any = values.sum()
        self._sum += total.item()  # whole numbers stay whole

    def stand_in(self) -> list[Any]:
        """A column with this sum, mean or (of a sample) deviation: one value, or two as far apart as the deviation has it."""
        rows, mean, variance = self._moments.rows, self._moments.mean, self._moments.variance
        if self._what == "std":
            apart = math.sqrt(variance * rows / (rows - 1) / 2) if rows > 1 else math.nan
            return [mean - apart, mean + apart]
        return [self._sum if self._what == "sum" else mean]


class Distinct:
    """The distinct values."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: dict[Any, None] = {}

    def add(self, values: pd.Series[Any]) -> None:
        """
        Raises:
            DataError: there are more than memory is to hold.
        """
        self._found |= dict.fromkeys(values.unique().tolist())
        if len(self._found) > MOST_DISTINCT:
            raise DataError(
                f"{values.name} has more than {MOST_DISTINCT:,} distinct values, and {self._kind} looks at all of them",
                where="expect",
                hint=f"leave {self._kind} out, or raise data.memory, where the machine has it",
            )

    def stand_in(self) -> list[Any]:
        return list(self._found)


Gathered = Extreme | Added | Distinct
WHOLE: Mapping[str, Callable[[], Gathered]] = {
    "expect_column_min_to_be_between": lambda: Extreme("min"),
    "expect_column_max_to_be_between": lambda: Extreme("max"),
    "expect_column_sum_to_be_between": lambda: Added("sum"),
    "expect_column_mean_to_be_between": lambda: Added("mean"),
    "expect_column_stdev_to_be_between": lambda: Added("std"),
    "expect_column_distinct_values_to_be_in_set": lambda: Distinct("expect_column_distinct_values_to_be_in_set"),
    "expect_column_distinct_values_to_contain_set": lambda: Distinct("expect_column_distinct_values_to_contain_set"),
    "expect_column_distinct_values_to_equal_set": lambda: Distinct("expect_column_distinct_values_to_equal_set"),
    "expect_column_unique_value_count_to_be_between": lambda: Distinct("expect_column_unique_value_count_to_be_between"),
}
"""One number, or the set of values, says all: Great Expectations judges a small column that has the same."""


@dataclass
class Tally:
    """One expectation over the chunks so far."""

    expectation: GXExpectation
    elements: int = 0
    considered: int = 0
    unexpected: int | None = None
    rows: list[int] = field(default_factory=list)
    """The first rows that failed, counted from 0."""
    samples: list[Any] = field(default_factory=list)
    """Their values."""
    failed: ExpectationValidationResult | None = None
    """The first chunk that could not be judged, or not well."""
    first: ExpectationValidationResult | None = None

    @property
    def kind(self) -> str:
        return self.expectation.expectation_type

    def add(self, result: ExpectationValidationResult, first_row: int) -> None:
        """Takes in what a chunk gave."""
        details: dict[str, Any] = dict(result.result or {})
        self.first = self.first or result
        if not result.success and "unexpected_count" not in details:
            self.failed = self.failed or result
        elements = details.get("element_count") or 0
        self.elements += elements
        self.considered += elements - (0 if self.kind.endswith("_be_null") else details.get("missing_count") or 0)
        if details.get("unexpected_count") is not None:
            self.unexpected = (self.unexpected or 0) + int(details["unexpected_count"])
        if self.kind in ROW_COUNTS:
            self.elements += int(details.get("observed_value") or 0)
        room = ROWS_KEPT - len(self.rows)
        self.rows += [first_row + int(row) for row in (details.get("unexpected_index_list") or [])[:room]]
        self.samples += (details.get("unexpected_list") or [])[: max(0, 20 - len(self.samples))]

    def result(self) -> ExpectationValidationResult:
        """What Great Expectations would have said of the table as a whole."""
        assert self.first is not None
        if self.failed is not None and self.kind not in ROW_COUNTS:
            return self.failed
        if self.kind in ROW_COUNTS:
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
    """The result of an expectation by row, as Great Expectations has it (`_mostly_success` and `_format_map_output` there)."""
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


def judge_chunks(
    chunks: Chunks, opened: Opened, first: pd.DataFrame
) -> tuple[ExpectationSuiteValidationResult, list[ExpectationValidationResult], str]:
    """The suite's result over all chunks, the failing expectations with their first rows, and the page in Data Docs.

    Args:
        first: the first chunk, whose result Great Expectations makes and keeps; those of all take its place.
    """
    result = opened.run(first)
    found = _by_row(chunks, opened) | _of_all(chunks, opened, first)
    result.results = [found[_id(config)] for one in result.results if (config := one.expectation_config)]
    met, total = sum(bool(one.success) for one in result.results), len(result.results)
    result.success = met == total
    result.statistics = {
        "evaluated_expectations": total,
        "successful_expectations": met,
        "unsuccessful_expectations": total - met,
        "success_percent": 100 * met / total,
    }
    opened.keep(result)
    return result, [one for one in result.results if not one.success], opened.page(result)


def _by_row(chunks: Chunks, opened: Opened) -> dict[str, ExpectationValidationResult]:
    """What adds up, in one pass over the rows."""
    tallies = [Tally(e) for e in opened.expectations if e.expectation_type not in (*WHOLE, UNIQUE)]
    with bar("validating", chunks.rows) as progress:
        for frame in chunks.frames():
            batch = opened.batch(frame.reset_index(drop=True))
            for tally in tallies:
                tally.add(batch.validate(tally.expectation, result_format="COMPLETE"), int(frame.index[0]))
            progress.move(int(frame.index[-1]) + 1)
    return {_id(tally.expectation.configuration): tally.result() for tally in tallies}


def _of_all(chunks: Chunks, opened: Opened, first: pd.DataFrame) -> dict[str, ExpectationValidationResult]:
    """What looks at a whole column: a pass over that column each."""
    import pandas as pd

    found = {}
    for expectation in opened.expectations:
        kind, config = expectation.expectation_type, expectation.configuration
        if kind not in WHOLE and kind != UNIQUE:
            continue
        name = config.kwargs["column"]
        if kind == UNIQUE:
            like = opened.batch(first.iloc[:1].reset_index(drop=True)).validate(expectation, result_format="COMPLETE")
            present, repeated, rows, samples = duplicates(chunks, name)
            found[_id(config)] = counted(like, expectation, chunks.rows, present, repeated, rows, samples)
            continue
        gathered = WHOLE[kind]()
        for frame in chunks.frames([name]):
            if len(values := frame[name].dropna()):
                gathered.add(values)
        values = gathered.stand_in()
        small = pd.DataFrame({name: pd.Series(values, dtype=None if values else first[name].dtype)})
        found[_id(config)] = opened.batch(small).validate(expectation, result_format="COMPLETE")
    return found


def _id(config: Any) -> str:
    return identity(config.type, config.kwargs)


def check_types(expectations: list[GXExpectation], recipe: Recipe) -> None:
    """
    Raises:
        RecipeError: an expectation looks at all rows at once in a way that chunks cannot tell.
    """
    for expectation in expectations:
        kind = expectation.expectation_type
        is_whole = kind in WHOLE or kind == UNIQUE
        has_condition = bool(getattr(expectation, "row_condition", None))
        if kind in BY_ROW | OF_THE_COLUMNS | ROW_COUNTS or (is_whole and not has_condition):
            continue
        with_condition = " with a row_condition" if is_whole else ""
        raise RecipeError(
            f"expect: {kind}{with_condition} looks at all rows at once, and the table is read in chunks",
            where=f"recipes/{recipe.name}.yaml",
            hint="leave it out, say it by an expectation on each row, or raise data.memory, where the machine has it",
        )


def duplicates(chunks: Chunks, column: str) -> tuple[int, int, list[int], list[Any]]:
    """Rows whose value stands in another row too: those with a value, how many are repeated, the first of them, their values.

    Values are divided by their hash, and each division is looked at by itself in a pass of its own over the column, so that
    memory holds one of them at a time; values are compared, not hashes.
    """
    import pandas as pd

    passes = max(1, math.ceil(chunks.rows / VALUES_AT_ONCE))
    present, repeated, rows = 0, 0, dict[int, Any]()
    for which in range(passes):
        kept = [_of_division(frame[column].dropna(), which, passes) for frame in chunks.frames([column])]
        values = pd.concat(kept)
        present += len(values)
        twice = values[values.duplicated(keep=False)]
        repeated += len(twice)
        rows |= dict(zip(twice.index[:ROWS_KEPT].tolist(), twice.iloc[:ROWS_KEPT].tolist(), strict=True))
    first = sorted(rows)[:ROWS_KEPT]
    return present, repeated, first, [rows[row] for row in first[:20]]


def _of_division(values: pd.Series[Any], which: int, divisions: int) -> pd.Series[Any]:
    import pandas as pd

    if divisions == 1:
        return values
    hashes = np.asarray(pd.util.hash_pandas_object(values, index=False), dtype=np.uint64)
    found: pd.Series[Any] = values[hashes % np.uint64(divisions) == which]
    return found


def rows_at(chunks: Chunks, rows: list[int]) -> pd.DataFrame:
    """The rows with these numbers, ascending."""
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
