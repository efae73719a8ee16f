"""Train the small ViT of the pruning examples on Fashion-MNIST: 6 blocks of 64 dimensions, 4 heads, 50 tokens: 16 epochs with labels,
then 8 and 6 with the demonstration CNN as teacher.

python -m bench.train_vit [--epochs 16]      # writes examples/vit/fashion_vit.safetensors and bench/train_vit.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from torch.nn import functional as F

from bench.common import BENCH, fashion, save, stamp
from compress.recipe import store
from deploy import checkpoint

ARGS = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10}
ARCH = "vit_tiny_patch16_224"
TEACHER = Path(__file__).resolve().parent.parent / "examples" / "fashion" / "fashion_cnn.safetensors"
FOLDER = Path(__file__).resolve().parent.parent / "examples" / "vit"


def images(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 1, 28, 28] as deploy normalises it (mean and deviation 0.5), labels [N]."""
    x, y = fashion(part)
    return (torch.from_numpy(x.copy()).float().unsqueeze(1) / 255 - 0.5) / 0.5, torch.from_numpy(y.astype(np.int64))


def augment(x: torch.Tensor, mirrored: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Mirror the images that are to be mirrored [N], move all by up to `most` pixels."""
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (most,) * 4, value=-1.0)
    dy, dx = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    return padded[:, :, dy : dy + 28, dx : dx + 28]


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    return 100 * float(torch.cat([model(b).argmax(1) for b in x.split(500)]).eq(y).float().mean())


def train(
    model: torch.nn.Module, teacher: torch.nn.Module | None, epochs: int, rate: float, most: int, seed: int
) -> list[float]:
    """Top-1 on the test images after every epoch; with a teacher its softened classes stand for the labels (Hinton et al. 2015)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = images("train")
    test = images("t10k")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * (len(x) // 128), pct_start=0.1)
    start, curve = time.time(), []
    soft: list[
        torch.Tensor
    ] = []  # the teacher's classes of every image as it is and mirrored; shifts hardly change them
    if teacher is not None:
        with torch.no_grad():
            for part in (x, x.flip(-1)):
                soft.append(torch.cat([(teacher((b + 1) / 2) / 2).softmax(1) for b in part.split(500)]))
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(x), generator=generator)[: len(x) // 128 * 128].split(128):
            mirrored = torch.rand(len(index), generator=generator) < 0.5
            out = model(augment(x[index], mirrored, most, generator))
            if teacher is None:
                loss = F.cross_entropy(out, y[index], label_smoothing=0.05)
            else:
                target = torch.where(mirrored[:, None], soft[1][index], soft[0][index])
                loss = F.cross_entropy(out / 2, target) * 4
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        curve.append(accuracy(model, *test))
        print(epoch, f"{curve[-1]:.2f}", f"{time.time() - start:.0f} s", flush=True)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settle", type=int, default=6, help="last epochs, the same without shifts")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--distill", type=int, default=8, help="further epochs with the demonstration CNN as teacher")
    parser.add_argument(
        "--resume", action="store_true", help="take the weights that are there instead of the first part"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    file = FOLDER / "fashion_vit.safetensors"
    start = time.time()
    model = checkpoint.load(file).module if args.resume else timm.create_model(ARCH, pretrained=False, **ARGS)
    curve = (
        json.loads((BENCH / "train_vit.json").read_text())["top1"]
        if args.resume
        else train(model, None, args.epochs, 2e-3, 2, 0)
    )
    teacher = checkpoint.load(TEACHER).module
    if args.distill:
        curve += train(model, teacher, args.distill, 1.5e-3, 2, 1)
    curve += train(model, teacher, args.settle, 1e-3, 0, 2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    store(file, state, {"arch": f"timm:{ARCH}", "arch_args": json.dumps(ARGS)})
    note = "the last epoch is taken, whatever its accuracy; with --resume the first part was an earlier run"
    save(
        "train_vit",
        {
            **stamp(),
            "epochs": args.epochs,
            "distill": args.distill,
            "settle": args.settle,
            "top1": curve,
            "seconds": time.time() - start,
            "note": note,
        },
    )


if __name__ == "__main__":
    main()
