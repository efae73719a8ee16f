"""The detector on real labelled images: the aerial trees of the deepforest package (951 boxes), split by image.

    python -m bench.codenet_trees --data DIR [--operators a,b] [--seed 0]      -> bench/codenet_trees.json

DIR is deepforest/data of the unpacked wheel (`pip download --no-deps deepforest`). Trained on the tiles of one scene and two small
ones (672 boxes), scored on the tiles of another scene (279 boxes) that no training tile shows; tiles of 160 pixels on 128 x 128.
One class. Configuration `small`, starting from the weights of `python -m bench.codenet ladder` (same operator, seed 0); then the deformable network at W4A8, post-training and fine-tuned with distillation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bench.codenet import weights_file
from bench.common import save, stamp
from compress.api import compress
from compress.codenet import voc
from compress.codenet.boxes import Scene
from compress.codenet.network import codenet
from compress.codenet.train import TrainConfig, affine, normalise, score, train
from compress.config import CompressConfig
from deploy.data import Batch

NAMES = ("Tree", "Dead", "Alive")
TEST = "2019_YELL_2_541000_4977000_image_crop.xml"
SIDE, PIXELS = 160, 128


def tiles(files: list[Path], step: int) -> list[Scene]:
    """Tiles with at least one tree, every label 0."""
    found = []
    for file in files:
        for cut in voc.tiles(voc.read(file, NAMES), SIDE, step):
            if len(cut.boxes):
                small = voc.resize(cut, PIXELS)
                found.append(Scene(small.image, small.boxes, np.zeros_like(small.labels)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--operators", default="dw3,deform")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(args.data.glob("*.xml"))
    training = tiles([f for f in files if f.name != TEST], 48)
    test = tiles([args.data / TEST], SIDE)
    config = TrainConfig(epochs=args.epochs, batch=16, lr=3e-3, seed=args.seed)
    head = {**stamp(), "train_tiles": len(training), "test_tiles": len(test), "test_boxes": sum(len(s.boxes) for s in test),
            "epochs": config.epochs, "seed": args.seed}  # fmt: skip
    rows: list[dict[str, Any]] = []

    def add(name: str, start: float, result: dict[str, float]) -> None:
        rows.append({"network": name, **result, "seconds": round(time.monotonic() - start)})
        print(rows[-1], flush=True)
        save("codenet_trees", {**head, "rows": rows})

    for operator in args.operators.split(","):
        torch.manual_seed(args.seed)
        start, net = time.monotonic(), codenet("small", 1, operator)
        own = net.state_dict()
        known = load_file(weights_file(operator, 0))
        net.load_state_dict({k: known[k] if k in known and known[k].shape == v.shape else v for k, v in own.items()})
        train(net, training, 1, config, affine)
        add(operator, start, score(net, test, 1))
    batches = [Batch((v.numpy(),)) for v in normalise([s.image for s in training]).split(50)]
    for name, settings in (
        ("W4A8, post-training", CompressConfig(bits=4)),
        (
            "W4A8, fine-tuned",
            CompressConfig(bits=4, finetune=True, epochs=3, batch=32, loss="compress.codenet.loss:distill"),
        ),
    ):
        start = time.monotonic()
        done = compress(net, settings, inputs=net.inputs, calibration=batches[:6], training=batches)
        add(f"{operator}, {name}", start, score(done.module, test, 1))


if __name__ == "__main__":
    main()
