"""The BentoML service. Which model it serves is an argument of the bento, so one service fits every contract."""

from __future__ import annotations

from pathlib import Path

import bentoml
from pydantic import BaseModel

from bentos.app import PredictionApp
from bentos.models.served_model import load, threads_given


class Arguments(BaseModel):
    """What `headrace.serving.packaging` gives when it builds the bento."""

    model: str
    """Tag in BentoML's model store."""


arguments = bentoml.use_arguments(Arguments)
app = PredictionApp()


# BentoML's own metrics label every path that anybody asks for (memory without bound), and its tracing and access log
# cost more than a small prediction: the app counts for itself (bentos/telemetry/metrics.py).
@bentoml.service(
    name="headrace",
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app, path="/")
class Headrace:
    """Loads the model once and answers through `app`; BentoML keeps the health routes."""

    stored = bentoml.models.BentoModel(arguments.model)

    def __init__(self) -> None:
        app.model = load(Path(self.stored.path), threads_given())

    def __is_ready__(self) -> bool:
        """Ready means: the model is loaded and has predicted its sample."""
        return app.ready
