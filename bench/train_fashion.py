"""Train the demonstration CNN on all of Fashion-MNIST and write examples/fashion/.

    python -m bench.train_fashion --epochs 24

Needs the Debian package dataset-fashion-mnist. Writes fashion_cnn.safetensors (self-describing), test1000.npz (the first
1,000 labelled test images), calib.npz (320 training images, no labels) and bench/train_fashion.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from bench.common import fashion, stamp
from compress.models.fashion import fashion_cnn

ROOT = Path(__file__).resolve().parents[1]


def augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Random mirror, shift by up to 2 pixels and one erased 8x8 square per image. x: [N, 1, 28, 28]."""
    n = len(x)
    flip = torch.rand(n, generator=rng) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (2, 2, 2, 2))
    rows = torch.randint(0, 5, (n, 1, 1), generator=rng) + torch.arange(28)[None, :, None]
    cols = torch.randint(0, 5, (n, 1, 1), generator=rng) + torch.arange(28)[None, None, :]
    x = padded[torch.arange(n)[:, None, None], 0, rows, cols][:, None]
    top, left = torch.randint(0, 21, (2, n, 1, 1), generator=rng)
    axis = torch.arange(28)
    inside = (
        (axis[None, :, None] >= top)
        & (axis[None, :, None] < top + 8)
        & (axis[None, None, :] >= left)
        & (axis[None, None, :] < left + 8)
    )
    erase = inside & (torch.rand(n, 1, 1, generator=rng) < 0.5)
    return x.masked_fill(erase[:, None], 0.0)


@torch.no_grad()
def accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    net.eval()
    hits = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * hits / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = torch.Generator().manual_seed(args.seed)
    (xa, ya), (xt, yt) = [
        (torch.from_numpy(x[:, None].astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64)))
        for x, y in (fashion("train"), fashion("t10k"))
    ]
    net = fashion_cnn().to(memory_format=torch.channels_last)
    steps = args.epochs * (len(xa) // args.batch)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=steps, pct_start=0.25)
    start, history = time.time(), []
    for epoch in range(args.epochs):
        net.train()
        order = torch.randperm(len(xa), generator=rng)
        for at in range(0, len(xa) - args.batch + 1, args.batch):
            pick = order[at : at + args.batch]
            x = augment(xa[pick], rng).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                out = net(x)
            loss = F.cross_entropy(out.float(), ya[pick], label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        history.append(
            {"epoch": epoch + 1, "test_percent": accuracy(net, xt, yt), "seconds": round(time.time() - start, 1)}
        )
        print(history[-1], flush=True)
    out_dir = ROOT / "examples" / "fashion"
    out_dir.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, out_dir / "fashion_cnn.safetensors", {"arch": "deploy:fashion_cnn", "dataset": "Fashion-MNIST"})
    np.savez_compressed(
        out_dir / "test1000.npz", x=xt[:1000].mul(255).round().to(torch.uint8).numpy(), y=yt[:1000].numpy()
    )
    np.savez_compressed(out_dir / "calib.npz", x=xa[:320].mul(255).round().to(torch.uint8).numpy())
    result = {
        "epochs": history,
        "float_percent": history[-1]["test_percent"],
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    (ROOT / "bench" / "train_fashion.json").write_text(json.dumps({**stamp(vars(args)), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
