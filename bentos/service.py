"""The BentoML service. Its model is an argument of the bento, so that one service fits every contract."""

from __future__ import annotations

from pathlib import Path

import bentoml
from pydantic import BaseModel

from bentos.app import PredictionApp
from bentos.models.onnx_model import load, threads_from_environment


class Arguments(BaseModel):
    """Arguments that `headrace.serving.packaging` sets when it builds the bento."""

    model: str
    """Tag in BentoML's model store."""


arguments = bentoml.use_arguments(Arguments)
app = PredictionApp()


# BentoML's own metrics have a label for every requested path (unbounded memory), and its tracing and access log cost more
# than a small prediction: the app has its own (bentos/telemetry).
@bentoml.service(
    name="headrace",
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app, path="/")
class Headrace:
    """Loads the model once and answers through `app`; BentoML serves the health routes."""

    stored = bentoml.models.BentoModel(arguments.model)

    def __init__(self) -> None:
        app.model = load(Path(self.stored.path), threads_from_environment())

    def __is_ready__(self) -> bool:
        """Whether the model is loaded and has predicted its sample."""
        return app.ready
