"""Reductions, pooling, softmax and normalisation over axes, in the order that the numbers have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import ToolError
from hw.runtime.tvm.ops.conv import geometry, image
from hw.runtime.tvm.rules import softmax as rule
from hw.runtime.tvm.value import NHWC, Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node

_REDUCE = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max", "ReduceMin": "min"}


def reduce_op(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if x.constant or (node.op in ("ReduceMean", "ReduceL2") and x.dtype != "float32"):
        return None
    axes = node.array(1) if len(node.inputs) > 1 else node.get("axes")
    if axes is None or len(axes) == 0:
        if node.get("noop_with_empty_axes", 0):
            return x
        axes = range(len(x.shape))
    over = sorted(int(a) % len(x.shape) for a in axes)
    keep = bool(node.get("keepdims", 1))
    op = g.relax.op
    places = [x.perm.index(a) for a in over]
    if node.op in ("ReduceL2", "ReduceSumSquare"):
        data = op.sum(g.builder.emit(op.multiply(x.data, x.data)), places, keep)
        if node.op == "ReduceL2":
            data = op.sqrt(g.builder.emit(data))
    elif node.op == "ReduceMean":
        count = int(np.prod([x.shape[a] for a in over]))
        data = op.multiply(g.builder.emit(op.sum(x.data, places, keep)), g.const(np.float32(1 / count)))
    else:
        data = getattr(op, _REDUCE[node.op])(x.data, places, keep)
    if keep:
        return g.emit(data, [1 if i in over else s for i, s in enumerate(x.shape)], x.perm)
    left = [i for i in range(len(x.shape)) if i not in over]
    return g.emit(data, [x.shape[i] for i in left], [left.index(a) for a in x.perm if a in left])


def softmax(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    axis = node.get("axis", -1 if g.opset >= 13 else 1) % len(x.shape)
    if x.constant or (g.opset < 13 and axis != len(x.shape) - 1) or x.dtype != "float32":
        return None
    if x.perm[-1] != axis:
        x = g.ordered(x, (*(a for a in range(len(x.shape)) if a != axis), axis))
    if len(x.shape) < 2:
        return None
    return g.kernel(rule.compute(x.stored, g.machine.lanes), [x.data], x.shape, x.perm, "softmax", pattern=8)


def _spread(g: Graph, value: Value, shape: tuple[int, ...]) -> Value:
    """A scale or bias over all of the normalized axes."""
    value = g.plain(g.float(value))
    if value.shape == shape:
        return value
    if isinstance(value.data, np.ndarray):
        return g.constant(np.ascontiguousarray(np.broadcast_to(value.data, shape)))
    return g.emit(g.relax.op.broadcast_to(value.data, shape), shape, range(len(shape)))


def layer_norm(g: Graph, node: Node) -> Value | None:
    """Over the last axes; they must lie last in memory, else they are moved there."""
    x = g.float(node[0])
    axis = node.get("axis", -1) % len(x.shape)
    if any(g.read(o) for o in node.proto.output[1:]):
        raise ToolError(f"TVM: the LayerNormalization node {node.name!r} gives its statistics out; use onnxruntime")
    tail = tuple(range(axis, len(x.shape)))
    if x.perm[axis:] != tail:
        x = g.plain(x)
    whole = tuple(x.shape[a] for a in tail)
    scale = _spread(g, node[1], whole)
    bias = _spread(g, node[2], whole) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    shift = g.expr(bias) if bias is not None else g.const(np.zeros(whole, np.float32))
    data = g.relax.op.nn.layer_norm(
        x.data, g.expr(scale), shift, axes=list(tail), epsilon=float(node.get("epsilon", 1e-5))
    )
    return g.emit(data, x.shape, x.perm)


def batch_norm(g: Graph, node: Node) -> Value | None:
    arrays = [node.inputs[i] for i in range(1, 5)]
    if any(v is None or not isinstance(v.data, np.ndarray) for v in arrays):
        return None
    if node[0].dtype not in ("float32", "uint8", "int8"):
        return None
    scale, bias, mean, variance = (g.float(v).data.astype(np.float64) for v in arrays if v is not None)
    factor = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    x = g.float(node[0])
    shape = [1] * len(x.shape)
    shape[x.perm.index(1)] = -1
    a = g.const(factor.astype(np.float32).reshape(shape))
    b = g.const((bias - mean * factor).astype(np.float32).reshape(shape))
    return g.emit(g.relax.op.add(g.builder.emit(g.relax.op.multiply(x.data, a)), b), x.shape, x.perm)


def pool(g: Graph, node: Node) -> Value | None:
    """MaxPool and AveragePool of images; the largest of integers is the largest of what they stand for."""
    x = node[0]
    if len(x.shape) != 4 or len([o for o in node.proto.output if o]) > 1:
        return None
    kernel = tuple(node.get("kernel_shape"))
    strides, pads, dilations = geometry(node, x, kernel)
    ceil = bool(node.get("ceil_mode", 0))
    if node.op == "MaxPool":
        keep = x.quantized is not None
        source, _ = image(g, x, keep=True)
        data = g.relax.op.nn.max_pool2d(g.expr(source), kernel, strides, pads, dilations, ceil, layout="NHWC")
    else:
        keep = False
        source, _ = image(g, x)
        include = bool(node.get("count_include_pad", 0))
        if max(dilations) > 1:
            return None
        data = g.relax.op.nn.avg_pool2d(g.expr(source), kernel, strides, pads, dilations, ceil, include, layout="NHWC")
    variable = g.builder.emit(data)
    n, h, w, c = (int(s) for s in variable.ty.shape)
    return Value(variable, (n, c, h, w), NHWC, str(variable.ty.dtype), x.quantized if keep else None)


def global_pool(g: Graph, node: Node) -> Value | None:
    x = g.float(node[0])
    if x.constant or x.dtype != "float32":
        return None
    axes = [x.perm.index(a) for a in range(2, len(x.shape))]
    shape = (*x.shape[:2], *([1] * (len(x.shape) - 2)))
    if node.op == "GlobalMaxPool":
        return g.emit(g.relax.op.max(x.data, axes, True), shape, x.perm)
    count = int(np.prod(x.shape[2:]))
    total = g.builder.emit(g.relax.op.sum(x.data, axes, True))
    return g.emit(g.relax.op.multiply(total, g.const(np.float32(1 / count))), shape, x.perm)


OPS = {
    **dict.fromkeys((*_REDUCE, "ReduceL2", "ReduceSumSquare"), reduce_op),
    "Softmax": softmax, "LayerNormalization": layer_norm, "BatchNormalization": batch_norm,
    "MaxPool": pool, "AveragePool": pool, "GlobalAveragePool": global_pool, "GlobalMaxPool": global_pool,
}  # fmt: skip
