"""MobileNetV2 with its real weights: `deploy compress --bits 8` on every runtime against NNCF's integers on OpenVINO, the same crops for calibration.

    python -m bench.runtimes_real --site DIR

DIR as in bench/mobilenet.py; NNCF: pip install nncf. 200 scored crops from other seeds than the calibration's. Writes the part `real` of bench/runtimes.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from bench.common import BENCH, save, stamp
from bench.mobilenet import crops, network, pictures
from bench.runtimes import Compiled, pair
from compress import CompressConfig, recipe
from compress.stage import run_stage
from deploy.data import top1
from export.stage import convert
from hw.runtime import runtimes
from hw.runtime.openvino import quiet


def ours(model: torch.nn.Module, calib: np.ndarray, place: Path) -> dict[str, onnx.ModelProto]:
    """The files of an export at W8A8."""
    torch.save({"arch": "torchvision:mobilenet_v2", "state_dict": model.state_dict()}, place / "model.pt")
    np.savez(place / "calib.npz", x=calib)
    (place / "out").mkdir()
    run_stage(CompressConfig(model=str(place / "model.pt"), calib=str(place / "calib.npz"), bits=8), place / "out")
    specs = recipe.inputs_of(recipe.read(place / "out"))
    return convert(recipe.load_float(place / "out"), recipe.load(place / "out"), specs, dynamic_batch=False, samples=2)[
        0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    args = parser.parse_args()
    ov = quiet()
    import nncf

    files, labels, center = pictures(args.site)
    scored, calib, model = crops(files, 10, 1), crops(files, 15, 2), network(args.site)
    with torch.no_grad():
        want = top1(torch.cat([model(x) for x in torch.from_numpy(scored).split(50)]).numpy())
    row: dict[str, Any] = {
        "float_labels_of_20": int((top1(model(torch.from_numpy(center)).detach().numpy()) == labels).sum())
    }
    with tempfile.TemporaryDirectory() as scratch:
        made = ours(model, calib, Path(scratch))
        source = ov.Core().read_model(model=made["float.onnx"].SerializeToString())
        theirs = nncf.quantize(source, nncf.Dataset([x[None] for x in calib]), subset_size=len(calib))
        for threads in (1, 2):
            base = runtimes()["onnxruntime"].load(made["float.onnx"], threads, Path(scratch))
            programs: dict[str, Any] = {}
            for runtime in ("onnxruntime", "tvm", "openvino"):
                place = Path(scratch) / f"{runtime}{threads}"
                place.mkdir()
                programs[f"ours on {runtime}"] = runtimes()[runtime].load(made["model.onnx"], threads, place)
            programs["NNCF on OpenVINO"] = Compiled(ov, theirs, threads)
            values = [center[:1]]
            row[f"threads{threads}"] = {
                n: pair({"base": base, n: p}, values, "base", threads)[n] for n, p in programs.items()
            }
            if threads == 1:
                row["accuracy"] = {
                    n: {
                        "agreement_percent": float(np.mean([top1(p.run([x[None]])[0])[0] == w for x, w in zip(scored, want, strict=True)]) * 100),
                        "labels_of_20": int(sum(top1(p.run([x[None]])[0])[0] == y for x, y in zip(center, labels, strict=True))),
                    }
                    for n, p in programs.items()
                }  # fmt: skip
            print(
                threads,
                {n: round(1 / t["time_ratio"], 2) for n, t in row[f"threads{threads}"].items()},
                row["accuracy"],
                flush=True,
            )
    path = BENCH / "runtimes.json"
    save("runtimes", {**json.loads(path.read_text()), "real": {**stamp(), **row}})


if __name__ == "__main__":
    main()
