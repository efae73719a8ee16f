"""Speed and size of compressed networks against float32 in ONNX Runtime, one thread.

    python -m bench.speed

ResNet18 and MobileNetV2 (W4 stored, A8), DeiT-tiny and a 6-layer BERT (W8, dynamic and static), random weights with varied BatchNorm
statistics (speed and size do not depend on their values). Runs compress -> export -> profile as a user would; writes bench/speed.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import timm
import torch
import torchvision

from bench.common import merge, save, stamp
from bench.models import minilm
from compress import CompressConfig
from compress.command import STAGE as COMPRESS
from deploy.runner import execute
from export.command import STAGE as EXPORT
from export.config import ExportConfig
from hw.command import PROFILE
from hw.config import ProfileConfig

SAMPLES = 300


def _varied(module: torch.nn.Module) -> torch.nn.Module:
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.6, 1.6)
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="measure only the networks whose name contains this, keep the other rows"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    networks = {
        "resnet18 W4A8": ("torchvision:resnet18", torchvision.models.resnet18(), {"bits": 4, "rounding": "nearest", "bias_correction": "off"}),
        "mobilenet_v2 W4A8": ("torchvision:mobilenet_v2", torchvision.models.mobilenet_v2(), {"bits": 4, "rounding": "nearest", "bias_correction": "off"}),
        "mobilenet_v2 W4A8, all layers at 4 bits": ("torchvision:mobilenet_v2", torchvision.models.mobilenet_v2(), {"bits": 4, "first_last_bits": 4, "rounding": "nearest", "bias_correction": "off"}),
        "deit_tiny W8 dynamic": ("timm:deit_tiny_patch16_224", timm.create_model("deit_tiny_patch16_224"), {"bits": 8}),
        "deit_tiny W8 static": ("timm:deit_tiny_patch16_224", timm.create_model("deit_tiny_patch16_224"), {"bits": 8, "activations": "static"}),
        "bert 6 layers W8 dynamic": ("bench.models:minilm", minilm(), {"bits": 8}),
        "bert 6 layers W8 static": ("bench.models:minilm", minilm(), {"bits": 8, "activations": "static"}),
    }  # fmt: skip
    rows = []
    for name, (arch, module, settings) in networks.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            torch.save(_varied(module).state_dict(), root / "model.pt")
            flag = {"arch": arch} if arch.startswith("bench") else {}
            execute(
                COMPRESS,
                CompressConfig(
                    model=str(root / "model.pt"),
                    output=str(root / "c"),
                    arch=arch,
                    calib="random",
                    calib_samples=32,
                    **settings,
                ),
            )
            done = execute(
                EXPORT, ExportConfig(model=str(root / "c"), output=str(root / "e"), parity_samples=2, **flag)
            )
            profile = execute(
                PROFILE, ProfileConfig(model=str(root / "e"), output=str(root / "p"), samples=SAMPLES)
            ).manifest["summary"]
            sizes = done.manifest["summary"]["bytes"]
            for candidate, row in profile["candidates"].items():
                t = row["latency"]
                rows.append(
                    {"network": name, "candidate": candidate, "ratio": t["ratio"], "ratio_low": t["ratio_low"], "ratio_high": t["ratio_high"], "verdict": t["verdict"],
                     "p50_ms": t["p50_ms"], "cpu_p50_ms": t["cpu_p50_ms"], "samples": t["samples"], "busy": t["busy"], "bytes": row["bytes"],
                     "smaller": sizes["float.onnx"] / row["bytes"]}
                )  # fmt: skip
                print(
                    {k: rows[-1][k] for k in ("network", "candidate", "ratio", "ratio_low", "smaller", "busy")},
                    flush=True,
                )
    save(
        "speed", {**stamp(), "threads": 1, "conditions": profile["conditions"], "rows": merge("speed", rows, "network")}
    )


if __name__ == "__main__":
    main()
