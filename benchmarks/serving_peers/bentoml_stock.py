"""BentoML as in its quickstart, with ONNX Runtime."""

import os

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
    def predict(self, pixels: np.ndarray) -> dict[str, object]:  # type: ignore[type-arg]
        probabilities = self.session.run(None, {"pixels": pixels[None].astype(np.uint8)})[0][0]
        return {"label": int(probabilities.argmax()), "probabilities": probabilities.tolist()}
