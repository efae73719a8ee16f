"""Operators that take one number to one number, in whatever order the numbers lie; and two tensors that meet by broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hw.runtime.tvm.value import Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node

_UNARY = (
    "Relu", "Erf", "Tanh", "Exp", "Log", "Sqrt", "Neg", "Abs", "Floor", "Ceil", "Round", "Reciprocal", "LeakyRelu", "Elu", "Softplus",
    "Sin", "Cos", "Not", "Cast", "Sign", "Selu",
)  # fmt: skip


def unary(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if x.constant:
        return None
    attributes = g._importer._parse_attr(node.proto.attribute)
    return g.emit(g.convert(node.op, [x.data], attributes), x.shape, x.perm)


def sigmoid_of(g: Graph, x: Any) -> Any:
    """1 / (1 + exp(-x)): TVM's fast form covers exp, erf and tanh, not the sigmoid."""
    op, one = g.relax.op, g.const(np.float32(1))
    return op.divide(one, op.add(one, op.exp(op.negative(x))))


def sigmoid(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if x.dtype != "float32" or x.constant:
        return None
    return g.emit(g.builder.normalize(sigmoid_of(g, x.data)), x.shape, x.perm)


def clip(g: Graph, node: Node) -> Value | None:
    """minimum(maximum(x, low), high): the importer's own form guards against NaN bounds and cannot be fused."""
    x = g.float(node[0])
    if x.constant:
        return None
    low = node.array(1) if len(node.inputs) > 1 else node.get("min")
    high = node.array(2) if len(node.inputs) > 2 else node.get("max")
    data = x.data
    for bound, op in ((low, g.relax.op.maximum), (high, g.relax.op.minimum)):
        if bound is not None:
            data = g.builder.emit(op(data, g.const(np.asarray(bound, x.dtype).reshape(-1)[0])))
    return Value(data, x.shape, x.perm, x.dtype)


def hard_sigmoid(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if x.constant or x.dtype != "float32":
        return None
    return g.emit(_hard(g, x.data, node.get("alpha", 0.2), node.get("beta", 0.5)), x.shape, x.perm)


def hard_swish(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if x.constant or x.dtype != "float32":
        return None
    return g.emit(g.relax.op.multiply(x.data, _hard(g, x.data, 1 / 6, 0.5)), x.shape, x.perm)


def _hard(g: Graph, x: Any, alpha: float, beta: float) -> Any:
    op, const = g.relax.op, lambda v: g.const(np.float32(v))
    line = op.add(op.multiply(x, const(alpha)), const(beta))
    return g.builder.emit(op.minimum(op.maximum(g.builder.emit(line), const(0)), const(1)))


def gelu(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if node.get("approximate", "none") != "none" or x.dtype != "float32":
        return None
    op, const = g.relax.op, lambda v: g.const(np.float32(v))
    erf = g.builder.emit(op.erf(g.builder.emit(op.multiply(x.data, const(0.5**0.5)))))
    half = g.builder.emit(op.multiply(x.data, const(0.5)))
    return g.emit(op.multiply(half, g.builder.emit(op.add(erf, const(1)))), x.shape, x.perm)


def aligned(g: Graph, values: list[Value]) -> tuple[list[Any], tuple[int, ...], tuple[int, ...]]:
    """The stored forms of tensors that meet by broadcasting, brought to one order; the shape and the order of the result.

    The order is that of the largest tensor that is computed; smaller ones and constants are moved to it.
    """
    rank = max(len(v.shape) for v in values)
    shape = tuple(np.broadcast_shapes(*(v.shape for v in values)))
    leader = max(values, key=lambda v: (len(v.shape) == rank, not v.constant, int(np.prod(v.shape)), not v.plain))
    perm = leader.perm if len(leader.shape) == rank else tuple(range(rank))
    rows = []
    for value in values:
        value = g.float(value)
        if value.perm == perm and len(value.shape) == rank:
            rows.append(g.expr(value))
            continue
        if len(value.shape) < rank:
            value = g.plain(value)
            lifted = (1,) * (rank - len(value.shape)) + value.shape
            if isinstance(value.data, np.ndarray):
                value = g.constant(value.data.reshape(lifted))
            else:
                value = g.emit(g.relax.op.reshape(value.data, lifted), lifted, range(rank))
        rows.append(g.expr(g.ordered(value, perm)))
    return rows, shape, perm


_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Min", "Max")  # fmt: skip


def binary(g: Graph, node: Node) -> Value | None:
    if len(node.inputs) != 2 or all(v is None or v.constant for v in node.inputs):
        return None
    if node.op == "Pow" and node[1].dtype != node[0].dtype:
        power = g.plain(g.float(node[1]))
        if not isinstance(power.data, np.ndarray) or node[0].dtype not in ("float32", "float64"):
            return None
        node.inputs[1] = g.constant(power.data.astype(node[0].dtype))
    rows, shape, perm = aligned(g, [node[0], node[1]])
    if node.op == "Div" and "int" in str(rows[0].ty.dtype if hasattr(rows[0], "ty") else ""):
        return None
    if node.op in ("Min", "Max"):
        op = g.relax.op.minimum if node.op == "Min" else g.relax.op.maximum
        return g.emit(op(*rows), shape, perm)
    return g.emit(g.convert(node.op, rows, {}), shape, perm)


def where(g: Graph, node: Node) -> Value:
    rows, shape, perm = aligned(g, [node[0], node[1], node[2]])
    return g.emit(g.relax.op.where(*rows), shape, perm)


OPS = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BINARY, binary),
    "Sigmoid": sigmoid,
    "Clip": clip,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Gelu": gelu,
    "Where": where,
}
