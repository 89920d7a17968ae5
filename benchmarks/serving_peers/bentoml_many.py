"""BentoML as in its quickstart, for bodies of many rows."""

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Digits:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, instances: list[dict[str, Any]]) -> dict[str, Any]:
        pixels = np.array([instance["pixels"] for instance in instances], np.uint8)
        probabilities = self.session.run(None, {"pixels": pixels})[0]
        return {"predictions": [{"label": int(row.argmax()), "probabilities": row.tolist()} for row in probabilities]}
