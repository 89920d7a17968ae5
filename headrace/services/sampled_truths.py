"""Sampled rows with the true answers that clients sent later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.project import Project
from headrace.services.feedback_store import truths_of
from headrace.serving.samples import Window

if TYPE_CHECKING:
    import pandas as pd


def truths_of_window(project: Project, window: Window) -> pd.Series:
    """Returns the latest true answer to each row of a window, as feedback has it; None where there is none yet."""
    import pandas as pd

    return pd.Series(list(truths_of(project, window.model, window.keys)), dtype=object)
