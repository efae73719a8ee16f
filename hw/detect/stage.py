"""`deploy detect` as a stage: resize, run, decode, draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from compress.codenet.decode import STRIDE, Detections, decode
from deploy.arch import Preprocess
from deploy.errors import UserError
from deploy.inputs import InputSpec
from deploy.report.sections import Picture, Section, Table
from export import onnxfile, parity
from export.stage import FLOAT, QONNX, RUNTIME, read_record
from hw.detect import source
from hw.detect.config import DetectConfig

RECORD, DRAWN, SHOWN = "detections.json", "drawn", 6
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#0aa", "#b58900", "#c2185b", "#607d8b", "#795548")


def engine(folder: Path, name: str, spec: InputSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function: normalised [1, 3, R, R] -> [C + 4, R/4, R/4], by ONNX Runtime or by the integer graph of the QONNX file."""
    if name == "integer":
        from hw.fpga import reference
        from hw.fpga.lower import lower
        from hw.fpga.lower.problems import refuse

        if not (folder / QONNX).is_file():
            raise UserError(
                f"{folder} has no {QONNX}; --engine integer wants a quantized model (deploy compress --bits)"
            )
        lowered = lower(onnxfile.load(folder / QONNX, check=False))
        refuse(lowered.problems, str(folder))
        return lambda x: reference.run(lowered.graph, [x])[0][0]
    file = folder / (RUNTIME if (folder / RUNTIME).is_file() else FLOAT)
    run = parity.session(onnxfile.load(file))
    return lambda x: np.asarray(run.run(None, {spec.name: x})[0])[0]


def _checked(output: np.ndarray, spec: InputSpec) -> np.ndarray:
    side = spec.shape[2] // STRIDE
    if output.ndim != 3 or output.shape[1:] != (side, side) or output.shape[0] < 5:
        raise UserError(
            f"the model gives {list(output.shape)} for one image, not [classes + 4, {side}, {side}]; detect wants a deploy:codenet detector"
        )
    return output


def find(
    run: Callable[[np.ndarray], np.ndarray],
    image: Image.Image,
    spec: InputSpec,
    preprocess: Preprocess,
    config: DetectConfig,
) -> Detections:
    """Boxes of one image, in its own pixels. The image is resized to the model's side whole."""
    side = spec.shape[2]
    pixels = (
        np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)[None] / 255
    )
    mean, std = (
        np.array(v, np.float32).reshape(1, -1, 1, 1)
        for v in (preprocess.mean or (0.0,) * 3, preprocess.std or (1.0,) * 3)
    )
    found = decode(_checked(run((pixels - mean) / std), spec), config.most, config.least)
    factor = np.array([image.width, image.height] * 2, np.float32) / side
    limits = np.array([image.width, image.height] * 2, np.float32)
    return Detections(np.minimum(np.maximum(found.boxes * factor, 0), limits), found.scores, found.labels)


def draw(image: Image.Image, found: Detections, names: list[str]) -> Image.Image:
    """The image with its boxes, small ones enlarged to 384 pixels."""
    grow = max(1, 384 // max(image.width, image.height))
    canvas = image.resize((image.width * grow, image.height * grow), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for box, score, label in reversed(
        list(zip(found.boxes * grow, found.scores, found.labels, strict=True))
    ):  # best on top
        colour = COLOURS[int(label) % len(COLOURS)]
        pen.rectangle([float(v) for v in box], outline=colour, width=2)
        text = f"{names[label]} {score:.2f}"
        left, top = float(box[0]) + 2, max(0.0, float(box[1]) - 12)
        pen.rectangle(pen.textbbox((left, top), text), fill=colour)
        pen.text((left, top), text, fill="white")
    return canvas


def run_stage(config: DetectConfig, folder: Path) -> dict[str, Any]:
    """Write detections.json and drawn/ into `folder`; returns the summary."""
    model = Path(config.model)
    record = read_record(model)
    specs = [InputSpec.from_json(r) for r in record["inputs"]]
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].shape[1] != 3 or specs[0].shape[2] != specs[0].shape[3]:
        raise UserError(f"{model} does not take one square colour image; detect wants a deploy:codenet detector")
    preprocess = Preprocess.from_json(record["preprocess"])
    given = [n.strip() for n in config.names.split(",")] if config.names else []
    run = engine(model, config.engine, specs[0])
    (folder / DRAWN).mkdir()
    rows: dict[str, dict[str, Any]] = {}
    for name, image in source.pictures(config):
        found = find(run, image, specs[0], preprocess, config)
        most = int(found.labels.max(initial=-1)) + 1
        names = [*given, *(f"class {k}" for k in range(len(given), most))]
        drawing = f"{DRAWN}/{len(rows):03d}-{Path(name).stem}.png"
        found_boxes = [
            {
                "box": [round(float(v), 1) for v in box],
                "score": round(float(score), 4),
                "label": int(label),
                "name": names[label],
            }
            for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
        ]
        rows[name] = {"drawn": drawing, "boxes": found_boxes}
        draw(image, found, names).save(folder / drawing)
    (folder / RECORD).write_text(
        json.dumps({"engine": config.engine, "least": config.least, "images": rows}, indent=1) + "\n"
    )
    first = {
        name: ", ".join(f"{b['name']} {b['score']:.2f}" for b in row["boxes"][:4]) or "nothing"
        for name, row in list(rows.items())[:3]
    }
    count = sum(len(row["boxes"]) for row in rows.values())
    return {"images": len(rows), "boxes": count, "engine": config.engine, "first": first}


def section(folder: Path, manifest: dict[str, Any]) -> Section:
    """The boxes drawn on the first images, and how many there are on each."""
    record = json.loads((folder / RECORD).read_text())
    rows = record["images"]
    counts = tuple((n, len(r["boxes"]), ", ".join(sorted({b["name"] for b in r["boxes"]}))) for n, r in rows.items())
    shown = [
        Picture(
            f"{name}: {len(row['boxes'])} box{'' if len(row['boxes']) == 1 else 'es'}",
            (folder / row["drawn"]).read_bytes(),
        )
        for name, row in list(rows.items())[:SHOWN]
    ]
    facts = (
        ("images", str(manifest["summary"]["images"])),
        ("boxes", str(manifest["summary"]["boxes"])),
        ("computed by", record["engine"]),
    )
    note = f"score at least {record['least']:g}; peaks of the heat map, no non-maximum suppression"
    return Section(
        "Detections", "", facts, (*shown, Table("Boxes per image", ("image", "boxes", "classes"), counts, note))
    )
