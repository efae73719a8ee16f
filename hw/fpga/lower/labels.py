"""Label select in hardware: the scores of the last layer on one common grid, then their largest channels."""

from __future__ import annotations

import numpy as np

from hw.fpga import ir
from hw.fpga.lower.convert import Context
from hw.fpga.lower.problems import CannotLower

MOST_BITS = 56  # of a score on the common grid
FRACTION = 24  # bits below the unit of the channel with the largest scale: as fine as float32's mantissa
KEEPS_ORDER = {"Softmax", "LogSoftmax", "Sigmoid", "Tanh"}


def common_grid(context: Context, tensor: str, scale: np.ndarray, offset: np.ndarray) -> str:
    """The integers v of a tensor as integers in the order of v * scale[c] + offset[c]; scale, offset float64 [C].

    Equal scales without offsets keep the tensor. Others are rounded to 2^-24 of the largest scale (coarser where the sum of
    bits would pass 56): two scores that lie closer than that may change places, as they may between two float32 runtimes.
    """
    if np.all(scale == scale[0]) and np.all(offset == offset[0]) and scale[0] > 0:
        return tensor
    x, largest = context.graph.tensors[tensor], float(np.abs(scale).max())
    if largest == 0 or not np.all(np.isfinite([*scale, *offset])):
        raise CannotLower("its scores are constant or not finite", "check the last layer's weights")
    reach = max(abs(x.low), abs(x.high)) + float(np.abs(offset).max()) / largest + 1
    bits = min(FRACTION, MOST_BITS - int(np.ceil(np.log2(reach))) - 1)
    if bits < 8:
        raise CannotLower("its scores lie too far apart for a common grid", "quantize the result")
    multiplier, shift = (np.rint(v / largest * 2.0**bits).astype(np.int64) for v in (scale, offset))
    ends = np.stack([x.low * multiplier + shift, x.high * multiplier + shift])
    return context.emit(ir.Scale(multiplier, shift, 0, int(ends.min()), int(ends.max())), [tensor])


def select(context: Context, tensor: str, scale: np.ndarray, offset: np.ndarray, index: list[int], k: int) -> str:
    """The tensor of the `k` largest channels of v * scale + offset, channels counted in the order of `index`."""
    if not 1 <= k <= len(index):
        raise CannotLower(f"the {k} largest of {len(index)} channels are asked for", "lower k")
    if index != list(range(len(scale))):
        tensor = context.emit(ir.Gather(tuple(index)), [tensor])
        scale, offset = scale[index], offset[index]
    return context.emit(ir.TopK(k), [common_grid(context, tensor, scale, offset)])
