"""Quantization-aware training on real data: post-training and fine-tuned accuracy on the 10,000 Fashion-MNIST test images.

    python -m bench.finetune fashion | mobilenet [--epochs N]      -> bench/finetune_<network>.json

fashion: the demonstration CNN. mobilenet: MobileNetV2 at width 0.35 (timm) whose first two strides are 1, since 28 x 28 pixels
leave nothing to a stride of 32; trained here on Fashion-MNIST first. Fine-tuning uses the 60,000 training images with their
labels unused (distillation), 3 % held out; nothing is chosen on the test images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F

from bench.common import fashion, save, stamp
from bench.train_fashion import augment
from compress.api import compress
from compress.config import CompressConfig
from compress.models.fashion import fashion_cnn
from deploy.data import Batch
from deploy.inputs import InputSpec

ROOT = Path(__file__).resolve().parents[1]
SPECS = (InputSpec("x", (1, 1, 28, 28), "float32"),)
BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W2A4": (2, 4)}


def images(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = fashion(part)
    return torch.from_numpy(x[:, None].astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64))


def batches(x: torch.Tensor, y: torch.Tensor | None, size: int = 250) -> list[Batch]:
    labels = [None] * len(x.split(size)) if y is None else [v.numpy() for v in y.split(size)]
    return [Batch((a.numpy(),), b) for a, b in zip(x.split(size), labels, strict=True)]


def trained_mobilenet(epochs: int, seed: int = 0) -> nn.Module:
    """MobileNetV2 0.35 on Fashion-MNIST; kept in the temporary folder for the next script."""
    import timm

    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    net = timm.create_model("mobilenetv2_035", in_chans=1, num_classes=10)
    for name in ("conv_stem", "blocks.1.0.conv_dw"):
        net.get_submodule(name).stride = (1, 1)
    kept = Path(tempfile.gettempdir()) / f"deploy-bench-mobilenetv2_035s8-{epochs}-{seed}.safetensors"
    if kept.is_file():
        load_model(net, kept)
        return net.eval()
    x, y = images("train")
    steps = epochs * (len(x) // 128)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.25)
    for _ in range(epochs):
        net.train()
        for pick in torch.randperm(len(x), generator=rng)[: len(x) // 128 * 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(augment(x[pick], rng)), y[pick]).backward()
            optimizer.step()
            plan.step()
    save_model(net, str(kept))
    return net.eval()


def demo() -> nn.Module:
    from safetensors.torch import load_file

    net = fashion_cnn()
    net.load_state_dict(load_file(ROOT / "examples" / "fashion" / "fashion_cnn.safetensors"))
    return net.eval()


def run(net: nn.Module, names: list[str], epochs: int, write: Any) -> dict[str, Any]:
    x, _ = images("train")
    test, labels = images("t10k")
    training, evaluation = batches(x, None, 1000), batches(test, labels)
    calibration = batches(
        torch.from_numpy(np.load(ROOT / "examples" / "fashion" / "calib.npz")["x"].astype(np.float32) / 255), None, 32
    )
    rows: dict[str, Any] = {}
    for name in names:
        bits, act = BITS[name]
        start = time.monotonic()
        config = CompressConfig(bits=bits, act_bits=act, finetune=True, epochs=epochs)
        done = compress(net, config, inputs=SPECS, calibration=calibration, evaluation=evaluation, training=training)
        record = done.record
        rows[name] = {
            "float": record["accuracy"]["float_percent"], "ptq": record["ptq_accuracy"]["compressed_percent"], "qat": record["accuracy"]["compressed_percent"],
            "agreement_ptq": record["ptq_accuracy"]["agreement_percent"], "agreement_qat": record["accuracy"]["agreement_percent"],
            "loss": record["finetune"]["loss"], "held_out": record["finetune"]["metrics"], "epochs": epochs, "seconds": round(time.monotonic() - start),
            "first_last_bits": config.first_last_bits, "lr": config.lr, "batch": config.batch,
        }  # fmt: skip
        print(name, json.dumps(rows[name]), flush=True)
        write(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("fashion", "mobilenet"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--float-epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = demo() if args.network == "fashion" else trained_mobilenet(args.float_epochs)
    head = {**stamp(), "network": args.network, "training_images": 60000, "test_images": 10000}
    names = ["W4A8", "W4A4", "W2A4"] if args.network == "fashion" else ["W4A8", "W4A4"]
    run(net, names, args.epochs, lambda rows: save(f"finetune_{args.network}", {**head, "rows": rows}))


if __name__ == "__main__":
    main()
