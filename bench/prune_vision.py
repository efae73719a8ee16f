"""Pruning vision models that were trained here: a ViT by heads, neurons and tokens, by VTrans, a CNN by channels, a SegFormer by heads and neurons.

python -m bench.prune_vision oneshot | vtrans | channels | segformer
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.common import fashion, merge, save, stamp
from compress.codenet.canvas import generate
from compress.config import CompressConfig
from compress.prune.run import prune
from deploy import checkpoint
from deploy.data import Batch
from deploy.hub import build

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
VIT, CNN = EXAMPLES / "vit" / "fashion_vit.safetensors", EXAMPLES / "fashion" / "fashion_cnn.safetensors"
CALIBRATION = 512
SEGFORMER = {
    "depths": [2, 2, 2, 2], "hidden_sizes": [16, 32, 64, 96], "num_attention_heads": [1, 2, 4, 6], "decoder_hidden_size": 64,
    "num_labels": 11, "image_size": 64, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0,
}  # fmt: skip


def images(part: str, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST [N, 1, 28, 28] as x / 255 * scale + shift, labels [N]."""
    x, y = fashion(part)
    return torch.from_numpy(x.copy()).float().unsqueeze(1) / 255 * scale + shift, torch.from_numpy(y.astype(np.int64))


@torch.no_grad()
def top1(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * float(torch.cat([model(b).argmax(1) for b in x.split(500)]).eq(y).float().mean())


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the rows so far, those of other parts left as they are."""
    save("prune_vision", {**stamp(), "calibration": CALIBRATION, "rows": merge("prune_vision", rows, "key")})


def row_of(key: str, record: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {
        "key": key,
        "macs": record["macs_left"],
        "parameters": record["parameters_left"],
        "seconds": record["seconds"],
        **more,
    }
    print(row, flush=True)
    return row


def oneshot() -> None:
    """The ViT without training: every method at 0.7 and 0.5 MACs, raw and refitted, and with merged tokens."""
    model = checkpoint.load(VIT).module
    x, y = images("t10k", 2.0, -1.0)
    pool, _ = images("train", 2.0, -1.0)
    rows: list[dict[str, Any]] = [{"key": "vit dense", "top1": top1(model, x, y)}]
    for seed in range(3):
        at = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        batches = [(b,) for b in pool[at].split(128)]
        for macs in (0.7, 0.5):
            for method in ("optin", "optin-paper", "fisher", "activation", "random"):
                for refit in (False, True):
                    config = CompressConfig(prune=method, macs=macs, refit=refit, controls=False, seed=seed)
                    small, _, record = prune(model, config, batches, None, None)
                    key = f"vit {method} {macs} {'refit' if refit else 'raw'} {seed}"
                    rows.append(
                        row_of(key, record, method=method, target=macs, refit=refit, seed=seed, top1=top1(small, x, y))
                    )
                    keep(rows)
            config = CompressConfig(prune="optin", macs=macs, prune_tokens=True, controls=False, seed=seed)
            small, _, record = prune(model, config, batches, None, None)
            key = f"vit tokens {macs} {seed}"
            rows.append(
                row_of(
                    key,
                    record,
                    method="optin+tokens",
                    target=macs,
                    refit=True,
                    seed=seed,
                    tokens=record["tokens"],
                    top1=top1(small, x, y),
                )
            )
            keep(rows)


def vtrans() -> None:
    """The ViT to half and a third of its parameters, trained without labels on the 60,000 training images."""
    model = checkpoint.load(VIT).module
    x, y = images("t10k", 2.0, -1.0)
    pool, _ = images("train", 2.0, -1.0)
    training = [Batch((b.numpy(),)) for b in pool.split(10_000)]
    rows: list[dict[str, Any]] = []
    for target in (0.5, 0.3):
        config = CompressConfig(
            prune="vtrans", params=target, train="x", batch=128, prune_epochs=2, prune_lr=1e-3, controls=False
        )
        start = time.perf_counter()
        small, _, record = prune(model, config, [(pool[:128],)], None, training)
        rows.append(
            row_of(
                f"vit vtrans {target}",
                record,
                method="vtrans",
                target=target,
                top1=top1(small, x, y),
                wall=time.perf_counter() - start,
            )
        )
        keep(rows)


def channels() -> None:
    """The demonstration CNN by channels, before and after training without labels on 20,000 training images."""
    model = checkpoint.load(CNN).module
    x, y = images("t10k", 1.0, 0.0)
    pool, _ = images("train", 1.0, 0.0)
    batches = [(b,) for b in pool[:CALIBRATION].split(128)]
    training = [Batch((b.numpy(),)) for b in pool[:20_000].split(10_000)]
    rows: list[dict[str, Any]] = [{"key": "cnn dense", "top1": top1(model, x, y)}]
    for macs in (0.7, 0.5, 0.3):
        for trained in (False, True):
            config = CompressConfig(prune="channels", macs=macs, prune_epochs=2, prune_lr=1e-3, batch=128)
            small, _, record = prune(model, config, batches, None, training if trained else None)
            key = f"cnn channels {macs} {'trained' if trained else 'raw'}"
            rows.append(row_of(key, record, method="channels", target=macs, trained=trained, top1=top1(small, x, y)))
            keep(rows)


def canvases(part: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 64, 64] normalised, masks [N, 64, 64] of 0 (background) to 10; items of train and test are different ones."""
    items, kinds = fashion(part)
    scenes = generate(items, kinds, count, seed, 64)
    x = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
    )
    return (x - mean) / std, torch.from_numpy(np.stack([s.mask for s in scenes]))


