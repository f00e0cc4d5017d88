"""What a server for eight tasks looks like without a hub: FastAPI and eight networks, each asked for every image."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import timm
import torch
import uvicorn
from fastapi import FastAPI, File
from timm.data import create_transform, resolve_model_data_config

from torchsnow.data import read_image

NUM_TASKS, NUM_CLASSES = 8, 10

app = FastAPI()
networks = [timm.create_model(sys.argv[1], num_classes=NUM_CLASSES).eval() for _ in range(NUM_TASKS)]
transform = create_transform(**resolve_model_data_config(networks[0]), is_training=False)


@app.post("/predict")
def predict(image: Annotated[bytes, File()]) -> dict[str, list[float]]:
    """What every network says of one image."""
    pixels = transform(read_image(io.BytesIO(image)))[None]
    with torch.inference_mode():
        return {f"t{i}": network(pixels)[0].softmax(0).tolist() for i, network in enumerate(networks)}


@app.get("/v2/health/ready")
def ready() -> dict[str, bool]:
    """Whether it answers."""
    return {"ready": True}


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
