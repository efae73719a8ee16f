"""Softmax over the last axis in memory: per row a maximum, the exponentials, their sum, in vectors whatever the length.

exp is a polynomial (Cephes' single-precision expf: a degree 5 fit after reduction by ln 2): at most 2e-7 relative error where exp is a normal number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.tile import PARALLEL_WORK, extent

ANCHOR = "softmax_exp"


def exp(x: Any) -> Any:
    """e^x of a float32 expression, x between -87.3 and 88.3 (88.3 above, 0 below: no denormal numbers, which are slow)."""
    from tvm import te, tirx

    def f(v: float) -> Any:
        return tirx.const(v, "float32")

    low = x < f(-87.3)
    x = te.max(te.min(x, f(88.3)), f(-87.3))
    n = te.floor(x * f(1.44269504088896341) + f(0.5))
    r = x - n * f(0.693359375) - n * f(-2.12194440e-4)
    y = f(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + f(c)
    y = y * r * r + r + f(1.0)
    return tirx.Select(low, f(0.0), y * tirx.reinterpret("float32", (n.astype("int32") + 127) << 23))


def compute(shape: Sequence[int], lanes: int) -> Any:
    """[*rows, n] -> [*rows, n]."""
    from tvm import te, tirx

    *rows, n = shape
    whole = n // lanes if n >= 2 * lanes else 0

    def across(x: Any, name: str, reducer: Any, start: float) -> Any:
        """One value per row: `lanes` partial results over the whole vectors, then those and the rest one by one."""
        rest = n - whole * lanes
        if not whole:
            k = te.reduce_axis((0, n), "k")
            return te.compute(tuple(rows), lambda *i: reducer(x(*i, k), axis=k), f"softmax_{name}")
        q = te.reduce_axis((0, whole), "q")
        part = te.compute(
            (*rows, lanes), lambda *i: reducer(x(*i[:-1], q * lanes + i[-1]), axis=q), f"softmax_{name}_lanes"
        )
        k = te.reduce_axis((0, lanes + rest), "k")
        last = lambda *i: (  # noqa: E731 - an expression
            part(*i, k)
            if not rest
            else te.if_then_else(k < lanes, part(*i, te.min(k, lanes - 1)), x(*i, te.max(k - lanes, 0) + whole * lanes))
        )
        return te.compute(tuple(rows), lambda *i: reducer(last(*i), axis=k), f"softmax_{name}")

    def build(x: Any) -> Any:
        top = across(x, "max", te.max, -np.inf)
        power = te.compute((*rows, n), lambda *i: exp(x(*i) - top(*i[:-1])), ANCHOR)
        total = across(power, "sum", te.sum, 0.0)
        inverse = te.compute(tuple(rows), lambda *i: tirx.const(1.0, "float32") / total(*i), "softmax_inverse")
        return te.compute((*rows, n), lambda *i: power(*i) * inverse(*i[:-1]), "softmax_out")

    return build


def schedule(sch: Any, machine: Machine) -> None:
    import tvm

    from hw.runtime.tvm.rules.tile import names, vectorize_tail

    listed = names(sch)
    first = listed.index("softmax_exp")
    for name in listed[:first]:
        if not name.startswith("softmax"):
            sch.compute_inline(sch.get_sblock(name))
    out = sch.get_sblock("softmax_out")
    behind = listed[listed.index("softmax_out") + 1 :]
    for name in behind:
        sch.reverse_compute_inline(sch.get_sblock(name))
    loops = sch.get_loops(out)
    depth = len(loops) - 1
    total = int(np.prod([extent(sch, x) for x in loops]))
    row = sch.fuse(*loops[:-1]) if depth > 1 else loops[0]
    own = [n for n in names(sch) if n.startswith("softmax") and n != "softmax_out"]
    for name in reversed(own):
        block = sch.get_sblock(name)
        sch.compute_at(block, row)
    if total >= PARALLEL_WORK:
        sch.parallel(row)
    for name in own:
        block = sch.get_sblock(name)
        if name.endswith("_lanes"):
            lane, q = sch.get_loops(block)[1:]
            sch.reorder(q, lane)
            sch.vectorize(lane)
            start = sch.decompose_reduction(block, q)
            if sch.get(sch.get_loops(start)[-1]).kind != tvm.tirx.ForKind.VECTORIZED:
                sch.vectorize(sch.get_loops(start)[-1])
    n = extent(sch, sch.get_loops(sch.get_sblock("softmax_out"))[-1])
    if n % machine.lanes == 0:
        for name in (ANCHOR, "softmax_out"):
            vectorize_tail(sch, sch.get_sblock(name), 1, machine.lanes)
