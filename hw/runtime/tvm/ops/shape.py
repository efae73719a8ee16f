"""Operators that only move numbers: most of them change the note of the order and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import ToolError
from hw.runtime.tvm.value import Value, reshaped, settle

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node


def identity(g: Graph, node: Node) -> Value:
    return node[0]


def transpose(g: Graph, node: Node) -> Value:
    x = node[0]
    perm = list(node.get("perm", range(len(x.shape))[::-1]))
    shape = tuple(x.shape[p] for p in perm)
    order = tuple(perm.index(a) for a in x.perm)
    if isinstance(x.data, np.ndarray) and x.plain:
        return Value(
            np.ascontiguousarray(x.data.transpose(perm)), shape, tuple(range(len(shape))), x.dtype, _moved(x, perm)
        )
    return Value(x.data, shape, order, x.dtype, _moved(x, perm))


def _moved(x: Value, perm: list[int]):  # type: ignore[no-untyped-def]
    from hw.runtime.tvm.value import Quantized

    q = x.quantized
    return None if q is None else Quantized(q.scale, q.zero, perm.index(q.axis) if q.axis >= 0 else -1)


def to_shape(g: Graph, x: Value, shape: tuple[int, ...]) -> Value:
    """The same numbers under another shape."""
    if x.quantized is not None and x.quantized.scale.size > 1:
        x = g.float(x)
    if isinstance(x.data, np.ndarray):
        data = g.ordered(x, range(len(x.shape)), keep=True).data.reshape(shape)
        return Value(data, shape, tuple(range(len(shape))), x.dtype, x.quantized)
    perm = reshaped(x.shape, x.perm, shape)
    if perm is None:
        x = g.ordered(x, range(len(x.shape)), keep=True)
        perm = tuple(range(len(shape)))
    stored = tuple(shape[a] for a in perm)
    data = x.data if stored == x.stored else g.builder.emit(g.relax.op.reshape(x.data, stored))
    return Value(data, shape, perm, x.dtype, x.quantized)


def reshape(g: Graph, node: Node) -> Value:
    x, want = node[0], node.array(1)
    if want is None:
        raise ToolError(f"TVM: the Reshape node {node.name!r} takes a shape that is computed; use onnxruntime")
    sizes = [int(s) for s in want]
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    if -1 in sizes:
        rest = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = int(np.prod(x.shape)) // max(rest, 1)
    return to_shape(g, x, tuple(sizes))


def flatten(g: Graph, node: Node) -> Value:
    x, axis = node[0], node.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return to_shape(g, x, (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:]))))


def _axes(node: Node, index: int = 1) -> list[int] | None:
    found = node.array(index) if len(node.inputs) > index else None
    if found is None:
        found = node.get("axes")
    return None if found is None else [int(a) for a in found]


def squeeze(g: Graph, node: Node) -> Value:
    x, axes = node[0], _axes(node)
    drop = [a % len(x.shape) for a in axes] if axes else [i for i, s in enumerate(x.shape) if s == 1]
    return to_shape(g, x, tuple(s for i, s in enumerate(x.shape) if i not in drop))


def unsqueeze(g: Graph, node: Node) -> Value:
    x, axes = node[0], _axes(node) or []
    rank = len(x.shape) + len(axes)
    places = {a % rank for a in axes}
    sizes = iter(x.shape)
    return to_shape(g, x, tuple(1 if i in places else next(sizes) for i in range(rank)))


def concat(g: Graph, node: Node) -> Value | None:
    values = [v for v in node.inputs if v is not None]
    if all(v.constant for v in values):
        return None
    axis = node.get("axis", 0) % len(values[0].shape)
    leader = max((v for v in values if not v.constant), key=lambda v: int(np.prod(v.shape)))
    same = values[0].quantized is not None and all(
        v.quantized is not None
        and v.dtype == values[0].dtype
        and v.quantized.scale.size == 1
        and np.array_equal(v.quantized.scale, values[0].quantized.scale)
        and np.array_equal(v.quantized.zero, values[0].quantized.zero)
        for v in values
    )
    rows = [g.ordered(v, leader.perm, keep=same) for v in values]
    shape = list(leader.shape)
    shape[axis] = sum(v.shape[axis] for v in values)
    out = g.emit(
        g.relax.op.concat([g.expr(r) for r in rows], axis=leader.perm.index(axis)), shape, leader.perm, rows[0].dtype
    )
    return Value(out.data, out.shape, out.perm, out.dtype, values[0].quantized if same else None)


def split(g: Graph, node: Node) -> list[Value] | None:
    x = node[0]
    if x.constant:
        return None
    axis = node.get("axis", 0) % len(x.shape)
    sizes = node.array(1) if len(node.inputs) > 1 else node.get("split")
    parts = len(node.proto.output)
    if sizes is None:
        each = -(-x.shape[axis] // parts)
        sizes = [min(each, x.shape[axis] - i * each) for i in range(parts)]
    out, at = [], 0
    for size in sizes:
        out.append(cut(g, x, axis, at, at + int(size)))
        at += int(size)
    return out


def cut(g: Graph, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
    """x[start:end:step] along an axis, in the order that the numbers have."""
    if x.quantized is not None and x.quantized.axis == axis:
        x = g.float(x)
    shape = list(x.shape)
    shape[axis] = len(range(start, end, step))
    data = g.relax.op.strided_slice(g.expr(x), [x.perm.index(axis)], [start], [end], [step])
    found = g.emit(data, shape, x.perm, x.dtype)
    return Value(found.data, found.shape, found.perm, found.dtype, x.quantized)


def slice_op(g: Graph, node: Node) -> Value | None:
    x = node[0]
    if x.constant:
        return None
    starts, ends = node.array(1), node.array(2)
    if starts is None or ends is None:
        return None
    axes = _axes(node, 3) or list(range(len(starts)))
    steps = node.array(4) if len(node.inputs) > 4 else None
    for index, axis in enumerate(axes):
        axis %= len(x.shape)
        step = 1 if steps is None else int(steps[index])
        if step < 1:
            return None
        begin, end, _ = slice(int(starts[index]), int(ends[index]), step).indices(x.shape[axis])
        if (begin, end, step) != (0, x.shape[axis], 1):
            x = cut(g, x, axis, begin, end, step)
    return x


def gather(g: Graph, node: Node) -> Value | None:
    """One row by a constant scalar is a slice; constant indices are taken in the order that the numbers have."""
    x, index = node[0], node[1]
    axis = node.get("axis", 0) % len(x.shape)
    if isinstance(index.data, np.ndarray):
        index = g.constant(np.where(index.data < 0, index.data + x.shape[axis], index.data))
    else:
        op = g.relax.op
        size = g.const(np.asarray(x.shape[axis], index.dtype))
        below = g.builder.emit(op.less(index.data, g.const(np.asarray(0, index.dtype))))
        moved = g.builder.emit(op.add(index.data, size))
        index = g.emit(op.where(below, moved, index.data), index.shape, index.perm)
    if isinstance(index.data, np.ndarray) and not x.constant:
        places = index.data
        if index.data.ndim == 0:
            row = cut(g, x, axis, int(places), int(places) + 1)
            return to_shape(g, row, tuple(s for i, s in enumerate(x.shape) if i != axis))
        if index.data.ndim == 1:
            x = g.float(x)
            data = g.relax.op.take(x.data, g.const(places.astype(np.int64)), x.perm.index(axis), mode="clip")
            return g.emit(data, [len(places) if i == axis else s for i, s in enumerate(x.shape)], x.perm)
    x, index = g.plain(x), g.plain(index)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if len(index.shape) != 1:
        flat = to_shape(g, index, (int(np.prod(index.shape)),))
    else:
        flat = index
    data = g.builder.emit(g.relax.op.take(g.expr(x), g.expr(flat), axis, mode="clip"))
    row = Value(data, (*x.shape[:axis], *flat.shape, *x.shape[axis + 1 :]), tuple(range(len(x.shape))), x.dtype)
    return to_shape(g, row, shape)


def shape_of(g: Graph, node: Node) -> Value:
    sizes = node[0].shape
    return g.constant(np.asarray(sizes[node.get("start", 0) : node.get("end", len(sizes))], np.int64))


def expand(g: Graph, node: Node) -> Value | None:
    x, want = node[0], node.array(1)
    if want is None:
        return None
    shape = tuple(np.broadcast_shapes(x.shape, tuple(int(s) for s in want)))
    if shape == x.shape:
        return x
    if isinstance(x.data, np.ndarray):
        return g.constant(np.ascontiguousarray(np.broadcast_to(g.plain(x).data, shape)))
    return None


def pad(g: Graph, node: Node) -> Value | None:
    """Constant padding in the order that the numbers have."""
    x, pads = node[0], node.array(1)
    if node.get("mode", "constant") != "constant" or pads is None or x.constant:
        return None
    axes = _axes(node, 3)
    rank = len(x.shape)
    low, high = [0] * rank, [0] * rank
    listed = list(range(rank)) if axes is None else [a % rank for a in axes]
    for i, axis in enumerate(listed):
        low[axis], high[axis] = int(pads[i]), int(pads[len(listed) + i])
    if min(low + high) < 0:
        return None
    fill = node.array(2) if len(node.inputs) > 2 else None
    value = 0.0 if fill is None else float(np.asarray(fill).reshape(-1)[0])
    x = g.float(x)
    if x.dtype != "float32":
        return None
    width = [p for a in x.perm for p in (low[a], high[a])]
    shape = tuple(s + a + b for s, a, b in zip(x.shape, low, high, strict=True))
    return g.emit(g.relax.op.nn.pad(x.data, width, "constant", value), shape, x.perm)


OPS = {
    "Identity": identity, "Dropout": identity, "Transpose": transpose, "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Concat": concat, "Split": split, "Slice": slice_op, "Gather": gather, "Shape": shape_of, "Expand": expand, "Pad": pad,
}  # fmt: skip
_ = settle
