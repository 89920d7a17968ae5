"""Ray Serve as in its quickstart, with ONNX Runtime and one replica."""

import os

import numpy as np
import onnxruntime as ort
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1)
class Digits:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> dict[str, object]:
        if request.method == "GET":
            return {"ready": True}
        pixels = np.array([(await request.json())["pixels"]], np.uint8)
        probabilities = self.session.run(None, {"pixels": pixels})[0][0]
        return {"label": int(probabilities.argmax()), "probabilities": probabilities.tolist()}


serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
serve.run(Digits.bind(), blocking=True)
