"""Integer matrix product, u8 activations x s8 weights -> i32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules import dot
from hw.runtime.tvm.rules.tile import Tile, extent, halves, inline_behind, lanes_of, nest, pick

ANCHOR = "qmatmul_sum"


def tile_for(left: Sequence[int], columns: int, machine: Machine) -> Tile:
    """left: [*lead, M, K]."""
    shapes = (tuple(int(v) for v in left), (int(columns),))
    return pick("qmatmul", shapes, left[-2], columns, machine, left[-1], machine.large, 1)


def pack(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """[K, N] -> [panels, K/4, width, 4]; K is a multiple of four."""
    k, n = weight.shape
    full = np.zeros((k, tile.columns), np.int8)
    full[:, :n] = weight
    return np.ascontiguousarray(full.reshape(k // 4, 4, -1, tile.width).transpose(2, 0, 3, 1))


def compute(left: Sequence[int], columns: int, tile: Tile, half: str) -> Any:
    """(left [*lead, M, K] u8, panels [panels, K/4, width, 4]) -> [*lead, M, N] i32; half: see `dot.factor`."""
    from tvm import te

    *lead, rows, depth = left
    step, span, whole = tile.rows, tile.width, tile.exact(rows)

    def build(x: Any, weight: Any) -> Any:
        k, ri = te.reduce_axis((0, depth // 4), "k"), te.reduce_axis((0, 4), "ri")

        def sums(*index: Any) -> Any:
            *at, mo, mi, fo, fi = index
            row = mo * step + mi if whole else te.min(mo * step + mi, rows - 1)
            return te.sum(
                x(*at, row, k * 4 + ri).astype(half).astype("int32")
                * weight(fo, k, fi, ri).astype(half).astype("int32"),
                axis=[k, ri],
            )

        total = te.compute((*lead, tile.count, step, tile.columns // span, span), sums, ANCHOR)

        def out(*index: Any) -> Any:
            *at, m, f = index
            return total(*at, *halves(m, step, tile.count), *halves(f, span, tile.columns // span))

        return te.compute((*lead, rows, columns), out, "qmatmul_out")

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    last = inline_behind(sch, ANCHOR)
    loops = sch.get_loops(block)
    *lead, mo, mi, fo, fi, k, ri = loops
    shape = [extent(sch, x) for x in loops]
    lanes = lanes_of(shape[-3], machine.lanes)
    sums = [k]
    if shape[-2] % 4 == 0 and shape[-2] > 4:
        sums = list(sch.split(k, [None, 4]))
        sch.unroll(sums[1])
    nest(
        sch, machine, ANCHOR, last, [fo, *lead, mo], sums, mi, fi, lanes, int(np.prod(shape)), group=ri,
        dot=dot.named(machine, lanes),
    )  # fmt: skip
