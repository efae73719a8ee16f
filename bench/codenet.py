"""The detector on generated images: the ladder of spatial operators, three seeds, float training on this CPU.

    python bench/codenet.py ladder [--workers 2] [--seeds 3] [--operators a,b]   -> bench/codenet_ladder.json

10,000 training and 1,000 test canvases of 128 x 128 pixels with Fashion-MNIST items (compress/codenet/canvas.py), composed of the
60,000 training and the 10,000 test items: no item is in both. Configuration `small`, the same recipe for every operator; nothing
is chosen on the test canvases. Runs that the JSON already holds are skipped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from bench.common import BENCH, fashion, save, stamp
from compress.codenet.boxes import Scene
from compress.codenet.canvas import generate
from compress.codenet.network import OPERATORS, codenet
from compress.codenet.train import TrainConfig, score, train
from compress.quantize.plan import count_macs

CLASSES, TRAIN, TEST = 10, 10_000, 1_000
CONFIG = TrainConfig(epochs=6, batch=16, lr=3e-3)


def scenes(part: str, count: int) -> list[Scene]:
    """Canvases of the training ('train') or the test ('t10k') items."""
    return generate(*fashion(part), count, seed=0 if part == "train" else 1)


def weights_file(operator: str, seed: int) -> Path:
    return Path(tempfile.gettempdir()) / f"deploy-bench-codenet-{operator}-{seed}.safetensors"


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Train and score one operator with one seed."""
    operator, seed = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = codenet("small", CLASSES, operator)
    start = time.monotonic()
    history = train(
        net, scenes("train", TRAIN), CLASSES, TrainConfig(CONFIG.epochs, CONFIG.batch, CONFIG.lr, seed=seed)
    )
    seconds = round(time.monotonic() - start)
    result = score(net, scenes("t10k", TEST), CLASSES)
    save_model(net, str(weights_file(operator, seed)))
    example = torch.zeros(1, 3, net.config.resolution, net.config.resolution)
    return {
        "operator": operator, "seed": seed, **result, "loss": history, "seconds": seconds,
        "parameters": sum(p.numel() for p in net.parameters()), "mmacs": round(sum(count_macs(net, (example,)).values()) / 1e6, 2),
    }  # fmt: skip


def ladder(args: argparse.Namespace) -> None:
    path = BENCH / "codenet_ladder.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    done = {(r["operator"], r["seed"]) for r in rows}
    chosen = args.operators.split(",") if args.operators else list(OPERATORS)
    jobs = [(o, s) for s in range(args.seeds) for o in chosen if (o, s) not in done]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for row in pool.imap_unordered(one, jobs):
            rows.append(row)
            print({k: v for k, v in row.items() if k != "loss"}, flush=True)
            head = {
                **stamp(),
                "train": TRAIN,
                "test": TEST,
                "epochs": CONFIG.epochs,
                "batch": CONFIG.batch,
                "lr": CONFIG.lr,
            }
            save(
                "codenet_ladder",
                {**head, "rows": sorted(rows, key=lambda r: (list(OPERATORS).index(r["operator"]), r["seed"]))},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ladder",))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--operators", default="")
    ladder(parser.parse_args())


if __name__ == "__main__":
    main()
