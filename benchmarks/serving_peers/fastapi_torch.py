"""FastAPI with torch, as in its tutorial: a pydantic model, a sync endpoint, eager torch."""

import os

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

torch.set_num_threads(1)
model = torch.jit.load(os.environ["TORCH"]).eval()
app = FastAPI()


class Image(BaseModel):
    pixels: list[list[int]]


@app.post("/predict")
def predict(image: Image) -> dict[str, object]:
    with torch.inference_mode():
        probabilities = model(torch.tensor([image.pixels], dtype=torch.uint8))[0]
    return {"label": int(probabilities.argmax()), "probabilities": probabilities.tolist()}


@app.get("/readyz")
def ready() -> str:
    return "ready"


uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
