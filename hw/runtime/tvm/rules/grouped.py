"""Grouped convolution, channels last: every group is a small convolution with its own packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.conv import padded
from hw.runtime.tvm.rules.tile import Tile, divisors, extent, inline_behind, lanes_of, names, nest, spatial

ANCHOR = "grouped_sum"


def tile_for(out: Sequence[int], groups: int, machine: Machine) -> Tile:
    """out: [N, H, W, C]; the columns of the tile are those of one group."""
    per = out[3] // groups
    lanes = lanes_of(per, machine.lanes)
    vectors = max(d for d in divisors(per // lanes) if d <= 4)
    rows = max(d for d in divisors(out[2]) if d * vectors <= machine.tile)
    return Tile(rows, vectors, lanes, per, out[2] // rows)


def pack(weight: np.ndarray, groups: int, tile: Tile) -> np.ndarray:
    """[O, I/G, KH, KW] -> [G, panels, KH, KW, I/G, width]."""
    _, i, kh, kw = weight.shape
    return np.ascontiguousarray(weight.reshape(groups, -1, tile.width, i, kh, kw).transpose(0, 1, 4, 5, 3, 2))


def compute(
    out: Sequence[int], tile: Tile, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> Any:
    """(image [N, H, W, C], weight [G, panels, KH, KW, I/G, width]) -> [N, H', W', O]."""
    from tvm import te

    n, height, width, channels = out

    def build(x: Any, weight: Any) -> Any:
        groups, panels, kh, kw, depth, span = (int(s) for s in weight.shape)
        image = padded(x, pads)
        ry, rx, rc = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx"), te.reduce_axis((0, depth), "rc")
        step, per = tile.rows, panels * span
        total = te.compute(
            (n, height, tile.count, step, groups, panels, span),
            lambda b, y, xo, xi, g, fo, fi: te.sum(
                image[
                    b,
                    y * strides[0] + ry * dilations[0],
                    (xo * step + xi) * strides[1] + rx * dilations[1],
                    g * depth + rc,
                ]
                * weight[g, fo, ry, rx, rc, fi],
                axis=[ry, rx, rc],
            ),
            ANCHOR,
        )
        return te.compute(
            (n, height, width, channels),
            lambda b, y, x_, f: total[b, y, x_ // step, x_ % step, f // per, f % per // span, f % span],
            "grouped_out",
        )

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    last = inline_behind(sch, ANCHOR)
    loops = sch.get_loops(block)
    b, y, xo, xi, g, fo, fi, ry, rx, rc = loops
    shape = [extent(sch, x) for x in loops]
    lanes = lanes_of(shape[6], machine.lanes)
    nest(sch, machine, ANCHOR, last, [g, fo, b, y, xo], [ry, rc, rx], xi, fi, lanes, int(np.prod(shape)))
    if "conv_pad" in names(sch):
        spatial(sch, sch.get_sblock("conv_pad"), machine)
