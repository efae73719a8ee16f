"""Output maps -> boxes, in NumPy: peaks of the heat map, no non-maximum suppression (Zhou et al. 2019, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRIDE = 4  # pixels per place


@dataclass(frozen=True)
class Detections:
    """boxes float32 [n, 4] (x0 y0 x1 y1 in pixels), scores float32 [n] in 0..1 falling, labels int64 [n]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def peaks(heat: np.ndarray) -> np.ndarray:
    """Where heat [C, H, W] is the largest of its 3x3 neighbours; bool."""
    padded = np.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    h, w = heat.shape[1:]
    return heat == np.max([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)


def decode(output: np.ndarray, most: int = 100, least: float = 0.0, stride: int = STRIDE) -> Detections:
    """output [C + 4, H, W] of CoDeNet for one image -> at most `most` detections with a score of at least `least`."""
    logits = output[:-4].astype(np.float32)
    scores = np.where(peaks(logits), logits, -np.inf).reshape(-1)
    order = np.argsort(-scores, kind="stable")[:most]
    order = order[np.isfinite(scores[order])]
    score = 1 / (1 + np.exp(-scores[order]))
    order, score = order[score >= least], score[score >= least]
    label, y, x = np.unravel_index(order, logits.shape)
    w, h, dx, dy = output[-4:, y, x].astype(np.float32)
    w, h = np.maximum(w, 0), np.maximum(h, 0)  # nothing keeps a network from less
    cx, cy = x + dx, y + dy
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1) * stride
    return Detections(boxes.astype(np.float32), score.astype(np.float32), label.astype(np.int64))
