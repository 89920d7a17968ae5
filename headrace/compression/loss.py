"""Whether a compressed model loses no more than the recipe allows: a paired non-inferiority test against the same model
uncompressed.

The claim "the loss is below `max_loss`" is accepted if the lower bound of the difference on the same rows, one-sided with
`confidence`, is above -`max_loss`: the confidence-interval form of a non-inferiority test (Piaggio et al. 2012, JAMA
308:2594). For the accuracy the bound is the score interval for paired proportions, which was made for this question (Tango
1998, Statistics in Medicine 17:891); other metrics have the bounds of the gate's comparisons (`paired_tests`). The absence of a
significant difference would show nothing: with few rows no difference is ever significant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.split_record import read_keys
from headrace.evaluation.gate import IDENTICAL, Check, Comparison, compare, compare_rows
from headrace.evaluation.intervals import bootstrap_interval, wilson_interval
from headrace.evaluation.metrics import as_probabilities, as_values, classification_metric, regression_metric
from headrace.evaluation.row_metrics import as_contributions, ratio_of_sums
from headrace.project import Project
from headrace.recipe.compress import CompressConfig, main_metric
from headrace.recipe.gate import BeatChampion
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION
from headrace.task_types.lookup import task_type_for

if TYPE_CHECKING:
    from headrace.recipe.recipe import Recipe


def compare_with_original(
    config: CompressConfig,
    recipe: Recipe,
    y_true: NDArray[Any],
    compressed: NDArray[Any],
    original: NDArray[Any],
    groups: NDArray[Any] | None = None,
) -> Comparison:
    """Compares the answers of the compressed model with those of the original on the same rows; `promoted` says whether the
    loss is shown to be below `config.max_loss`.

    Args:
        y_true: classes or values, as `TaskType.truth` returns them, rows first.
        groups: the group of each row, where rows belong together.

    Raises:
        ExportError: answers with NaN.
    """
    metric = main_metric(config, recipe.gate, recipe.task_type)
    beat = BeatChampion(metric=metric, margin=-config.max_loss, confidence=config.confidence)
    settings: dict[str, Any] = {
        "beat": beat,
        "better": recipe.task_type.metrics[metric],
        "seed": recipe.data.split.seed,
        "groups": groups,
    }
    if recipe.task_type.compared_by_row is None and metric in CLASSIFICATION | REGRESSION:
        return compare(y_true, compressed, original, **settings)
    task_type = task_type_for(recipe)
    scores = [task_type.comparison_scores(metric, y_true, outputs, recipe) for outputs in (compressed, original)]
    return compare_rows(*scores, **settings)


def metric_interval(
    metric: str, recipe: Recipe, y_true: NDArray[Any], outputs: NDArray[Any], groups: NDArray[Any] | None = None
) -> tuple[float, tuple[float, float] | None]:
    """Returns a metric on these rows with its interval of 95 %: Wilson's for an accuracy of independent rows, else a percentile
    bootstrap; None where the rows allow none."""
    numbered = None if groups is None else np.unique(groups, return_inverse=True)[1]
    seed, rows = recipe.data.split.seed, len(y_true)
    if recipe.task_type.compared_by_row is None and metric in CLASSIFICATION | REGRESSION:
        score = classification_metric(metric) if metric in CLASSIFICATION else regression_metric(metric)
        if metric in CLASSIFICATION:
            y_true, outputs = y_true.astype(np.int64), as_probabilities(outputs, rows)
        else:
            y_true, outputs = y_true.astype(np.float64), as_values(outputs, rows)
        value = score(y_true, outputs)
        if metric == "accuracy" and numbered is None:
            return value, wilson_interval(value, rows)
        return value, bootstrap_interval(lambda drawn: score(y_true[drawn], outputs[drawn]), rows, seed, numbered)
    scores = as_contributions(task_type_for(recipe).comparison_scores(metric, y_true, outputs, recipe))
    return ratio_of_sums(scores), bootstrap_interval(lambda drawn: ratio_of_sums(scores[drawn]), rows, seed, numbered)


def groups_of(recipe: Recipe, project: Project, rows: int) -> NDArray[Any] | None:
    """Returns the group of each of the test rows, where the recipe splits by group; else None."""
    keys = read_keys(project.artifacts(recipe.name) / "split") if recipe.data.split.group is not None else None
    return keys if keys is not None and len(keys) == rows else None


def check_loss(found: Comparison, how: str) -> Check:
    """Returns the comparison as a requirement of the gate; `how` is the method."""
    return Check(
        metric=found.metric,
        value=found.lower,
        bound=f"loses less than {-found.margin:g} by compression",
        passed=found.promoted,
        sentence=sentence_of(found, how),
    )


def sentence_of(found: Comparison, how: str) -> str:
    """Returns the comparison in one sentence."""
    rows = f"{found.rows:,} rows" if found.groups is None else f"{found.rows:,} rows in {found.groups:,} groups"
    if found.candidate is None or found.champion is None or found.improvement is None:
        return f"{found.metric} is undefined on these {rows}, so nothing shows what {how} loses: failed"
    start = (
        f"{found.metric} {found.candidate:.4g} compressed ({how}) against {found.champion:.4g} uncompressed on the same {rows}"
    )
    if found.method == IDENTICAL:
        return f"{start}: the outputs are identical: passed"
    if found.lower is None:
        return f"{start}: no bound can be computed ({found.method}), so nothing shows what it loses: failed"
    verdict = "passed" if found.promoted else "failed"
    return (
        f"{start}: loss {0.0 - found.improvement:+.4g}, with {found.confidence:.4g} confidence below {-found.lower:+.4g}, "
        f"less than {-found.margin:g} required ({found.method}): {verdict}"
    )
