"""Integer convolution, u8 x s8 -> i32, channels last in groups of four."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules import dot
from hw.runtime.tvm.rules.tile import Tile, extent, halves, inline_behind, lanes_of, names, nest, pick, spatial

ANCHOR = "qconv_sum"


def tile_for(
    image: Sequence[int], weight: Sequence[int], out: Sequence[int], geometry: Sequence[Sequence[int]], machine: Machine
) -> Tile:
    """image, out: [N, H, W, C] of input and output; weight: [O, I, KH, KW]; geometry: strides, pads, dilations.

    A weight is a byte, so panels may be wider.
    """
    shapes = tuple(tuple(int(v) for v in s) for s in (image, weight, out, *geometry))
    limit = machine.large if tuple(weight[2:]) == (1, 1) else machine.tile
    return pick("qconv", shapes, out[2], out[3], machine, math.prod(weight[1:]), limit, 1)


def pack(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """[O, I, KH, KW] -> [panels, KH, KW, I/4, width, 4], zeros where there is nothing."""
    o, i, kh, kw = weight.shape
    full = np.zeros((tile.columns, -(-i // 4) * 4, kh, kw), np.int8)
    full[:o, :i] = weight
    return np.ascontiguousarray(full.reshape(-1, tile.width, full.shape[1] // 4, 4, kh, kw).transpose(0, 4, 5, 2, 1, 3))


def padded(x: Any, pads: Sequence[int], zero: int) -> Any:
    """[N, H, W, C] with a border of the zero point and channels filled up to a multiple of four."""
    from tvm import te, tirx

    n, h, w, c = (int(s) for s in x.shape)
    if not any(pads) and c % 4 == 0:
        return x
    top, left, bottom, right = (
        pads  # channels that are filled up meet weights of zero: what stands in them does not matter
    )
    return te.compute(
        (n, h + top + bottom, w + left + right, -(-c // 4) * 4),
        lambda b, i, j, k: te.if_then_else(
            te.all(i >= top, i < h + top, j >= left, j < w + left),
            x[b, i - top, j - left, k if c % 4 == 0 else te.min(k, c - 1)],
            tirx.const(zero, "uint8"),
        ),
        "conv_pad",
    )


def compute(
    out: Sequence[int],
    tile: Tile,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    zero: int,
    half: str,
) -> Any:
    """(image [N, H, W, I] u8, panels) -> [N, H', W', O] i32: sums of products, the zero point not yet taken off.

    half: the type in which factors are multiplied (`dot.factor`).
    """
    from tvm import te

    n, height, width, channels = out

    def build(x: Any, weight: Any) -> Any:
        panels, kh, kw, depth, span, _ = (int(s) for s in weight.shape)
        image = padded(x, pads, zero)
        ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
        rc, ri = te.reduce_axis((0, depth), "rc"), te.reduce_axis((0, 4), "ri")
        step, whole = tile.rows, tile.exact(width)

        def column(o: Any, i: Any) -> Any:
            return o * step + i if whole else te.min(o * step + i, width - 1)

        total = te.compute(
            (n, height, tile.count, step, panels, span),
            lambda b, y, xo, xi, fo, fi: te.sum(
                image[
                    b,
                    y * strides[0] + ry * dilations[0],
                    column(xo, xi) * strides[1] + rx * dilations[1],
                    rc * 4 + ri,
                ]
                .astype(half)
                .astype("int32")
                * weight[fo, ry, rx, rc, fi, ri].astype(half).astype("int32"),
                axis=[ry, rx, rc, ri],
            ),
            ANCHOR,
        )
        return te.compute(
            (n, height, width, channels),
            lambda b, y, x_, f: total[b, y, *halves(x_, step, tile.count), *halves(f, span, panels)],
            "qconv_out",
        )

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    last = inline_behind(sch, ANCHOR)
    loops = sch.get_loops(block)
    b, y, xo, xi, fo, fi, ry, rx, rc, ri = loops
    shape = [extent(sch, loop) for loop in loops]
    lanes = lanes_of(shape[5], machine.lanes)
    nest(
        sch, machine, ANCHOR, last, [fo, b, y, xo], [ry, rc, rx], xi, fi, lanes, int(np.prod(shape)), group=ri,
        dot=dot.named(machine, lanes),
    )  # fmt: skip
    if "conv_pad" in names(sch):
        spatial(sch, sch.get_sblock("conv_pad"), machine, wide=4)
