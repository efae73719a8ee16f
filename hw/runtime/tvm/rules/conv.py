"""Convolution with channels last, weights packed into panels of one tile's width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.tile import Tile, extent, halves, inline_behind, lanes_of, names, nest, pick, spatial

ANCHOR = "conv_sum"


def pack(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """[O, I, KH, KW] -> [panels, KH, KW, I, width]."""
    o, i, kh, kw = weight.shape
    full = np.zeros((tile.columns, i, kh, kw), weight.dtype)
    full[:o] = weight
    return np.ascontiguousarray(full.reshape(-1, tile.width, i, kh, kw).transpose(0, 3, 4, 2, 1))


def padded(x: Any, pads: Sequence[int], value: Any = 0.0) -> Any:
    """[N, H, W, C] with a border (top, left, bottom, right)."""
    from tvm import te, tirx

    if not any(pads):
        return x
    n, h, w, c = (int(s) for s in x.shape)
    top, left, bottom, right = pads
    fill = tirx.const(value, x.dtype)
    return te.compute(
        (n, h + top + bottom, w + left + right, c),
        lambda b, i, j, k: te.if_then_else(
            te.all(i >= top, i < h + top, j >= left, j < w + left), x[b, i - top, j - left, k], fill
        ),
        "conv_pad",
    )


def tile_for(
    image: Sequence[int], weight: Sequence[int], out: Sequence[int], geometry: Sequence[Sequence[int]], machine: Machine
) -> Tile:
    """image, out: [N, H, W, C] of input and output; weight: [O, I, KH, KW]; geometry: strides, pads, dilations.

    A kernel of one pixel has sums enough in flight for a larger tile.
    """
    shapes = tuple(tuple(int(v) for v in s) for s in (image, weight, out, *geometry))
    limit = machine.large if tuple(weight[2:]) == (1, 1) else machine.tile
    return pick("conv", shapes, out[2], out[3], machine, math.prod(weight[1:]), limit)


def compute(
    out: Sequence[int], tile: Tile, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> Any:
    """The expression: (image [N, H, W, I], panels) -> [N, H', W', O]."""
    from tvm import te

    n, height, width, channels = out

    def build(x: Any, weight: Any) -> Any:
        panels, kh, kw, depth, span = (int(s) for s in weight.shape)
        image = padded(x, pads)
        ry, rx, rc = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx"), te.reduce_axis((0, depth), "rc")
        step = tile.rows
        whole = tile.exact(width)

        def column(o: Any, i: Any) -> Any:
            return o * step + i if whole else te.min(o * step + i, width - 1)

        total = te.compute(
            (n, height, tile.count, step, panels, span),
            lambda b, y, xo, xi, fo, fi: te.sum(
                image[b, y * strides[0] + ry * dilations[0], column(xo, xi) * strides[1] + rx * dilations[1], rc]
                * weight[fo, ry, rx, rc, fi],
                axis=[ry, rx, rc],
            ),
            ANCHOR,
        )

        return te.compute(
            (n, height, width, channels),
            lambda b, y, x_, f: total[b, y, *halves(x_, step, tile.count), *halves(f, span, panels)],
            "conv_out",
        )

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    last = inline_behind(sch, ANCHOR)
    b, y, xo, xi, fo, fi, ry, rx, rc = sch.get_loops(block)
    shape = [extent(sch, loop) for loop in (b, y, xo, xi, fo, fi, ry, rx, rc)]
    work = int(np.prod(shape))
    lanes = lanes_of(shape[5], machine.lanes)
    order = [fo, b, y, xo]
    sums = [ry, rc, rx]
    if shape[6] == shape[7] == 1 and shape[8] % 4 == 0:
        sums = [ry, rx, *sch.split(rc, [None, 4])]
        sch.unroll(sums[-1])
    nest(sch, machine, ANCHOR, last, order, sums, xi, fi, lanes, work)
    if "conv_pad" in names(sch):
        spatial(sch, sch.get_sblock("conv_pad"), machine)
