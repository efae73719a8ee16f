"""Integer convolution and product, u8 x s8 -> i32, by tile registers (AMX): blocks of up to 32 x 32 sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.tile import PARALLEL_WORK, extent, names, spatial, vectorize_tail
from hw.runtime.tvm.rules.tile_registers import BYTES, GROUPS, LANES, PANELS, Block, intrinsics

ANCHOR = "amx_sum"
SPAN = PANELS * LANES
SHALLOW = 16  # bytes of depth below which vectors are as fast
DEAR = 4.5  # cost of a block (`block_for`; 1.5 for full tiles) from which vectors are as fast


def depth_of(channels: int) -> int:
    """Bytes multiplied at once: the largest multiple of four up to 64 that divides the channels, filled up to a multiple of four."""
    full = -(-channels // 4) * 4
    return max(d for d in range(4, BYTES + 1, 4) if full % d == 0)


def block_for(
    height: int,
    width: int,
    channels: int,
    machine: Machine,
    strides: Sequence[int] = (1, 1),
    kernel: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
) -> Block | None:
    """The block for an output of height x width pixels; None where vectors do it: no such registers, too few channels, or too few pixels."""
    depth, narrow = depth_of(channels), False
    if channels <= 4 and dilations[1] == 1 and 1 < kernel[1] <= BYTES // 4:
        depth, narrow = 4 * kernel[1], True
    if not machine.amx or (depth < SHALLOW and not narrow):
        return None
    found = []
    for tall, rows in itertools.product((False, True), range(4, LANES + 1)):
        high, wide = (GROUPS, rows) if tall else (1, GROUPS * rows)
        waste = -(-height // high) * high * -(-width // wide) * wide / (height * width)
        copied = 1.0 if waste == 1 else 1.1  # the image is copied with a border
        found.append((waste * copied * (1 + 8 / rows), tall, -rows))
    cost, tall, rows = min(found)
    return Block(-rows, depth, tall, (int(strides[0]), int(strides[1])), narrow) if cost < DEAR else None


def pack(weight: np.ndarray, block: Block) -> np.ndarray:
    """[O, I, KH, KW] -> [blocks of panels, KH, KW, I/depth, 2, depth/4, 16, 4] ([.., KH, 1, 1, 2, KW, 16, 4] where the block is narrow), zeros where there
    is nothing."""
    o, i, kh, kw = weight.shape
    full = np.zeros((-(-o // SPAN) * SPAN, -(-i // 4) * 4, kh, kw), np.int8)
    full[:o, :i] = weight
    if block.narrow:
        full = full.transpose(0, 3, 1, 2).reshape(full.shape[0], -1, kh, 1)
        kw = 1
    split = full.reshape(-1, PANELS, LANES, full.shape[1] // block.depth, block.depth // 4, 4, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 6, 7, 3, 1, 4, 2, 5))


class _Image:
    """An array of up to four axes read as [N, H, W, C]: a product's rows are the pixels of an image."""

    def __init__(self, x: Any) -> None:
        self.x, self.missing = x, 4 - len(x.shape)
        self.shape = (1,) * self.missing + tuple(x.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        return self.x[index[self.missing :]]


def tiles_of(height: int, width: int, block: Block) -> tuple[int, int]:
    """Blocks along an output's height and width."""
    high, wide = (GROUPS, block.rows) if block.tall else (1, GROUPS * block.rows)
    return -(-height // high), -(-width // wide)


def border_of(
    height: int, width: int, block: Block, strides: Sequence[int], pads: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding (top, left, bottom, right) of an image with what the blocks reach beyond an output of height x width."""
    tall, wide = tiles_of(height, width, block)
    high, across = (GROUPS, block.rows) if block.tall else (1, GROUPS * block.rows)
    return (
        pads[0], pads[1], pads[2] + (tall * high - height) * strides[0], pads[3] + (wide * across - width) * strides[1],
    )  # fmt: skip


def pixels(border: Sequence[int], zero: int) -> Any:
    """[N, C, H, W] u8 with at most four channels -> [N, H', W'] u32 with a border of the zero point, the first channel in the low byte.

    Left as plain loops: LLVM makes vectors of the innermost one, conditions included, and would not of one over channels.
    """
    from tvm import te, tirx

    top, left, bottom, right = border

    def build(x: Any) -> Any:
        n, c, h, w = (int(s) for s in x.shape)

        def at(b: Any, i: Any, j: Any) -> Any:
            value = tirx.const(0, "uint32")
            for k in range(c):
                value = value | (x[b, k, i - top, j - left].astype("uint32") << tirx.const(8 * k, "uint32"))
            inside = te.all(i >= top, i < h + top, j >= left, j < w + left)
            return te.if_then_else(inside, value, tirx.const(sum(zero << (8 * k) for k in range(c)), "uint32"))

        return te.compute((n, h + top + bottom, w + left + right), at, "pixels")

    return build


def compute(
    out: Sequence[int],
    block: Block,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    zero: int = 0,
) -> Any:
    """(image [N, H, W, I] u8, packed weights) -> [N, H', W', O] i32: sums of products, the zero point not yet taken off. The image of a narrow block is what
    `pixels` made of it.

    Of a product [.., M, I] x [I, O] the leading axes, up to two, are N and H.
    """
    from tvm import te, tirx

    from hw.runtime.tvm.rules.qconv import padded

    n, height, width, _ = (1,) * (4 - len(out)) + tuple(out)
    r, g = block.rows, GROUPS
    wide = r if block.tall else g * r
    tall_count, wide_count = tiles_of(height, width, block)
    border = border_of(height, width, block, strides, pads)

    def build(x: Any, weight: Any) -> Any:
        blocks, kh, kw, steps = (int(s) for s in weight.shape[:4])
        image = x if block.narrow else padded(_Image(x), border, zero)
        ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
        rc, rk, rl = te.reduce_axis((0, steps), "rc"), te.reduce_axis((0, block.depth // 4), "rk"), te.reduce_axis((0, 4), "rl")  # fmt: skip

        def sums(b: Any, yo: Any, xo: Any, p: Any, t: Any, i: Any, h: Any, j: Any) -> Any:
            y, x_ = (yo * g + t, xo * r + i) if block.tall else (yo, (xo * g + t) * r + i)
            across = x_ * strides[1] + rx * dilations[1]
            row = y * strides[0] + ry * dilations[0]
            if block.narrow:
                pixel = (image[b, row, across + rk + rc] >> (rl * 8).astype("uint32")) & tirx.const(255, "uint32")
            else:
                pixel = image[b, row, across, rc * block.depth + rk * 4 + rl]
            return te.sum(
                pixel.astype("int32") * weight[p, ry, rx, rc, h, rk, j, rl].astype("int32"), axis=[ry, rx, rc, rk, rl]
            )

        total = te.compute(
            (n, tall_count, wide_count, blocks, *block.sums), sums, ANCHOR,
            attrs={"block": [r, block.depth, int(block.tall), *block.strides, int(block.narrow)]},
        )  # fmt: skip

        def at(*index: Any) -> Any:
            b, y, x_, f = (0,) * (4 - len(index)) + index
            place = (y // g, x_ // r, y % g, x_ % r) if block.tall else (y, x_ // wide, x_ % wide // r, x_ % r)
            yo, xo, t, i = place
            return total[b, yo, xo, f // SPAN, t, i, f % SPAN // LANES, f % LANES]

        return te.compute(out, at, "amx_out")

    return build


def schedule(sch: Any, machine: Machine) -> None:
    block = sch.get_sblock(ANCHOR)
    rows, depth, tall, sy, sx, narrow = (int(v) for v in sch.get(block).annotations["block"])
    start, update, store = intrinsics(Block(rows, depth, bool(tall), (sy, sx), bool(narrow)))
    sch.unannotate(block, "block")
    kept = sch.cache_write(block, 0, "global")
    *listed, last = [sch.get_sblock(x) for x in names(sch)]
    held = {ANCHOR, "conv_pad", "pixels", sch.get(kept).name_hint}
    for other in listed:
        if sch.get(other).name_hint not in held:
            sch.compute_inline(other)
    b, yo, xo, po, t, i, h, j, ry, rx, rc, rk, rl = sch.get_loops(block)
    work = math.prod(extent(sch, x) for x in (b, yo, xo, po, t, i, h, j, ry, rx, rc, rk, rl))
    sch.reorder(po, b, yo, xo, ry, rx, rc, t, i, h, j, rk, rl)
    sch.reverse_compute_at(kept, xo, preserve_unit_loops=True)
    sch.reverse_compute_at(last, xo)
    vectorize_tail(sch, last, 4, machine.lanes)
    if work >= PARALLEL_WORK:
        sch.parallel(sch.fuse(po, b, yo, xo))
    begun = sch.decompose_reduction(block, ry)
    sch.tensorize(sch.get_loops(begun)[-4], start)
    sch.tensorize(t, update)
    sch.tensorize(sch.get_loops(kept)[-4], store)
    if "conv_pad" in names(sch):
        spatial(sch, sch.get_sblock("conv_pad"), machine, wide=4)
