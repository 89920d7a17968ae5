"""FastAPI tuned for bodies of many rows: orjson, ONNX Runtime, and large requests in a thread."""

import os

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    body = await request.body()
    answer = answer_to(body) if len(body) < 16_384 else await run_in_threadpool(answer_to, body)
    return Response(answer, media_type="application/json")


def answer_to(body: bytes) -> bytes:
    pixels = np.array([instance["pixels"] for instance in orjson.loads(body)["instances"]], np.uint8)
    probabilities = session.run(None, {"pixels": pixels})[0]
    predictions = [{"label": int(row.argmax()), "probabilities": row} for row in probabilities]
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


@app.get("/readyz")
async def ready() -> str:
    return "ready"


uvicorn.run(app, port=int(os.environ["PORT"]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
