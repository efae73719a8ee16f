"""Train the small ViT of the pruning examples on Fashion-MNIST: 6 blocks of 64 dimensions, 4 heads, 50 tokens; about 20 minutes on one core.

python bench/train_vit.py [--epochs 16]      # writes examples/vit/fashion_vit.safetensors and bench/train_vit.json
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

from bench.common import fashion, save, stamp
from compress.recipe import store

ARGS = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10}
ARCH = "vit_tiny_patch16_224"
FOLDER = Path(__file__).resolve().parent.parent / "examples" / "vit"


def images(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 1, 28, 28] as deploy normalises it (mean and deviation 0.5), labels [N]."""
    x, y = fashion(part)
    return (torch.from_numpy(x.copy()).float().unsqueeze(1) / 255 - 0.5) / 0.5, torch.from_numpy(y.astype(np.int64))


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images, move all by up to two pixels."""
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)
    padded = F.pad(x, (2, 2, 2, 2), value=-1.0)
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    return padded[:, :, dy : dy + 28, dx : dx + 28]


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    return 100 * float(torch.cat([model(b).argmax(1) for b in x.split(500)]).eq(y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=16)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model(ARCH, pretrained=False, **ARGS)
    x, y = images("train")
    test = images("t10k")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    start, curve = time.time(), []
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(x), generator=generator)[: len(x) // 128 * 128].split(128):
            loss = F.cross_entropy(model(augment(x[index], generator)), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        curve.append(accuracy(model, *test))
        print(epoch, f"{curve[-1]:.2f}", f"{time.time() - start:.0f} s", flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    store(FOLDER / "fashion_vit.safetensors", state, {"arch": f"timm:{ARCH}", "arch_args": json.dumps(ARGS)})
    save(
        "train_vit",
        {
            **stamp(),
            "epochs": epochs,
            "top1": curve,
            "seconds": time.time() - start,
            "note": "the last epoch is taken, whatever its accuracy",
        },
    )


if __name__ == "__main__":
    main()
