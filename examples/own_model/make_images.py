"""Make an image folder to train on: the vehicles of CIFAR-10 as outputs/own_model/images/{train,test}/CLASS/*.png."""

from __future__ import annotations

import argparse
from collections import Counter

from images import FOLDER
from PIL import Image

import resnet8_quant as rq

VEHICLES = {0: "airplane", 1: "automobile", 8: "ship", 9: "truck"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", choices=("cifar10", "sample"), default="cifar10", help="sample: bundled, few images")
    data = rq.load_dataset(rq.compose(f"data={options.parse_args().data}"))
    for name, split in (("train", data.train), ("test", data.test)):
        counts: Counter[str] = Counter()
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            if label in VEHICLES:
                place = FOLDER / "images" / name / VEHICLES[label]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{counts[VEHICLES[label]]:04}.png")
                counts[VEHICLES[label]] += 1
        print(f"{FOLDER / 'images' / name}: {counts.total():,} images, {len(counts)} classes")


if __name__ == "__main__":
    main()
