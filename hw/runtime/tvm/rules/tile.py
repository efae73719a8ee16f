"""Register tiles: how many rows and vectors of outputs a kernel sums at once, and the loop nest around such a tile."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hw.runtime.tvm.machine import Machine

PARALLEL_WORK = 20_000  # additions or elements below which a second thread costs more than it brings


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def lanes_of(extent: int, most: int) -> int:
    """The widest vector (a power of two, at most `most`) that divides an extent."""
    lanes = most
    while lanes > 1 and extent % lanes:
        lanes //= 2
    return lanes


@dataclass(frozen=True)
class Tile:
    """rows x vectors of `lanes` values each; `columns`: the output width with its padding; `count`: tiles along the rows."""

    rows: int
    vectors: int
    lanes: int
    columns: int
    count: int

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    def exact(self, rows: int) -> bool:
        return self.rows * self.count == rows


PANEL = 768 * 1024  # bytes of weights of one panel that stay in a second-level cache


def candidates(
    rows: int, columns: int, machine: Machine, depth: int = 1, registers: int = 0, size: int = 4
) -> list[Tile]:
    """Tiles for an output of `rows` x `columns`, the cheapest first: sums, loads and idle registers per value, with what padding wastes.

    depth: products per sum, `size`: bytes of a weight; together they say whether a panel of weights stays in the cache. registers: sums at most,
    else the machine's. A sum of one vector per row loads as often as it multiplies; the weights of the terms are fitted to measurements.
    """
    limit = registers or machine.tile
    found: list[tuple[float, Tile]] = []
    for lanes in dict.fromkeys(x for x in (machine.lanes, machine.lanes // 2, 4) if x >= 4):
        padded = -(-columns // lanes) * lanes
        for vectors in range(1, 9):
            panels = -(-padded // (vectors * lanes))
            full = panels * vectors * lanes
            for row in range(1, min(limit // vectors, rows) + 1):
                count = -(-rows // row)
                waste = full / columns * (count * row) / rows
                if count * row != rows:
                    waste *= 1.03
                if columns % lanes:
                    waste *= 2.0  # sums are read in other vectors than they were made in, and leave the registers
                elif full != columns and panels > 1:
                    waste *= 1.02
                waste *= 1 + 0.15 * max(0.0, math.log2(depth * vectors * lanes * size / PANEL))
                sums = row * vectors
                cost = waste / lanes * (1 + 0.9 / row + 0.7 / vectors) * max(1.0, (8 / sums) ** 0.7)
                found.append((cost, Tile(row, vectors, lanes, full, count)))
    return [t for _, t in sorted(found, key=lambda x: x[0])]


def workload(kind: str, shapes: tuple[Any, ...]) -> str:
    """A workload's name in a tuning database."""
    return f"{kind} {json.dumps(shapes)}".replace('"', "")


