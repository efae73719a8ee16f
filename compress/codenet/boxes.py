"""One labelled image: what every data source of the detector yields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scene:
    """image: uint8 [H, W, 3]. boxes: float32 [n, 4], x0 y0 x1 y1 in pixels, x1 and y1 exclusive. labels: int64 [n].

    hard: bool [n], boxes that are neither wanted nor counted as errors (VOC's `difficult`); None for none. mask: int64 [H, W], class + 1 of every
    pixel of an item, 0 elsewhere; None where only boxes are known.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    hard: np.ndarray | None = None
    mask: np.ndarray | None = None

    def wanted(self) -> Scene:
        """Without the hard boxes, for training."""
        if self.hard is None or not self.hard.any():
            return self
        return Scene(self.image, self.boxes[~self.hard], self.labels[~self.hard])