@torch.no_grad()
def miou(model: nn.Module, x: Tensor, masks: Tensor) -> float:
    """Mean intersection over union of the eleven classes, per cent."""
    table = torch.zeros(11, 11, dtype=torch.long)
    for a, b in zip(x.split(100), masks.split(100), strict=True):
        found = F.interpolate(model(a), size=64, mode="bilinear", align_corners=False).argmax(1)
        table += torch.bincount(b.reshape(-1) * 11 + found.reshape(-1), minlength=121).reshape(11, 11)
    return 100 * float((table.diagonal() / (table.sum(0) + table.sum(1) - table.diagonal()).clamp(min=1)).mean())


def segformer() -> None:
    """A small SegFormer trained for a few minutes on generated canvases, then 0.7 of its MACs without training."""
    torch.manual_seed(0)
    model = build("SegformerForSemanticSegmentation")(**SEGFORMER)
    x, masks = canvases("train", 6000, 0)
    test = canvases("t10k", 1000, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    epochs = 10
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * (len(x) // 32), pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for at in torch.randperm(len(x), generator=generator)[: len(x) // 32 * 32].split(32):
            out = F.interpolate(model(x[at]), size=64, mode="bilinear", align_corners=False)
            loss = F.cross_entropy(out, masks[at])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(epoch, float(loss.detach()), f"{time.perf_counter() - start:.0f} s", flush=True)
    model.eval()
    rows: list[dict[str, Any]] = [
        {"key": "segformer dense", "miou": miou(model, *test), "train_s": time.perf_counter() - start}
    ]
    print(rows[0], flush=True)
    batches = [(b,) for b in x[:256].split(64)]
    for method in ("optin", "optin-paper", "fisher", "activation", "random"):
        for refit in (False, True):
            config = CompressConfig(prune=method, macs=0.7, refit=refit, controls=False, round_to=4)
            small, _, record = prune(model, config, batches, None, None)
            key = f"segformer {method} 0.7 {'refit' if refit else 'raw'}"
            rows.append(row_of(key, record, method=method, target=0.7, refit=refit, miou=miou(small, *test)))
            keep(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("oneshot", "vtrans", "channels", "segformer"))
    {"oneshot": oneshot, "vtrans": vtrans, "channels": channels, "segformer": segformer}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
