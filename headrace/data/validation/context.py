"""Great Expectations, opened for one suite: results and pages in files, and nothing else kept or sent."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.project import Project

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context.data_context.abstract_data_context import AbstractDataContext
    from great_expectations.data_context.types.resource_identifiers import ValidationResultIdentifier
    from great_expectations.datasource.fluent.interfaces import Batch
    from great_expectations.expectations.expectation import Expectation as GXExpectation

    from headrace.recipe.recipe import Recipe


class Opened:
    """Great Expectations with one suite, ready to judge."""

    def __init__(self, recipe: Recipe, project: Project, batch_name: str, expectations: list[GXExpectation]) -> None:
        import great_expectations as gx
        from great_expectations.core.run_identifier import RunIdentifier

        self.expectations = expectations
        self._project, self._name = project, recipe.name
        self._context = open_context(project)
        source = self._context.data_sources.add_pandas(recipe.name)
        self._batches = source.add_dataframe_asset("batches").add_batch_definition_whole_dataframe("whole")
        suite = self._context.suites.add_or_update(gx.ExpectationSuite(name=recipe.name, expectations=expectations))
        check = gx.ValidationDefinition(name=recipe.name, data=self._batches, suite=suite)
        self._check = self._context.validation_definitions.add(check)
        self._run = RunIdentifier(run_name=re.sub(r"[^\w.-]+", "-", batch_name))

    def run(self, frame: pd.DataFrame) -> ExpectationSuiteValidationResult:
        """The whole suite, kept in Great Expectations' store."""
        return self._check.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY", run_id=self._run)

    def batch(self, frame: pd.DataFrame) -> Batch:
        """Something to judge by one expectation at a time."""
        return self._batches.get_batch({"dataframe": frame})

    def keep(self, result: ExpectationSuiteValidationResult) -> None:
        """Keeps `result` in the place of the one that `run` kept."""
        self._context.validation_results_store.set(self._page(result), result)

    def page(self, result: ExpectationSuiteValidationResult) -> str:
        """Writes the page of what is kept in Data Docs; gives its place."""
        from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier

        suite = ExpectationSuiteIdentifier(self._name)
        page = self._page(result)
        self._context.build_data_docs(resource_identifiers=[page])
        self._context.build_data_docs(resource_identifiers=[suite])
        urls = [site["site_url"] for site in self._context.get_docs_sites_urls(resource_identifier=page)]
        return next((url.removeprefix("file://") for url in urls if url), str(self._project.data_docs / "index.html"))

    def _page(self, result: ExpectationSuiteValidationResult) -> ValidationResultIdentifier:
        from great_expectations.data_context.types.resource_identifiers import (
            ExpectationSuiteIdentifier,
            ValidationResultIdentifier,
        )

        suite = ExpectationSuiteIdentifier(self._name)
        return ValidationResultIdentifier(
            expectation_suite_identifier=suite, run_id=self._run, batch_identifier=result.batch_id
        )


def open_context(project: Project) -> AbstractDataContext:
    """Great Expectations with results and pages in files, and nothing else kept: no telemetry, no bars."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig

    def files(folder: Path) -> dict[str, Any]:
        return {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}

    memory = {"class_name": "InMemoryStoreBackend"}
    kept = project.state / "great_expectations"
    config = DataContextConfig(
        stores={
            "expectations": {"class_name": "ExpectationsStore", "store_backend": files(kept / "expectations")},
            "results": {"class_name": "ValidationResultsStore", "store_backend": files(kept / "results")},
            "checkpoints": {"class_name": "CheckpointStore", "store_backend": memory},
            "validation_definition_store": {"class_name": "ValidationDefinitionStore", "store_backend": memory},
        },
        expectations_store_name="expectations",
        validation_results_store_name="results",
        checkpoint_store_name="checkpoints",
        data_docs_sites={
            "headrace": {
                "class_name": "SiteBuilder",
                "store_backend": files(project.data_docs),
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            }
        },
        analytics_enabled=False,
        progress_bars={"globally": False},  # type: ignore[arg-type]
    )
    return gx.get_context(mode="ephemeral", project_config=config)


@contextmanager
def quiet_gx() -> Iterator[None]:
    """Great Expectations without telemetry, warnings or chatter: the report says what there is to say."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logger = logging.getLogger("great_expectations")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
