"""Depthwise convolution, channels last: vectors of channels, a row of columns per tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.conv import padded
from hw.runtime.tvm.rules.tile import Tile, divisors, extent, inline_behind, lanes_of, names, nest

ANCHOR = "depthwise_sum"
COLUMNS = 8


def tile_for(out: Sequence[int], machine: Machine) -> Tile:
    """out: [N, H, W, C]."""
    lanes = lanes_of(out[3], machine.lanes)
    rows = max(d for d in divisors(out[2]) if d <= COLUMNS)
    return Tile(rows, 1, lanes, out[3], out[2] // rows)


def compute(
    out: Sequence[int],
    tile: Tile,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    repeat: int = 1,
    zero: int = 0,
) -> Any:
    """(image [N, H, W, C], weight [KH, KW, C * repeat]) -> [N, H', W', C * repeat].

    Integers (u8, border `zero`) are summed as floats: exact below 2^24, and faster than integer products.
    """
    from tvm import te

    n, height, width, channels = out

    def build(x: Any, weight: Any) -> Any:
        kh, kw, _ = (int(s) for s in weight.shape)
        image = padded(x, pads, zero)
        ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
        step, span = tile.rows, tile.lanes
        total = te.compute(
            (n, height, tile.count, step, channels // span, span),
            lambda b, y, xo, xi, fo, fi: te.sum(
                image[
                    b,
                    y * strides[0] + ry * dilations[0],
                    (xo * step + xi) * strides[1] + rx * dilations[1],
                    (fo * span + fi) // repeat,
                ].astype("float32")
                * weight[ry, rx, fo * span + fi],
                axis=[ry, rx],
            ),
            ANCHOR,
        )
        return te.compute(
            (n, height, width, channels),
            lambda b, y, x_, f: total[b, y, x_ // step, x_ % step, f // span, f % span],
            "depthwise_out",
        )

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    last = inline_behind(sch, ANCHOR)
    loops = sch.get_loops(block)
    b, y, xo, xi, fo, fi, ry, rx = loops
    shape = [extent(sch, x) for x in loops]
    few = shape[6] * shape[7] <= 25
    padded_here = "conv_pad" in names(sch)
    nest(
        sch, machine, ANCHOR, last, [b, fo, y, xo], [ry, rx], xi, fi, shape[5], int(np.prod(shape)), unroll_reduce=few,
        border=fo if padded_here else None,
    )  # fmt: skip
