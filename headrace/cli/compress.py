"""The command that compares compressed variants of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from headrace import console
from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError
from headrace.recipe.compress import GRAPH_METHODS, METHODS, check_method
from headrace.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from headrace.pipeline.variants_table import Variant, Variants


@click.command(short_help="Compare smaller variants of a model.")
@click.argument("recipe")
@click.option(
    "--methods",
    default=",".join(GRAPH_METHODS),
    show_default=True,
    help=f"Methods, separated by commas: {', '.join(METHODS)}. The last two train.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(min=0, min_open=True),
    help="How much of the metric may be lost. [default: compress.max_loss of the recipe, 0.005]",
)
@json_option
def compress(recipe: str, methods: str, max_loss: float | None, as_json: bool) -> None:
    """Make smaller variants of the trained model of RECIPE, and compare them with it on the test rows.

    The table has the size of the graph, the median latency of 1 and of 32 rows, the peak memory of a process with the model,
    the metric with its interval, and whether the loss is shown to be below `--max-loss`. Nothing that serves is changed. To
    release a variant, write its method into the section `compress` of the recipe.
    """
    project = load_project()
    loaded = load_recipe(recipe, project)
    wanted = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    for method in wanted:
        try:
            check_method(method)
        except ValueError as error:
            raise UsageError(str(error), where="--methods", hint="headrace compress --help lists the methods") from None
    if not wanted:
        raise UsageError("no methods are named", where="--methods", hint=f"methods: {', '.join(METHODS)}")
    from headrace.pipeline.variants import compare_variants

    found = compare_variants(loaded, wanted, project, console.report, max_loss)
    if as_json:
        print_json(found.to_dict())
        return
    _show(found)


def _show(found: Variants) -> None:
    from headrace.cli.summary import print_table

    batches = sorted(found.variants[0].latency_ms)
    columns = ("variant", "size", *(f"ms, {n} row{'' if n == 1 else 's'}" for n in batches), "memory", found.metric, "loss")
    print_table((*columns, f"loss < {found.max_loss:g}"), [_line(one, batches) for one in found.variants])
    click.echo("")
    for one in found.variants[1:]:
        for sentence in one.sentences:
            click.echo(f"{one.method}: {sentence}")
    click.echo(f"{found.rows:,} test rows; {found.threads} thread{'' if found.threads == 1 else 's'}; picture: {found.picture}")


def _line(one: Variant, batches: list[int]) -> tuple[str, ...]:
    if one.bytes is None or one.metric is None:
        return (one.method, *[""] * (len(batches) + 4), one.verdict)
    interval = f" ({one.interval[0]:.4g} to {one.interval[1]:.4g})" if one.interval else ""
    compared = one.comparison
    loss = "" if compared is None or compared.improvement is None else f"{0.0 - compared.improvement:+.4f}"
    if compared is not None and compared.lower is not None and loss:
        loss += f" (below {-compared.lower:+.4f})"
    latencies = [f"{one.latency_ms[n]:.3g}" for n in batches]
    size, memory = f"{one.bytes / 1e3:,.1f} kB", f"{one.memory_mb:,.0f} MB"
    return one.method, size, *latencies, memory, f"{one.metric:.4f}{interval}", loss, one.verdict
