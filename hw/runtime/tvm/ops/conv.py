"""Conv: packed, depthwise and grouped, all with channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hw.runtime.tvm.rules import conv, depthwise, grouped
from hw.runtime.tvm.value import NHWC, Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node


def geometry(node: Node, x: Value, kernel: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Strides, pads (top, left, bottom, right) and dilations of a two-dimensional window."""
    rank = len(x.shape) - 2
    strides = list(node.get("strides", [1] * rank))
    dilations = list(node.get("dilations", [1] * rank))
    pads = list(node.get("pads", [0] * 2 * rank))
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        low, high = [], []
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            small, big = total // 2, total - total // 2
            low.append(small if auto == "SAME_UPPER" else big)
            high.append(big if auto == "SAME_UPPER" else small)
        pads = low + high
    if rank == 1:
        strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
    return strides, pads, dilations


def image(g: Graph, x: Value, keep: bool = False) -> tuple[Value, tuple[int, ...]]:
    """The value as [N, H, W, C] in memory, a line being an image of height 1; and its shape [N, C, H, W]."""
    if len(x.shape) == 4:
        return g.ordered(x, NHWC, keep), x.shape
    line = g.ordered(x, (0, 2, 1), keep)
    n, c, w = x.shape
    data = g.builder.emit(g.relax.op.reshape(g.expr(line), (n, 1, w, c)))
    return Value(data, (n, c, 1, w), NHWC, line.dtype, line.quantized), (n, c, 1, w)


def back(g: Graph, out: Value, rank: int) -> Value:
    """The inverse of `image` for a result."""
    if rank == len(out.shape):
        return out
    n, c, _, w = out.shape
    data = g.builder.emit(g.relax.op.reshape(out.data, (n, w, c)))
    return Value(data, (n, c, w), (0, 2, 1), out.dtype, out.quantized)


def conv_op(g: Graph, node: Node) -> Value | None:
    from hw.runtime.tvm.ops.quant import conv_int

    x = node[0]
    exact = conv_int(g, node)
    if exact is not None:
        return exact
    weight = g.float(node[1])
    if len(x.shape) not in (3, 4) or not isinstance(weight.data, np.ndarray):
        return None
    w = np.ascontiguousarray(weight.data)
    strides, pads, dilations = geometry(node, x, w.shape[2:])
    if w.ndim == 3:
        w = w[:, :, None, :]
    source, (n, c, height, width) = image(g, x)
    kh, kw = w.shape[2:]
    out = (
        n,
        (height + pads[0] + pads[2] - dilations[0] * (kh - 1) - 1) // strides[0] + 1,
        (width + pads[1] + pads[3] - dilations[1] * (kw - 1) - 1) // strides[1] + 1,
        w.shape[0],
    )
    groups = node.get("group", 1)
    build: Any
    if groups == 1:
        t = conv.tile_for(source.stored, w.shape, out, (strides, pads, dilations), g.machine)
        packed, build, name = conv.pack(w, t), conv.compute(out, t, strides, pads, dilations), "conv"
    elif w.shape[1] == 1:
        d = depthwise.tile_for(out, g.machine)
        packed = np.ascontiguousarray(w[:, 0].transpose(1, 2, 0))
        build, name = depthwise.compute(out, d, strides, pads, dilations, w.shape[0] // c), "depthwise"
    else:
        t = grouped.tile_for(out, groups, g.machine)
        packed, build, name = grouped.pack(w, groups, t), grouped.compute(out, t, strides, pads, dilations), "grouped"
    shape = (out[0], out[3], out[1], out[2])
    result = g.kernel(build, [g.expr(source), packed], shape, NHWC, name)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = g.float(node[2])
        result = g.emit(g.relax.op.add(result.data, g.expr(bias)), shape, NHWC)
    return back(g, result, len(x.shape))


OPS = {"Conv": conv_op}
