"""Export outputs/own_model/checkpoint.pt to outputs/own_model/model.onnx."""

from __future__ import annotations

import torch
from images import FOLDER
from train import network

model = network()
model.load_state_dict(torch.load(FOLDER / "checkpoint.pt"))
model.eval()  # BatchNorm and Dropout as in use; without it a run is refused or wrong
# dynamo=False needs nothing but torch; with onnxscript, dynamic_shapes=({0: "batch"},) replaces the last two.
torch.onnx.export(
    model,
    (torch.zeros(1, 3, 32, 32),),
    str(FOLDER / "model.onnx"),
    input_names=["image"],
    output_names=["scores"],
    dynamic_axes={"image": {0: "batch"}},
    dynamo=False,
)
print(FOLDER / "model.onnx")
