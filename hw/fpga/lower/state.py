"""What is known of one ONNX tensor while lowering: pieces of channels, each a float expression over integers, seen through
an index (`view`) that records reshapes, transposes, slices and shuffles without doing them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hw.fpga.lower.expr import Expr
from hw.fpga.lower.problems import CannotLower


@dataclass(frozen=True)
class Piece:
    """Some channels of a tensor."""

    expr: Expr
    channels: int


@dataclass(frozen=True)
class State:
    """pieces side by side make a base tensor [C, H, W]; `view` has the ONNX shape and holds flat indices into the base.

    after: operators that only the host can apply (Softmax), as (name, axis); nothing but the output may follow them.
    """

    pieces: tuple[Piece, ...]
    spatial: tuple[int, int]
    view: np.ndarray
    after: tuple[tuple[str, int], ...] = field(default=())

    @classmethod
    def plain(cls, expr: Expr, channels: int, spatial: tuple[int, int], rank: int) -> State:
        """One piece, seen as it is: [1, C, H, W], [1, C, W] or [1, C] by rank."""
        return cls.of((Piece(expr, channels),), spatial, rank)

    @classmethod
    def of(cls, pieces: tuple[Piece, ...], spatial: tuple[int, int], rank: int) -> State:
        count = sum(p.channels for p in pieces)
        shape = {4: (1, count, *spatial), 3: (1, count, spatial[1]), 2: (1, count)}[rank]
        return cls(pieces, spatial, np.arange(count * spatial[0] * spatial[1]).reshape(shape))

    @property
    def channels(self) -> int:
        """Channels of the base."""
        return sum(p.channels for p in self.pieces)

    @property
    def rank(self) -> int:
        return self.view.ndim

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last-plus-one channel of every piece."""
        ends = np.cumsum([p.channels for p in self.pieces])
        return [(int(e) - p.channels, int(e)) for e, p in zip(ends, self.pieces, strict=True)]

    def with_exprs(self, exprs: list[Expr]) -> State:
        return replace(self, pieces=tuple(Piece(e, p.channels) for e, p in zip(exprs, self.pieces, strict=True)))

    def _keeps_shape(self, channels: int) -> bool:
        """Whether the view has the form of an image (or vector) of `channels` channels with the base's pixels."""
        h, w = self.spatial
        forms: list[tuple[int, ...]] = [(1, channels, h, w)]
        forms += [(1, channels, w)] if h == 1 else []
        forms += [(1, channels)] if h * w == 1 else []
        return self.view.shape in forms

    def is_plain(self) -> bool:
        """Whether the view shows the base as it is."""
        return self._keeps_shape(self.channels) and bool(
            np.array_equal(self.view.ravel(), np.arange(self.channels * self.spatial[0] * self.spatial[1]))
        )

    def channel_index(self) -> list[int] | None:
        """Base channel of every channel seen, where the view keeps pixels in place; else None."""
        pixels = self.spatial[0] * self.spatial[1]
        flat = self.view.reshape(-1)
        if flat.size % pixels or not self._keeps_shape(flat.size // pixels):
            return None
        rows = flat.reshape(-1, pixels)
        index = rows[:, 0] // pixels
        return [int(i) for i in index] if np.array_equal(rows, index[:, None] * pixels + np.arange(pixels)) else None

    def stream_positions(self) -> np.ndarray:
        """Position in the stream ([H, W, C] order) of every element seen, in the order of the flattened ONNX tensor."""
        pixels = self.spatial[0] * self.spatial[1]
        channel, pixel = np.divmod(self.view.reshape(-1), pixels)
        return pixel * self.channels + channel

    def per_channel(self, value: np.ndarray) -> list[np.ndarray]:
        """A constant of the ONNX shape as one value per base channel, [] or [channels] for each piece.

        Raises CannotLower when it varies over pixels or changes the shape.
        """
        value = np.asarray(value, np.float64)
        if value.size == 1:
            return [value.reshape(())] * len(self.pieces)
        try:
            seen = np.broadcast_to(value, self.view.shape)
        except ValueError:
            seen = None
        if seen is None or value.ndim > self.rank:
            raise CannotLower("a constant in it does not fit the tensor's shape", "use one value per channel")
        pixels = self.spatial[0] * self.spatial[1]
        base = np.full(self.channels * pixels, np.nan)
        base[self.view.ravel()] = seen.ravel()
        rows = base.reshape(self.channels, pixels)
        filled = np.where(np.isnan(rows), -np.inf, rows).max(1)
        if not np.all(np.isnan(rows) | (rows == filled[:, None])):
            raise CannotLower("a constant in it varies over pixels", "use one value per channel")
        filled = np.where(np.isfinite(filled), filled, 1.0)
        return [filled[a:b] for a, b in self.bounds]
