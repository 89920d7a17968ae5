"""Optuna's pictures of a search: its history, the importances of the fields, and the values tried of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from headrace.files import atomic_write
from headrace.search.run import Search


def draw(search: Search) -> list[Path]:
    """Writes the pictures that the trials allow; returns their paths. Without two complete trials there are none."""
    if len(search.study.best()) < 2:
        return []
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as optuna_plots

    metric, study = search.objective[0], search.study.optuna
    drawn: dict[str, Callable[[], object]] = {
        "history": lambda: optuna_plots.plot_optimization_history(study, target_name=metric),
        "slices": lambda: optuna_plots.plot_slice(study, target_name=metric),
    }
    if search.study.importances():
        drawn["importances"] = lambda: optuna_plots.plot_param_importances(
            study, evaluator=search.study.importance_evaluator(), target_name=metric
        )
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's matplotlib backend is experimental
        for name, plot in drawn.items():
            plot()
            figure = pyplot.gcf()
            if name == "slices":
                figure.set_size_inches(max(6.0, 3.5 * len(search.space)), 4.0)
            path = search.place.root / f"{name}.png"
            with atomic_write(path) as beside:
                figure.savefig(beside, format="png", dpi=110, bbox_inches="tight")
            pyplot.close("all")
            written.append(path)
    return written
