"""Integer tensors as beats of a stream, and back."""

from __future__ import annotations

import numpy as np

from hw.fpga.netlist import Stream


def to_words(values: np.ndarray, stream: Stream) -> list[int]:
    """[N, H, W, C] integers as the words of a stream, frame after frame."""
    flat = values.reshape(-1, stream.par).astype(np.int64) & ((1 << stream.bits) - 1)
    words = flat[:, 0].astype(object)
    for i in range(1, stream.par):
        words = words | (flat[:, i].astype(object) << (i * stream.bits))
    return [int(w) for w in words]


def from_words(words: list[int], stream: Stream, shape: tuple[int, int, int]) -> np.ndarray:
    """Words as integers [N, H, W, C]; words beyond the last whole frame are left out."""
    mask = (1 << stream.bits) - 1
    frames = len(words) // stream.beats
    flat = np.array(
        [[(w >> (i * stream.bits)) & mask for i in range(stream.par)] for w in words[: frames * stream.beats]], np.int64
    )
    if stream.signed:
        flat = np.where(flat >= 1 << (stream.bits - 1), flat - (1 << stream.bits), flat)
    return flat.reshape(frames, *shape)
