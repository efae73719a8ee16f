"""Reductions and the chains of blocks around them (softmax, layer normalisation, pooling): rows go to threads, and a sum over neighbours
in memory is cut into lanes first."""

from __future__ import annotations

from typing import Any

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.tile import PARALLEL_WORK, extent, lanes_of, names, spatial

ANCHOR = ""


def is_reduction(sch: Any, block: Any) -> bool:
    import tvm

    return any(v.iter_type == tvm.tirx.IterVar.CommReduce for v in sch.get(block).iter_vars)


def matches(sch: Any) -> bool:
    return any(is_reduction(sch, b) for b in sch.get_child_blocks(sch.get_sblock("root")))


def schedule(sch: Any, machine: Machine) -> None:
    from tvm.s_tir.schedule import ScheduleError

    listed = names(sch)
    for name in listed[:-1]:
        block = sch.get_sblock(name)
        if not is_reduction(sch, block):
            try:
                sch.compute_inline(block)
            except ScheduleError:
                continue  # read by an index that is no plain one, or twice: it stays a block of its own
    for name in names(sch):
        block = sch.get_sblock(name)
        if is_reduction(sch, block):
            _reduction(sch, block, machine)
        else:
            spatial(sch, block, machine)


def _reduction(sch: Any, block: Any, machine: Machine) -> None:
    import tvm

    info = sch.get(block)
    loops = sch.get_loops(block)
    outer = [x for x, v in zip(loops, info.iter_vars, strict=True) if v.iter_type != tvm.tirx.IterVar.CommReduce]
    inner = [x for x, v in zip(loops, info.iter_vars, strict=True) if v.iter_type == tvm.tirx.IterVar.CommReduce]
    total = 1
    for loop in loops:
        total *= extent(sch, loop)
    wide = lanes_of(extent(sch, outer[-1]), machine.lanes) if outer else 1
    if wide >= 4 or (outer and wide > 1 and extent(sch, inner[-1]) < 8):
        split, lane = sch.split(outer[-1], [None, wide])
        lead = [*outer[:-1], split]
        sch.reorder(*lead, *inner, lane)
        sch.vectorize(lane)
        fused = sch.fuse(*lead) if len(lead) > 1 else lead[0]
        if total >= PARALLEL_WORK:
            sch.parallel(fused)
        sch.decompose_reduction(block, sch.get_loops(block)[1])
        start = sch.get_loops(sch.get_sblock(info.name_hint + "_init"))
        if sch.get(start[-1]).kind != tvm.tirx.ForKind.VECTORIZED:
            sch.vectorize(start[-1])
        return
    wide = lanes_of(extent(sch, inner[-1]), machine.lanes)
    if wide >= 4 and len(inner) == 1:
        _, lane = sch.split(inner[-1], [None, wide])
        part = sch.rfactor(lane, 0)
        rows = len(outer)
        _threads(sch, sch.get_sblock(info.name_hint), rows, total)
        loops = sch.get_loops(part)  # rows, sums, lane
        sch.reorder(*loops[:rows], *loops[rows:-1], loops[-1])
        sch.vectorize(loops[-1])
        if rows:
            _threads(sch, part, rows, total)
        loops = sch.get_loops(part)
        start = sch.decompose_reduction(part, loops[-2])
        first = sch.get_loops(start)
        if first and sch.get(first[-1]).kind != tvm.tirx.ForKind.VECTORIZED:
            sch.vectorize(first[-1])
        return
    _threads(sch, block, len(outer), total)


def _threads(sch: Any, block: Any, rows: int, total: int) -> None:
    """The outer loops of a block over threads, where there is work enough."""
    loops = sch.get_loops(block)[:rows]
    if loops and total >= PARALLEL_WORK:
        sch.parallel(sch.fuse(*loops) if len(loops) > 1 else loops[0])
