"""ConvTranspose: one convolution per phase of the stride, all in one, whose outputs are then laid between each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import ToolError
from hw.runtime.tvm.ops.conv import image
from hw.runtime.tvm.rules import conv
from hw.runtime.tvm.value import NHWC, Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node


def phases(weight: np.ndarray, groups: int, stride: int, lead: int) -> tuple[np.ndarray, int, int]:
    """[I, O/G, K, K] of a transposed convolution with `stride` and `lead` cut in front -> [S*S*O, I, T, T] of a plain one, and its padding in front and
    behind. Output (y, x) of phase (a, b) stands at (y * S + a, x * S + b).

    Place p of the output takes input i through tap t where i * S + t = p + lead; for phase a the taps are those with (a + lead - t) divisible by S.
    """
    i, per, kh, kw = weight.shape
    o = per * groups
    full = np.zeros((i, o, kh, kw), weight.dtype)
    for g in range(groups):
        rows = slice(g * (i // groups), (g + 1) * (i // groups))
        full[rows, g * per : (g + 1) * per] = weight[rows]
    shifts = [(a + lead - t) // stride for a in range(stride) for t in range(kh) if (a + lead - t) % stride == 0]
    low, high = min(shifts), max(shifts)
    span = high - low + 1
    out = np.zeros((stride, stride, o, i, span, span), weight.dtype)
    for a in range(stride):
        for b in range(stride):
            for ty in range(kh):
                for tx in range(kw):
                    if (a + lead - ty) % stride == 0 and (b + lead - tx) % stride == 0:
                        y, x = (a + lead - ty) // stride - low, (b + lead - tx) // stride - low
                        out[a, b, :, :, y, x] = full[:, :, ty, tx].T
    return out.reshape(stride * stride * o, i, span, span), -low, high


def deconv_op(g: Graph, node: Node) -> Value | None:
    x = node[0]
    if node.get("output_shape") is not None:
        raise ToolError(f"TVM: the ConvTranspose node {node.name!r} has output_shape; give it pads, or use onnxruntime")
    weight = g.float(node[1])
    if len(x.shape) != 4 or not isinstance(weight.data, np.ndarray):
        return None
    w = weight.data
    strides = list(node.get("strides", [1, 1]))
    cut = list(node.get("pads", [0] * 4))
    extra = list(node.get("output_padding", [0, 0]))
    if (
        strides[0] != strides[1] or cut[0] != cut[1] or w.shape[2] != w.shape[3] or list(node.get("dilations", [1, 1])) != [1, 1]
        or node.get("auto_pad", "NOTSET") != "NOTSET" or (node.get("group", 1) > 1 and w.shape[0] > 64)
    ):  # fmt: skip
        return None
    stride, groups = strides[0], node.get("group", 1)
    source, (n, _, height, width) = image(g, x)
    o = w.shape[1] * groups
    sizes = [(s - 1) * stride - cut[i] - cut[i + 2] + w.shape[2 + i] + extra[i] for i, s in enumerate((height, width))]
    grown, front, _ = phases(np.ascontiguousarray(w), groups, stride, cut[0])
    rows = [-(-s // stride) for s in sizes]
    span = grown.shape[2]
    behind = [r + span - 1 - front - s for r, s in zip(rows, (height, width), strict=True)]
    if min(front, *behind) < 0:
        return None
    out = (n, rows[0], rows[1], stride * stride * o)
    pads = [front, front, behind[0], behind[1]]
    tile = conv.tile_for(source.stored, grown.shape, out, ([1, 1], pads, [1, 1]), g.machine)
    build = conv.compute(out, tile, [1, 1], pads, [1, 1])
    value = g.kernel(build, [g.expr(source), conv.pack(grown, tile)], (n, out[3], rows[0], rows[1]), NHWC, "conv")
    op = g.relax.op
    data = g.builder.emit(op.reshape(value.data, (n, rows[0], rows[1], stride, stride, o)))
    data = g.builder.emit(op.permute_dims(data, [0, 1, 3, 2, 4, 5]))
    data = g.builder.emit(op.reshape(data, (n, rows[0] * stride, rows[1] * stride, o)))
    if (rows[0] * stride, rows[1] * stride) != tuple(sizes):
        data = g.builder.emit(op.strided_slice(data, [1, 2], [0, 0], sizes))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        data = g.builder.emit(op.add(data, g.expr(g.float(node[2]))))
    return Value(data, (n, o, *sizes), NHWC, "float32")


OPS = {"ConvTranspose": deconv_op}
