"""Average precision by COCO's own code (pycocotools): AP over IoU 0.50 to 0.95, AP50, AP75."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.codenet.boxes import Scene
from compress.codenet.decode import Detections


def average_precision(scenes: Sequence[Scene], found: Sequence[Detections], classes: int) -> dict[str, float]:
    """{"AP", "AP50", "AP75"} in per cent, at most 100 detections an image; hard boxes count neither way."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, (scene, boxes) in enumerate(zip(scenes, found, strict=True), 1):
        hard = scene.hard if scene.hard is not None else np.zeros(len(scene.boxes), bool)
        for (x0, y0, x1, y1), label, skip in zip(
            scene.boxes.tolist(), scene.labels.tolist(), hard.tolist(), strict=True
        ):
            box = [x0, y0, x1 - x0, y1 - y0]
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label + 1, "bbox": box,
                         "area": box[2] * box[3], "iscrowd": int(skip)})  # fmt: skip
        for (x0, y0, x1, y1), score, label in zip(
            boxes.boxes.tolist(), boxes.scores.tolist(), boxes.labels.tolist(), strict=True
        ):
            guesses.append(
                {"image_id": number, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            )
    if not guesses or not rows:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": k + 1} for k in range(len(scenes))], "annotations": rows,
            "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)], "info": {},
        }  # fmt: skip
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(guesses), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: round(100 * float(run.stats[k]), 2) for k, name in enumerate(("AP", "AP50", "AP75"))}
