"""Products of activations that are quantized as they come: DynamicQuantizeLinear and MatMulInteger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hw.runtime.tvm.ops.quant import TINY, product_of, quotient, rounded
from hw.runtime.tvm.value import Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node


def dynamic(g: Graph, node: Node) -> list[Value]:
    """DynamicQuantizeLinear: the range of this very input, then its integers; scale and zero point stay on the device."""
    from tvm import te, tirx

    x = g.float(node[0])
    count = int(np.prod(x.shape))
    lanes = g.machine.lanes if count % g.machine.lanes == 0 else 1
    flat = g.builder.emit(g.relax.op.reshape(x.data, (count // lanes, lanes)))

    def edge(v: Any, reducer: Any, name: str) -> Any:
        k = te.reduce_axis((0, count // lanes), "k")
        part = te.compute((1, lanes), lambda _, i: reducer(v[k, i], axis=k), f"{name}_lanes")
        j = te.reduce_axis((0, lanes), "j")
        return te.compute((1,), lambda _: reducer(part[0, j], axis=j), name)

    def f(value: float) -> Any:
        return tirx.const(value, "float32")

    low = g.kernel(lambda v: edge(v, te.min, "least"), [flat], (1,), (0,), "least", pattern=8)
    high = g.kernel(lambda v: edge(v, te.max, "most"), [flat], (1,), (0,), "most", pattern=8)

    def scale_of(a: Any, b: Any) -> Any:
        return te.compute((1,), lambda i: (te.max(b[i], f(0)) - te.min(a[i], f(0))) / f(255), "scale")

    scale = g.kernel(scale_of, [low.data, high.data], (1,), (0,), "scale", pattern=8)

    def zero_of(a: Any, s: Any) -> Any:
        return te.compute(
            (1,),
            lambda i: tirx.nearbyint(
                te.max(te.min(f(0) - te.min(a[i], f(0)) / tirx.Select(s[i] == f(0), f(1), s[i]), f(255)), f(0))
            ).astype("uint8"),
            "zero",
        )

    zero = g.kernel(zero_of, [low.data, scale.data], (1,), (0,), "zero", pattern=8)

    def round_all(v: Any, s: Any, z: Any) -> Any:
        def one(*i: Any) -> Any:
            zero = z[0].astype("int32")
            reach = tirx.Cast("float32", 0 - zero), tirx.Cast("float32", 255 - zero)
            step = tirx.Select(s[0] == f(0), f(1), s[0])
            larger = tirx.Select(
                step < f(TINY), f(2.0**96), f(1)
            )  # a power of two: the same quotient, and its reciprocal is finite
            return rounded(quotient(v(*i) * larger, step * larger, g.machine.fma), "uint8", zero, reach)

        return te.compute(v.shape, one, "dynamic_quantize")

    y = g.kernel(round_all, [x.data, scale.data, zero.data], x.shape, x.perm, "dynamic_quantize", pattern=8)
    empty = g.relax.op.reshape
    return [y, g.emit(empty(scale.data, ()), (), ()), g.emit(empty(zero.data, ()), (), ())]


def matmul_integer(g: Graph, node: Node) -> Value | None:
    """MatMulInteger with constant s8 weights: sum - zero point * column sums."""
    a, b = node[0], node[1]
    weight_zero = node.array(3) if len(node.inputs) > 3 else None
    if (
        not isinstance(b.data, np.ndarray) or b.data.dtype != np.int8 or b.data.ndim != 2 or b.data.shape[0] % 4
        or a.dtype != "uint8" or a.constant or len(a.shape) < 2 or (weight_zero is not None and weight_zero.any())
    ):  # fmt: skip
        return None
    a = g.ordered(a, range(len(a.shape)), keep=True)
    sums = product_of(g, a.data, a.shape, b.data)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return sums
    columns = b.data.astype(np.int64).sum(0).astype(np.int32)
    op = g.relax.op
    if isinstance(zero.data, np.ndarray):
        shift = g.const((int(zero.data.reshape(-1)[0]) * columns).astype(np.int32))
    else:
        shift = g.builder.emit(op.multiply(g.builder.emit(op.astype(zero.data, "int32")), g.const(columns)))
    return g.emit(op.subtract(sums.data, shift), sums.shape, sums.perm)


OPS = {"DynamicQuantizeLinear": dynamic, "MatMulInteger": matmul_integer}
