"""FastAPI tuned by hand: orjson, ONNX Runtime, uvloop and httptools, no pydantic on the hot path."""

import os

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    pixels = np.array(orjson.loads(await request.body())["pixels"], np.uint8)
    probabilities = session.run(None, {"pixels": pixels[None]})[0][0]
    answer = {"label": int(probabilities.argmax()), "probabilities": probabilities}
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


@app.get("/readyz")
async def ready() -> str:
    return "ready"


uvicorn.run(app, port=int(os.environ["PORT"]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