def whole(tile: Tile, rows: int, columns: int, machine: Machine) -> Tile | None:
    """The tile of these rows, vectors and lanes that covers rows x columns; None where they are none of this machine's."""
    if not (1 <= tile.rows <= rows and 1 <= tile.vectors <= 8 and tile.lanes in (machine.lanes, machine.lanes // 2, 4)):
        return None
    return Tile(tile.rows, tile.vectors, tile.lanes, -(-columns // tile.width) * tile.width, -(-rows // tile.rows))


def pick(
    kind: str,
    shapes: tuple[Any, ...],
    rows: int,
    columns: int,
    machine: Machine,
    depth: int = 1,
    registers: int = 0,
    size: int = 4,
) -> Tile:
    """The tuned tile of a workload if it covers the output, else the cheapest candidate."""
    tuned = machine.tiles.get(workload(kind, shapes)) if machine.tiles else None
    used = isinstance(tuned, Tile) and tuned == whole(tuned, rows, columns, machine)
    if machine.asked is not None:
        machine.asked(kind, shapes, used)
    if isinstance(tuned, Tile) and used:
        return tuned
    return candidates(rows, columns, machine, depth, registers, size)[0]


def halves(index: Any, size: int, count: int) -> tuple[Any, Any]:
    """Which tile an index is in, and where in it."""
    return (0, index) if count == 1 else (index // size, index % size)


def extent(sch: Any, loop: Any) -> int:
    return int(sch.get(loop).extent)


def names(sch: Any) -> list[str]:
    return [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]


def inline_behind(sch: Any, anchor: str) -> Any:
    """Inline every block but the anchor and its border into the last block, which is returned."""
    *listed, last = names(sch)
    for name in listed:
        if name not in (anchor, "conv_pad"):
            sch.compute_inline(sch.get_sblock(name))
    return sch.get_sblock(last)


def vectorize_tail(sch: Any, block: Any, depth: int, lanes: int) -> None:
    """Vectorize the innermost loop of a block below `depth` shared loops. The loops around it stay loops: unrolled, TVM takes vectors apart."""
    loops = sch.get_loops(block)[depth:]
    if not loops:
        return
    wide = lanes_of(extent(sch, loops[-1]), lanes)
    if wide > 1:
        _, inner = sch.split(loops[-1], [None, wide])
        sch.vectorize(inner)


def spatial(sch: Any, block: Any, machine: Machine, wide: int = 1) -> None:
    """An element-wise block of its own: vectors inside, threads outside. wide: registers' worth of lanes, for numbers of fewer bytes."""
    import tvm

    loops = sch.get_loops(block)
    if not loops:
        return
    total = 1
    for loop in loops:
        total *= extent(sch, loop)
    last = loops[-1]
    if extent(sch, last) <= 4 and len(loops) > 1 and not _contiguous(sch, block):
        sch.unroll(last)
        if total >= PARALLEL_WORK:
            sch.parallel(sch.fuse(*loops[:-1]) if len(loops) > 2 else loops[0])
        return
    span = lanes_of(extent(sch, last), machine.lanes * wide)
    if span == 1 and extent(sch, last) > 1 and len(loops) > 1 and _contiguous(sch, block):
        last = sch.fuse(*loops)
        loops = [last]
        span = lanes_of(total, machine.lanes * wide)
    if span > 1:
        outer, inner = sch.split(last, [None, span])
        sch.vectorize(inner)
        loops[-1] = outer
    elif len(loops) > 1:
        loops = loops[:-1]  # the innermost loop stays for LLVM's vectorizer
    if total >= PARALLEL_WORK and len(loops) >= 1:
        fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
        if sch.get(fused).kind == tvm.tirx.ForKind.SERIAL:
            sch.parallel(fused)


def _contiguous(sch: Any, block: Any) -> bool:
    """Whether every array of the block is read and written at one element that has all axes of the block in order."""
    blk = sch.get(block)
    axes = [v.var for v in blk.iter_vars]
    for region in [*blk.reads, *blk.writes]:
        used = [r.min for r in region.region]
        if len(used) != len(axes) or not all(u.same_as(a) for u, a in zip(used, axes, strict=True)):
            return False
    return True


def nest(
    sch: Any,
    machine: Machine,
    anchor: str,
    last: Any,
    outer: Sequence[Any],
    reduce: Sequence[Any],
    rows: Any,
    columns: Any,
    lanes: int,
    work: int,
    unroll_reduce: bool = False,
    group: Any = None,
    dot: str = "",
    border: Any = None,
) -> None:
    """The loop nest of a register tile: outer loops, sums, then rows x vectors unrolled, and the blocks behind it in the same place.

    rows, columns: the loops inside the tile. last: the block behind the anchor. work: products in all. Rows beyond the output are computed from
    repeated inputs and not written. group: the loop over the terms that one dot product adds; dot: the intrinsic that does it.
    border: an outer loop within which the padded image is made, where that is small enough to stay in a cache.
    """
    import tvm

    block = sch.get_sblock(anchor)
    vec, lane = sch.split(columns, [None, lanes])
    sch.reorder(*outer, *reduce, rows, vec, lane, *([group] if dot else []))
    if group is not None and not dot:
        sch.reorder(group, rows, vec, lane)
        sch.unroll(group)
    sch.reverse_compute_at(last, outer[-1])
    vectorize_tail(sch, last, len(outer), lanes)
    if not dot:
        sch.vectorize(lane)
    sch.unroll(vec)
    sch.unroll(rows)
    if unroll_reduce:
        for loop in reduce:
            sch.unroll(loop)
    over = list(outer)
    if border is not None:
        over = over[: next(i for i, x in enumerate(over) if x is border) + 1]
        edge = sch.get_sblock("conv_pad")
        sch.compute_at(edge, border)
        vectorize_tail(sch, edge, len(over), lanes)
    if work >= PARALLEL_WORK:
        sch.parallel(sch.fuse(*over) if len(over) > 1 else over[0])
    start = sch.decompose_reduction(block, reduce[0])
    inner = sch.get_loops(start)
    if sch.get(inner[-1]).kind != tvm.tirx.ForKind.VECTORIZED:
        sch.vectorize(inner[-1])
    for loop in inner[-3:-1]:
        if sch.get(loop).kind == tvm.tirx.ForKind.SERIAL:
            sch.unroll(loop)
    if dot:
        sch.tensorize(lane, dot)
