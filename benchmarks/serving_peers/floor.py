"""The floor: a bare Starlette route with ONNX Runtime; 784 bytes in, ten floats out, nothing checked."""

import os

import numpy as np
import onnxruntime as ort
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])


async def predict(request: Request) -> Response:
    pixels = np.frombuffer(await request.body(), np.uint8).reshape(1, 28, 28)
    return Response(session.run(None, {"pixels": pixels})[0].tobytes())


async def ready(request: Request) -> Response:
    return Response("ready")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/readyz", ready)])
uvicorn.run(app, port=int(os.environ["PORT"]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
