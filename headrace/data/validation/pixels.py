"""The expectation that all pixels are numbers from 0 to 255: one expectation for all pixel columns, since one for each of
them would take longer than training.

Importing this module registers the expectation and its metric with Great Expectations.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation, render_suite_parameter_string
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider
from great_expectations.render.components import LegacyRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer
from great_expectations.render.renderer_configuration import RendererConfiguration, RendererValueType

MAX_SAMPLES = 20
METRIC = "table.pixels_outside_range"
TEMPLATE = "every pixel must be a number from $min_value to $max_value"


class PixelsOutsideRange(TableMetricProvider):
    """Counts rows with a pixel that is missing, not a number, or outside of the range."""

    metric_name = METRIC
    value_keys = ("min_value", "max_value", "other_columns")

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(
        cls,
        execution_engine: PandasExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any],
    ) -> dict[str, Any]:
        frame, *_ = execution_engine.get_compute_domain(metric_domain_kwargs, domain_type=MetricDomainTypes.TABLE)
        return rows_outside(frame, **metric_value_kwargs)


def rows_outside(frame: pd.DataFrame, min_value: float, max_value: float, other_columns: list[str]) -> dict[str, Any]:
    """Returns the number of rows, the positions of the failing ones, and of the first of these a failing pixel as text."""
    bad = np.zeros(len(frame), dtype=bool)
    found: dict[int, str] = {}
    for column in frame.columns.difference(other_columns, sort=False):
        if frame[column].dtype == np.uint8 and min_value <= 0 and max_value >= 255:  # no other value fits into the type
            continue
        numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        outside = ~((numbers >= min_value) & (numbers <= max_value))
        for row in np.flatnonzero(outside & ~bad)[:MAX_SAMPLES]:
            value = frame[column].iloc[row]
            found[int(row)] = f"{column} = {None if pd.isna(value) else value}"
        bad |= outside
    rows = [int(row) for row in np.flatnonzero(bad)]
    return {"elements": len(frame), "rows": rows, "samples": [found[row] for row in rows[:MAX_SAMPLES]]}


class ExpectPixelsToBeBetween(BatchExpectation):
    """Expects every column but `other_columns` to hold numbers from `min_value` to `max_value`, without gaps."""

    min_value: float = 0
    max_value: float = 255
    other_columns: list[str] = []

    metric_dependencies: ClassVar[tuple[str, ...]] = (METRIC,)
    success_keys: ClassVar[tuple[str, ...]] = ("min_value", "max_value", "other_columns")
    args_keys: ClassVar[tuple[str, ...]] = ("min_value", "max_value", "other_columns")

    @classmethod
    def _prescriptive_template(cls, renderer_configuration: RendererConfiguration[Any]) -> RendererConfiguration[Any]:
        renderer_configuration.add_param(name="min_value", param_type=RendererValueType.NUMBER)
        renderer_configuration.add_param(name="max_value", param_type=RendererValueType.NUMBER)
        renderer_configuration.template_str = TEMPLATE
        return renderer_configuration

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    @render_suite_parameter_string
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: dict[str, Any] | None = None
    ) -> list[RenderedStringTemplateContent]:
        chosen = RendererConfiguration(
            configuration=configuration, result=result, runtime_configuration=runtime_configuration
        ).kwargs
        params = {"min_value": chosen.get("min_value", 0), "max_value": chosen.get("max_value", 255)}
        styling = (runtime_configuration or {}).get("styling", {})
        template = {"template": TEMPLATE, "params": params, "styling": styling}
        return [RenderedStringTemplateContent(content_block_type="string_template", string_template=template)]

    def _validate(
        self, metrics: dict[str, Any], runtime_configuration: dict[str, Any] | None = None, execution_engine: Any = None
    ) -> dict[str, Any]:
        found = metrics[METRIC]
        elements, unexpected = found["elements"], len(found["rows"])
        percent = 100 * unexpected / elements if elements else None
        result: dict[str, Any] = {
            "element_count": elements,
            "missing_count": 0,
            "unexpected_count": unexpected,
            "unexpected_percent": percent,
            "unexpected_percent_total": percent,
            "unexpected_percent_nonmissing": percent,
            "partial_unexpected_list": found["samples"],
        }
        if _format_name(runtime_configuration) == "COMPLETE":
            result |= {"unexpected_list": found["samples"], "unexpected_index_list": found["rows"]}
        return {"success": not unexpected, "result": result}


def _format_name(runtime_configuration: dict[str, Any] | None) -> str:
    chosen = (runtime_configuration or {}).get("result_format", "BASIC")
    return str(chosen["result_format"] if isinstance(chosen, dict) else chosen)
