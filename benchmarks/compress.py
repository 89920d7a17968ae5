"""Measures compressed variants of recipes of this repository: `python -m benchmarks.compress`, which writes
docs/benchmarks/compress.md.

Each recipe is trained first unless its artifacts are there. With `prune` and `distil` it takes twenty minutes on 2 cores;
`--recipes mnist --methods int8-static,float16` takes a minute.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.report import hardware, section, wrap
from headrace.compression import quantise
from headrace.compression.measure import Measured, measure_in_turns
from headrace.data.ingest import ingest
from headrace.pipeline.dvc import reproduce
from headrace.pipeline.stages import STAGES
from headrace.pipeline.variants import compare_variants
from headrace.pipeline.variants_table import Variant, Variants
from headrace.project import Project, find_project
from headrace.recipe.compress import METHODS
from headrace.recipe.recipe import load_recipe

RECIPES = ("mnist", "topics")
LEFT_OUT = {"topics": ("prune", "distil")}
"""Nearly all weights of `topics` are in its embedding and its recurrent layer, which are not pruned; a student of it takes
another quarter of an hour."""
HEAD = """# Compressed models

Written by `python -m benchmarks.compress` in {minutes:.0f} minutes on {hardware}, onnxruntime {onnxruntime}. Other jobs
used the same cores, so models were measured in turns, and the shortest of their medians counts. Latencies are those of the
graph with one thread, without HTTP. `float16` and `bfloat16` compute what the original does: the difference between their
times and its own is the noise of the machine.

The loss is that of the metric against the uncompressed model on the same test rows; `passed` means that it is shown to be
below {max_loss:g} with 95 % confidence, by a paired test ([compress](../compress.md#what-may-be-lost)).
"""
COLUMNS = ("variant", "size", "ms for 1 row", "ms for 32 rows", "peak memory", "metric (95 %)", "loss (bound)", "verdict")
CONVOLUTIONS = """The same graph with its convolutions in `int8-dynamic` too, which Headrace leaves in float32: ONNX Runtime
measures the range of the input of each convolution in each run, and computes it without its fused kernels."""


@dataclass(frozen=True)
class Convolutions:
    """The cost of a graph as it is, and with convolutions quantised dynamically."""

    original: Measured
    quantised: Measured


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/compress.md"))
    options = parser.parse_args(arguments)
    project, started = find_project(), time.monotonic()
    tables = [measured(name, options.methods.split(","), project) for name in options.recipes.split(",")]
    convolutions = convolutions_of(tables[0], project)
    minutes = (time.monotonic() - started) / 60
    options.out.write_text(page(tables, convolutions, minutes), encoding="utf-8")
    return 0


def measured(name: str, methods: Sequence[str], project: Project) -> Variants:
    """Trains the recipe if it is not, and compares its variants."""
    recipe = load_recipe(name, project)
    if not (project.artifacts(name) / "export" / "model.onnx").is_file():
        ingest(recipe, project, print)
        for stage in STAGES:
            reproduce(stage, recipe, project)
    return compare_variants(recipe, [one for one in methods if one not in LEFT_OUT.get(name, ())], project, print)


def convolutions_of(table: Variants, project: Project) -> Convolutions | None:
    """Quantises the convolutions of the first model dynamically as well; None if it has none."""
    import onnx

    original = Path(table.variants[0].folder)
    if not any(node.op_type == "Conv" for node in onnx.load(original / "model.onnx").graph.node):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "convolutions"
        shutil.copytree(original, folder, ignore=shutil.ignore_patterns("uncompressed"))
        quantise.quantise_dynamic(original / "model.onnx", folder / "model.onnx", (*quantise.DYNAMIC, "Conv"))
        return Convolutions(*measure_in_turns([original, folder], project.root))


def page(tables: Sequence[Variants], convolutions: Convolutions | None, minutes: float) -> str:
    """Returns the page as Markdown."""
    title, _, prose = HEAD.partition("\n\n")
    facts = {"hardware": hardware(), "onnxruntime": version("onnxruntime"), "max_loss": tables[0].max_loss}
    parts = [title, wrap(prose.format(minutes=minutes, **facts))]
    for table in tables:
        remarks = [f"{one.method}: {'; '.join(one.sentences[1:])}." for one in table.variants if len(one.sentences) > 1]
        about = f"{table.metric} on {table.rows:,} test rows. {' '.join(remarks)}"
        parts.append(section(table.recipe, about, COLUMNS, [row(one) for one in table.variants]))
    if convolutions is not None:
        rows = [
            (name, *(f"{one.latency_ms[n]:.3g}" for n in sorted(one.latency_ms)))
            for name, one in (("float32", convolutions.original), ("convolutions int8-dynamic", convolutions.quantised))
        ]
        header = ("graph", "ms for 1 row", "ms for 32 rows")
        parts.append(section("Convolutions in int8-dynamic", CONVOLUTIONS, header, rows))
    return "\n\n".join(parts) + "\n"


def row(one: Variant) -> tuple[str, ...]:
    """Returns a row of the table."""
    if one.bytes is None or one.metric is None:
        return (one.method, *[""] * 6, f"{one.verdict}: {'; '.join(one.sentences)}")
    interval = "" if one.interval is None else f" ({one.interval[0]:.4f} to {one.interval[1]:.4f})"
    loss = ""
    if one.comparison is not None and one.comparison.improvement is not None and one.comparison.lower is not None:
        loss = f"{0.0 - one.comparison.improvement:+.4f} ({-one.comparison.lower:+.4f})"
    latencies = [f"{one.latency_ms[n]:.3g}" for n in sorted(one.latency_ms)]
    size, memory = f"{one.bytes / 1e3:,.0f} kB", f"{one.memory_mb:.0f} MB"
    return one.method, size, *latencies, memory, f"{one.metric:.4f}{interval}", loss, one.verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
