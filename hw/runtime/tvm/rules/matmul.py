"""Matrix products: activations times packed weights, and activations times activations (whose right side is packed by a kernel before)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.tile import Tile, extent, halves, inline_behind, lanes_of, nest, pick

ANCHOR = "matmul_sum"
UNROLL = 4


def pack(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """[K, N] -> [panels, K, width]."""
    k, n = weight.shape
    full = np.zeros((k, tile.columns), weight.dtype)
    full[:, :n] = weight
    return np.ascontiguousarray(full.reshape(k, -1, tile.width).transpose(1, 0, 2))


def tile_for(left: Sequence[int], columns: int, machine: Machine) -> Tile:
    """left: [*lead, M, K]."""
    shapes = (tuple(int(v) for v in left), (int(columns),))
    return pick("matmul", shapes, left[-2], columns, machine, left[-1], machine.large)


def pack_kernel(shape: Sequence[int], tile: Tile) -> Any:
    """The expression that packs a right side [*batch, K, N] into [*batch, panels, K, width]."""
    from tvm import te, tirx

    *batch, k, n = shape
    panels, width = tile.columns // tile.width, tile.width

    def build(x: Any) -> Any:
        def at(*index: Any) -> Any:
            *lead, p, r, c = index
            column = p * width + c
            if tile.columns == n:
                return x(*lead, r, column)
            return te.if_then_else(column < n, x(*lead, r, column), tirx.const(0, x.dtype))

        return te.compute((*batch, panels, k, width), at, "matmul_pack")

    return build


def compute(left: Sequence[int], columns: int, tile: Tile, batch: Sequence[int] = ()) -> Any:
    """(left [*lead, M, K], panels [*batch, panels, K, width]) -> [*lead, M, N]; batch axes of size 1 are repeated."""
    from tvm import te

    *lead, rows, depth = left
    step, span, whole = tile.rows, tile.width, tile.exact(rows)
    full = [max(a, b) for a, b in zip(lead, batch, strict=True)] if batch else list(lead)

    def build(x: Any, weight: Any) -> Any:
        k = te.reduce_axis((0, depth), "k")
        panels = tile.columns // span

        def pick_axes(index: Sequence[Any], shape: Sequence[int]) -> list[Any]:
            return [0 if s == 1 else i for i, s in zip(index, shape, strict=True)]

        def sums(*index: Any) -> Any:
            *at, mo, mi, fo, fi = index
            row = mo * step + mi if whole else te.min(mo * step + mi, rows - 1)
            right = pick_axes(at, batch) if batch else []
            return te.sum(x(*pick_axes(at, lead), row, k) * weight(*right, fo, k, fi), axis=k)

        total = te.compute((*full, tile.count, step, panels, span), sums, ANCHOR)

        def out(*index: Any) -> Any:
            *at, m, f = index
            return total(*at, *halves(m, step, tile.count), *halves(f, span, tile.columns // span))

        return te.compute((*full, rows, columns), out, "matmul_out")

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    last = inline_behind(sch, ANCHOR)
    *lead, mo, mi, fo, fi, k = sch.get_loops(block)
    shape = [extent(sch, x) for x in (*lead, mo, mi, fo, fi, k)]
    lanes = lanes_of(shape[-2], machine.lanes)
    batched = len(sch.get(block).reads[1].region) > 3
    order = [*lead, fo, mo] if batched else [fo, *lead, mo]
    sums = [k]
    if shape[-1] % UNROLL == 0 and shape[-1] > UNROLL:
        sums = list(sch.split(k, [None, UNROLL]))
        sch.unroll(sums[1])
    nest(sch, machine, ANCHOR, last, order, sums, mi, fi, lanes, int(np.prod(shape)))
