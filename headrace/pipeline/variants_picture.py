"""The picture of compressed variants: size and latency against the metric."""

from __future__ import annotations

from pathlib import Path

from headrace.evaluation.plots import BLUE, GREY, ORANGE
from headrace.files import write_with
from headrace.pipeline.variants_table import Variants

COLOURS = {"passed": BLUE, "failed": ORANGE}


def draw(table: Variants, path: Path) -> None:
    """Writes the picture as PNG; the same table gives the same bytes."""
    from matplotlib.figure import Figure  # not pyplot: it shares state, and looks for a display

    shown = [one for one in table.variants if one.metric is not None and one.verdict != "unchanged"]
    batches = sorted(table.variants[0].latency_ms)
    figure = Figure(figsize=(4.2 * (1 + len(batches)), 4.0), dpi=110, layout="constrained")
    panels = figure.subplots(1, 1 + len(batches), sharey=True)
    costs: dict[str, list[float]] = {"size in kB": [(one.bytes or 0) / 1e3 for one in shown]}
    costs |= {f"ms for {n} row{'' if n == 1 else 's'}": [one.latency_ms[n] for one in shown] for n in batches}
    for axes, (label, values) in zip(panels, costs.items(), strict=True):
        for one, value in zip(shown, values, strict=True):
            metric = one.metric or 0.0
            low, high = one.interval or (metric, metric)
            colour = COLOURS.get(one.verdict, GREY)
            axes.errorbar(value, metric, [[metric - low], [high - metric]], fmt="o", color=colour, capsize=3)
            axes.annotate(one.method, (value, metric), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel=label, xlim=(0, 1.25 * max(values)))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{table.metric} on {table.rows:,} test rows")
    claim = f"blue: loss shown to be below {table.max_loss:g} ({table.confidence:.0%} confidence); orange: not shown"
    figure.suptitle(f"{table.recipe}: {claim}", fontsize=9)
    # without metadata: matplotlib writes its version into the file
    write_with(path, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
