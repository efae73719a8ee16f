"""MatMul and Gemm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hw.runtime.tvm.ops.quant import matmul_int
from hw.runtime.tvm.rules import matmul
from hw.runtime.tvm.value import Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node


def times_weight(g: Graph, left: Value, weight: np.ndarray) -> Value:
    """[..., K] x [K, N]; the rows of all leading axes but the last are taken as they lie."""
    left = g.plain(left)
    shape = left.shape if len(left.shape) > 1 else (1, *left.shape)
    data = g.expr(left)
    if len(left.shape) == 1:
        data = g.builder.emit(g.relax.op.reshape(data, shape))
    tile = matmul.tile_for(shape, weight.shape[1], g.machine)
    out = (*shape[:-1], weight.shape[1])
    result = g.kernel(
        matmul.compute(shape, weight.shape[1], tile), [data, matmul.pack(weight, tile)], out, range(len(out)), "matmul"
    )
    if len(left.shape) == 1:
        return g.emit(g.relax.op.reshape(result.data, (weight.shape[1],)), (weight.shape[1],), (0,))
    return result


def matmul_op(g: Graph, node: Node) -> Value | None:
    exact = matmul_int(g, node)
    if exact is not None:
        return exact
    a, b = g.float(node[0]), g.float(node[1])
    if b.dtype != "float32" or a.dtype != "float32":
        return None
    if isinstance(b.data, np.ndarray) and b.data.ndim == 2 and not isinstance(a.data, np.ndarray):
        return times_weight(g, a, b.data)
    if len(a.shape) < 2 or len(b.shape) < 2 or isinstance(a.data, np.ndarray):
        return None
    return times(g, a, b)


def times(g: Graph, a: Value, b: Value) -> Value:
    """[*batch, M, K] x [*batch, K, N], the right side packed first."""
    rank = max(len(a.shape), len(b.shape))
    a, b = (lifted(g, v, rank) for v in (g.plain(a), g.plain(b)))
    tile = matmul.tile_for(a.shape, b.shape[-1], g.machine)
    packed_shape = (*b.shape[:-2], tile.columns // tile.width, b.shape[-2], tile.width)
    packed = g.kernel(
        matmul.pack_kernel(b.shape, tile), [g.expr(b)], packed_shape, range(len(packed_shape)), "matmul_pack", pattern=2
    )
    batch = b.shape[:-2]
    lead = [max(x, y) for x, y in zip(a.shape[:-2], batch, strict=True)]
    out = (*lead, a.shape[-2], b.shape[-1])
    if not batch:
        return g.kernel(
            matmul.compute(a.shape, b.shape[-1], tile), [g.expr(a), packed.data], out, range(rank), "matmul"
        )
    return g.kernel(
        matmul.compute(a.shape, b.shape[-1], tile, batch), [g.expr(a), packed.data], out, range(rank), "matmul"
    )


def lifted(g: Graph, value: Value, rank: int) -> Value:
    """Axes of size 1 in front until there are `rank`."""
    if len(value.shape) == rank:
        return value
    shape = (1,) * (rank - len(value.shape)) + value.shape
    return g.emit(g.relax.op.reshape(g.expr(value), shape), shape, range(rank))


def gemm_op(g: Graph, node: Node) -> Value | None:
    exact = matmul_int(g, node)
    if exact is not None:
        return exact
    a, b = g.float(node[0]), g.float(node[1])
    if not isinstance(b.data, np.ndarray) or b.dtype != "float32" or isinstance(a.data, np.ndarray):
        return None
    if node.get("transA", 0):
        a = Value(a.data, a.shape[::-1], tuple(1 - p for p in a.perm), a.dtype)
    weight = b.data.T if node.get("transB", 0) else b.data
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    out = times_weight(g, a, np.ascontiguousarray(weight * np.float32(alpha) if alpha != 1 else weight))
    if len(node.inputs) > 2 and node.inputs[2] is not None and beta:
        bias = g.plain(g.float(node[2]))
        data = g.const(bias.data * np.float32(beta)) if isinstance(bias.data, np.ndarray) else bias.data
        if beta != 1 and not isinstance(bias.data, np.ndarray):
            data = g.relax.op.multiply(data, g.const(np.float32(beta)))
        out = g.emit(g.relax.op.add(out.data, data), out.shape, out.perm)
    return out


OPS = {"MatMul": matmul_op, "Gemm": gemm_op}
