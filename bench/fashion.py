"""Accuracy of post-training quantization on all 10,000 Fashion-MNIST test images.

    python -m bench.fashion

Bits x calibration (real, synthetic) x rounding, with plain rounding as the control. Writes bench/fashion.json. Every row runs the stage of
`deploy compress` on examples/fashion/fashion_cnn.safetensors; the integer ONNX file of each row is evaluated too, in ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.common import fashion, save, stamp
from compress import CompressConfig
from compress.stage import run_stage
from deploy.data import top1
from deploy.inputs import InputSpec
from export.parity import session
from export.stage import convert

ROOT = Path(__file__).resolve().parents[1] / "examples" / "fashion"
PLAIN = {"rounding": "nearest", "weight_scale": "max", "bias_correction": "off", "ranges": "max"}
ROWS = [
    ("W8A8 real", {"bits": 8}),
    ("W4A8 real", {"bits": 4}),
    ("W4A4 real", {"bits": 4, "act_bits": 4}),
    ("W3A8 real", {"bits": 3}),
    ("W2A8 real", {"bits": 2}),
    ("W8A8 synthetic", {"bits": 8, "calib": ""}),
    ("W4A8 synthetic", {"bits": 4, "calib": ""}),
    ("W8A8 plain rounding", {"bits": 8, **PLAIN}),
    ("W4A8 plain rounding", {"bits": 4, **PLAIN}),
    ("W4A4 plain rounding", {"bits": 4, "act_bits": 4, **PLAIN}),
    ("W3A8 plain rounding", {"bits": 3, **PLAIN}),
    ("W2A8 plain rounding", {"bits": 2, **PLAIN}),
]


def main() -> None:
    torch.set_num_threads(2)
    images, labels = fashion("t10k")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        test = Path(scratch) / "test.npz"
        np.savez(test, x=images, y=labels)
        for name, settings in ROWS:
            folder = Path(scratch) / name.replace(" ", "_")
            folder.mkdir()
            config = CompressConfig(
                model=str(ROOT / "fashion_cnn.safetensors"),
                **{"calib": str(ROOT / "calib.npz"), "eval": str(test), **settings},
            )
            summary = run_stage(config, folder)
            accuracy = summary["accuracy"]
            from compress import recipe

            files, record = convert(
                recipe.load_float(folder),
                recipe.load(folder),
                (InputSpec("input", (1, 1, 28, 28)),),
                dynamic_batch=True,
            )
            program = session(files["model.onnx"], 2)
            out = np.concatenate(
                [
                    program.run(None, {"input": (images[i : i + 500, None] / np.float32(255)).astype(np.float32)})[0]
                    for i in range(0, 10000, 500)
                ]
            )
            rows.append(
                {
                    "row": name,
                    "float_percent": accuracy["float_percent"],
                    "torch_percent": accuracy["compressed_percent"],
                    "onnx_percent": float((top1(out) == labels).mean() * 100),
                    "loss_points": round(accuracy["float_percent"] - accuracy["compressed_percent"], 3),
                    "bytes": summary["bytes"],
                    "integers_differ": record["parity"]["own_differ"],
                    "integers_compared": record["parity"]["integers_compared"],
                    "settings": settings,
                }
            )
            print(rows[-1], flush=True)
    save("fashion", {**stamp(), "images": 10000, "rows": rows})


if __name__ == "__main__":
    main()
