"""Pictures of drift: the distributions of the reference and of a window side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace.files import write_with
from headrace.monitoring.drift import FeatureDrift

GREY, ORANGE = "#6f6f6f", "#D55E00"
MOST_PANELS = 6
MOST_LETTERS = 18


def draw_distributions(found: Sequence[FeatureDrift], title: str, names: tuple[str, str], path: Path) -> Path:
    """Draws one panel for each feature, at most `MOST_PANELS`, and writes the picture as PNG.

    Args:
        found: features with their buckets, the worst first.
        names: of the reference and of the window, for the legend.
    """
    from matplotlib.figure import Figure  # not pyplot: it shares state, and looks for a display

    shown = found[:MOST_PANELS]
    figure = Figure(figsize=(8, 1.0 + 2.1 * len(shown)), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, feature in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        buckets = [bucket for bucket in feature.buckets if bucket.reference or bucket.window]
        places = range(len(buckets))
        axes.bar([place - 0.2 for place in places], [b.reference for b in buckets], 0.4, color=GREY, label=names[0])
        axes.bar([place + 0.2 for place in places], [b.window for b in buckets], 0.4, color=ORANGE, label=names[1])
        axes.set_xticks(list(places), [_short(bucket.name) for bucket in buckets], rotation=25, ha="right", fontsize=7)
        axes.set_ylabel("share of rows", fontsize=8)
        axes.set_title(feature.name, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if feature is shown[0]:
            axes.legend(fontsize=7, frameon=False)
    # without metadata: matplotlib writes its version into the file, and an upgrade would change the bytes
    write_with(path, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))
    return path


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
