"""CenterNet's targets and losses (Zhou et al., "Objects as Points", 2019, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.codenet.decode import STRIDE

SIZE_WEIGHT = 0.1
OVERLAP = 0.7


@dataclass(frozen=True)
class Targets:
    """heat [N, C, H, W] in 0..1; boxes [N, 4, H, W]: width, height, shift x, shift y in places; centres [N, 1, H, W] in {0, 1}."""

    heat: Tensor
    boxes: Tensor
    centres: Tensor


def radius(height: float, width: float, overlap: float = OVERLAP) -> float:
    """How far a corner may move so that a box of this size still overlaps (IoU) by `overlap`: the least of three cases."""

    def root(a: float, b: float, c: float) -> float:
        return (b - (b * b - 4 * a * c) ** 0.5) / (2 * a)

    total, area = height + width, height * width
    both = root(1, total, area * (1 - overlap) / (1 + overlap))  # one corner in, one out
    inside = root(4, 2 * total, (1 - overlap) * area)
    b = -2 * overlap * total
    outside = (b + (b * b - 16 * overlap * (overlap - 1) * area) ** 0.5) / (8 * overlap)
    return max(0.0, min(both, inside, outside))


def targets(boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int, size: int) -> Targets:
    """boxes: per image [n, 4] in pixels (x0 y0 x1 y1); size: side of the output map in places."""
    n = len(boxes)
    heat = np.zeros((n, classes, size, size), np.float32)
    values = np.zeros((n, 4, size, size), np.float32)
    centres = np.zeros((n, 1, size, size), np.float32)
    axis = np.arange(size, dtype=np.float32)
    for k, (rows, kinds) in enumerate(zip(boxes, labels, strict=True)):
        for (x0, y0, x1, y1), kind in zip(rows / STRIDE, kinds, strict=True):
            w, h, cx, cy = x1 - x0, y1 - y0, (x0 + x1) / 2, (y0 + y1) / 2
            if w <= 0 or h <= 0 or not (0 <= cx < size and 0 <= cy < size):
                continue
            x, y = int(cx), int(cy)
            sigma = (2 * int(radius(np.ceil(h), np.ceil(w))) + 1) / 6
            bell = np.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma * sigma))
            np.maximum(heat[k, kind], bell, out=heat[k, kind])
            values[k, :, y, x] = w, h, cx - x, cy - y
            centres[k, 0, y, x] = 1
    return Targets(torch.from_numpy(heat), torch.from_numpy(values), torch.from_numpy(centres))


def focal(logits: Tensor, heat: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss over all places, divided by the number of centres."""
    positive = heat.eq(1).float()
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = logits.sigmoid()
    value = positive * (1 - p) ** alpha * log_p + (1 - positive) * (1 - heat) ** beta * p**alpha * log_q
    return -value.sum() / positive.sum().clamp(min=1)


def detection_loss(output: Tensor, want: Targets) -> Tensor:
    """output [N, C + 4, H, W] of CoDeNet -> scalar: focal + 0.1 L1 of the sizes + L1 of the shifts."""
    classes = want.heat.shape[1]
    error = (output[:, classes:] - want.boxes).abs() * want.centres
    count = want.centres.sum().clamp(min=1)
    return focal(output[:, :classes], want.heat) + SIZE_WEIGHT * error[:, :2].sum() / count + error[:, 2:].sum() / count


def distill(student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """For `--loss compress.codenet.loss:distill`: heat maps by cross entropy with the teacher's, boxes by L1 weighted with them.

    Places where the teacher sees something count most; no labels are used.
    """
    a, b = student[0], teacher[0]
    classes = b.shape[1] - 4
    p = b[:, :classes].sigmoid()
    focus = p.amax(1, keepdim=True)
    heat = F.binary_cross_entropy_with_logits(a[:, :classes], p, reduction="none") * (
        a[:, :classes].sigmoid() - p
    ).abs().detach().clamp(min=0.02)
    boxes = (a[:, classes:] - b[:, classes:]).abs() * focus
    count = focus.sum().clamp(min=1)
    return (heat.sum() + SIZE_WEIGHT * boxes[:, :2].sum() + boxes[:, 2:].sum()) / count
