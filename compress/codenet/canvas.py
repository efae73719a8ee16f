"""A generated detection set with exact boxes: small grey items (Fashion-MNIST's, say) at random places and scales on textured
colour canvases. Synthetic compositions of real items: figures measured on it are to be quoted as such."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from compress.codenet.boxes import Scene

MOST, SMALLEST, LARGEST = 5, 0.2, 0.6  # items a canvas; an item's side as a share of the canvas's
OVERLAP = 0.3  # of the smaller box, at most


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Coloured noise of three scales, float32 [size, size, 3] in 0..255."""
    canvas = np.full((size, size, 3), rng.uniform(40, 215, 3), np.float32)
    for cells, strength in ((2, 40), (8, 20), (size // 4, 10)):
        small = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        grown = [
            np.asarray(Image.fromarray(small[..., c]).resize((size, size), Image.Resampling.BILINEAR)) for c in range(3)
        ]
        canvas += np.stack(grown, -1)
    return canvas.clip(0, 255)


def _covers(box: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """The largest share of the smaller of two boxes that both cover."""
    worst = 0.0
    for o in others:
        w, h = min(box[2], o[2]) - max(box[0], o[0]), min(box[3], o[3]) - max(box[1], o[1])
        least = min((box[2] - box[0]) * (box[3] - box[1]), (o[2] - o[0]) * (o[3] - o[1]))
        worst = max(worst, max(0.0, w) * max(0.0, h) / least)
    return worst


def compose(items: np.ndarray, kinds: np.ndarray, rng: np.random.Generator, size: int = 128) -> Scene:
    """One canvas of `size` pixels with 1 to 5 of `items` (uint8 [n, h, w], bright on black) of classes `kinds` [n]."""
    canvas = _texture(rng, size)
    mask = np.zeros((size, size), np.int64)
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        pick = int(rng.integers(len(items)))
        side = int(size * np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
        ink = np.asarray(Image.fromarray(items[pick]).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
        if rng.random() < 0.5:
            ink = ink[:, ::-1]
        rows, cols = np.nonzero(ink.max(1) > 0.06)[0], np.nonzero(ink.max(0) > 0.06)[0]
        if len(rows) < 4 or len(cols) < 4:
            continue
        ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        h, w = ink.shape
        for _ in range(10):
            x, y = int(rng.integers(size - w + 1)), int(rng.integers(size - h + 1))
            box = (float(x), float(y), float(x + w), float(y + h))
            if _covers(box, boxes) <= OVERLAP:
                opaque = np.minimum(1.0, ink * 4)[..., None]
                colour = ink[..., None] * rng.uniform(120, 255, 3).astype(np.float32)
                mask[y : y + h, x : x + w][opaque[..., 0] > 0.5] = int(kinds[pick]) + 1
                part = canvas[y : y + h, x : x + w]
                canvas[y : y + h, x : x + w] = part * (1 - opaque) + colour * opaque
                boxes.append(box)
                labels.append(int(kinds[pick]))
                break
    return Scene(
        canvas.astype(np.uint8), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), mask=mask
    )


def generate(items: np.ndarray, kinds: np.ndarray, count: int, seed: int, size: int = 128) -> list[Scene]:
    """`count` canvases; canvas k depends on seed and k only."""
    return [compose(items, kinds, np.random.default_rng((seed, k)), size) for k in range(count)]
