"""Seconds and peak memory from a cold start to an int8 ONNX file: ours beside NNCF's `quantize`, ResNet18, 300 calibration images.

    python -m bench.cost --nncf PYTHON

PYTHON is an interpreter that can import nncf and openvino (they are no dependency of this project). Each tool runs in a process of its own, twice or --repeats times,
alternated; `deploy` runs compress and export with all parity checks. Writes bench/cost.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

from bench.common import save, stamp

NNCF = """
import sys, numpy as np, torch, torchvision, nncf, openvino as ov
model = torchvision.models.resnet18(); model.load_state_dict(torch.load(sys.argv[1])); model.eval()
images = torch.from_numpy(np.load(sys.argv[2])["x"])
quantized = nncf.quantize(model, nncf.Dataset([x[None] for x in images]), subset_size=300)
ov.save_model(ov.convert_model(quantized, example_input=images[:1]), sys.argv[3] + "/nncf.xml")
print("nncf", nncf.__version__, "openvino", ov.__version__)
"""


def measure(argv: list[str]) -> tuple[float, float, str]:
    """Wall seconds, peak resident MB (of this child), and what it printed last."""
    start = time.time()
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    out = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{argv[:3]} failed with status {status}")
    return time.time() - start, usage.ru_maxrss / 1e3, (out.strip().splitlines() or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nncf", required=True)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows: dict[str, list[dict[str, float]]] = {"deploy compress": [], "deploy export": [], "nncf.quantize": []}
    said = ""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        torch.save(torchvision.models.resnet18().state_dict(), root / "model.pt")
        rng = np.random.default_rng(0)
        np.savez(root / "calib.npz", x=rng.standard_normal((300, 3, 224, 224), dtype=np.float32))
        for repeat in range(args.repeats):
            out = root / f"out{repeat}"
            deploy = [sys.executable, "-m", "deploy"]
            compress = [
                *deploy,
                "compress",
                str(root / "model.pt"),
                "--arch",
                "torchvision:resnet18",
                "--calib",
                str(root / "calib.npz"),
                "-o",
                str(out / "c"),
                "-q",
            ]
            for name, argv in (
                ("deploy compress", compress),
                ("deploy export", [*deploy, "export", str(out / "c"), "-o", str(out / "e"), "-q"]),
                ("nncf.quantize", [args.nncf, "-c", NNCF, str(root / "model.pt"), str(root / "calib.npz"), scratch]),
            ):
                seconds, memory, last = measure(argv)
                rows[name].append({"seconds": round(seconds, 1), "peak_mb": round(memory)})
                said = last if name.startswith("nncf") else said
                print(name, rows[name][-1], flush=True)
    save("cost", {**stamp({"repeats": args.repeats}), "nncf": said, "rows": rows})


if __name__ == "__main__":
    main()
