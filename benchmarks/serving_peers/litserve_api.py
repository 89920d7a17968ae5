"""LitServe as in its quickstart, with ONNX Runtime."""

import os

import litserve
import numpy as np
import onnxruntime as ort


class Digits(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, object]) -> object:
        return np.array([request["pixels"]], np.uint8)

    def predict(self, pixels: object) -> object:
        return self.session.run(None, {"pixels": pixels})[0][0]

    def encode_response(self, probabilities: object) -> dict[str, object]:
        return {"label": int(probabilities.argmax()), "probabilities": probabilities.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Digits(), accelerator="cpu", workers_per_device=1, healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
