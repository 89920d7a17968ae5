"""Great Expectations with one suite: results and Data Docs are written to files, nothing else is kept or sent."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.validation.offline_pages import make_offline
from headrace.project import Project

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context.data_context.abstract_data_context import AbstractDataContext
    from great_expectations.data_context.types.resource_identifiers import ValidationResultIdentifier
    from great_expectations.datasource.fluent.interfaces import Batch
    from great_expectations.expectations.expectation import Expectation as GXExpectation

    from headrace.recipe.recipe import Recipe


class ValidationContext:
    """A Great Expectations context with one suite."""

    def __init__(self, recipe: Recipe, project: Project, batch_name: str, expectations: list[GXExpectation]) -> None:
        import great_expectations as gx
        from great_expectations.core.run_identifier import RunIdentifier

        from headrace.data.validation import pixels  # noqa: F401 (stored suites may hold its expectation)

        self.expectations = expectations
        self._project, self._name = project, recipe.name
        self._context = open_context(project)
        source = self._context.data_sources.add_pandas(recipe.name)
        self._batches = source.add_dataframe_asset("batches").add_batch_definition_whole_dataframe("whole")
        suite = self._context.suites.add_or_update(gx.ExpectationSuite(name=recipe.name, expectations=expectations))
        definition = gx.ValidationDefinition(name=recipe.name, data=self._batches, suite=suite)
        self._definition = self._context.validation_definitions.add(definition)
        self._run = RunIdentifier(run_name=re.sub(r"[^\w.-]+", "-", batch_name))

    def run(self, frame: pd.DataFrame) -> ExpectationSuiteValidationResult:
        """Runs the whole suite and keeps the result in Great Expectations' store."""
        return self._definition.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY", run_id=self._run)

    def batch(self, frame: pd.DataFrame) -> Batch:
        """Returns a batch that single expectations can be run on."""
        return self._batches.get_batch({"dataframe": frame})

    def replace_result(self, result: ExpectationSuiteValidationResult) -> None:
        """Replaces the result that `run` stored."""
        self._context.validation_results_store.set(self._identifier(result), result)

    def build_page(self, result: ExpectationSuiteValidationResult) -> str:
        """Writes the stored result to Data Docs, readable without the internet, and returns the path of its page."""
        from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier

        suite = ExpectationSuiteIdentifier(self._name)
        identifier = self._identifier(result)
        self._context.build_data_docs(resource_identifiers=[identifier])
        self._context.build_data_docs(resource_identifiers=[suite])
        urls = [site["site_url"] for site in self._context.get_docs_sites_urls(resource_identifier=identifier)]
        site = self._project.data_docs
        page = next((url.removeprefix("file://") for url in urls if url), str(site / "index.html"))
        make_offline([site / "index.html", site / "expectations" / f"{self._name}.html", Path(page)], site)
        return page

    def _identifier(self, result: ExpectationSuiteValidationResult) -> ValidationResultIdentifier:
        from great_expectations.data_context.types.resource_identifiers import (
            ExpectationSuiteIdentifier,
            ValidationResultIdentifier,
        )

        suite = ExpectationSuiteIdentifier(self._name)
        return ValidationResultIdentifier(
            expectation_suite_identifier=suite, run_id=self._run, batch_identifier=result.batch_id
        )


def open_context(project: Project) -> AbstractDataContext:
    """Opens a context that writes results and Data Docs to files and keeps nothing else: no telemetry, no progress bars."""
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
                "show_how_to_buttons": False,
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
    """Silences telemetry, warnings and log lines of Great Expectations; the report has all that matters."""
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
