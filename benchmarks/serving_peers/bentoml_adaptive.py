"""BentoML's adaptive batching, as in its documentation, with ONNX Runtime."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Batched:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=32)
    def predict(self, rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        name = self.session.get_inputs()[0].name
        dtype = np.uint8 if "uint8" in self.session.get_inputs()[0].type else np.float32
        return self.session.run(None, {name: rows.astype(dtype)})[0]
