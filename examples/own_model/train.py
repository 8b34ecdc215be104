"""Train a tiny CNN on outputs/own_model/images for about a minute: outputs/own_model/checkpoint.pt, a state_dict."""

from __future__ import annotations

import argparse
import time

import torch
from images import FOLDER, read
from torch import nn


def network(classes: int = 4) -> nn.Sequential:
    """Convolutions with BatchNorm and ReLU, then the mean over the image and a linear layer: 47,000 weights."""
    layers: list[nn.Module] = []
    before = 3
    for width, stride in ((16, 1), (32, 2), (48, 2), (64, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=8)
    epochs = options.parse_args().epochs
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the steps are too small to share
    x, y = map(torch.from_numpy, read(FOLDER / "images" / "train"))
    model, batch, start = network(), 128, time.perf_counter()
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for step in range(steps):
        if step % (len(x) // batch) == 0:
            order = torch.randperm(len(x)).split(batch)
        rows = order[step % (len(x) // batch)]
        images = x[rows].flip(3) if torch.rand(()) < 0.5 else x[rows]
        loss = nn.functional.cross_entropy(model(images), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), FOLDER / "checkpoint.pt")
    print(f"{FOLDER / 'checkpoint.pt'}: {steps:,} steps, {time.perf_counter() - start:.0f} s, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
