"""The picture of a simulation: the error of each policy, batch by batch, and when it trained."""

from __future__ import annotations

from pathlib import Path

from headrace.evaluation.plots import BLUE, GREY, ORANGE
from headrace.files import write_with
from headrace.simulation.simulate import Simulation

COLOURS = {"frozen": GREY, "always": ORANGE, "policy": BLUE}
LABELS = {"frozen": "never retrained", "always": "retrained after every batch", "policy": "Headrace's policy"}
MARKERS = {"frozen": "^", "always": "s", "policy": "o"}
MOST_NAMES = 16
"""Names of batches below the picture."""


def draw(found: Simulation, path: Path) -> None:
    """Writes the picture as PNG; the same result gives the same bytes."""
    from matplotlib.figure import Figure  # not pyplot: it shares state, and looks for a display

    figure = Figure(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    places = range(len(found.steps))
    for name, label in LABELS.items():
        errors = [getattr(step, name) for step in found.steps]
        totals = found.totals[name]
        text = f"{label}: mean {totals.error:.4g}, {totals.trainings} training{'' if totals.trainings == 1 else 's'}"
        axes.plot(places, errors, marker=MARKERS[name], markersize=4, color=COLOURS[name], label=text)
    for place, step in enumerate(found.steps):
        if step.retrained is not None:
            style = "-" if step.promoted else ":"
            axes.axvline(place, color=BLUE, linestyle=style, linewidth=0.8, alpha=0.5)
    every = -(-len(found.steps) // MOST_NAMES)
    shown = list(places)[::every]
    axes.set_xticks(shown, [found.steps[place].batch for place in shown])
    axes.set(xlabel="batch", ylabel=f"error: {found.error}", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{found.recipe}: lines mark the policy's trainings (solid: promoted, dotted: refused)", fontsize=9)
    # without metadata: matplotlib writes its version into the file
    write_with(path, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
