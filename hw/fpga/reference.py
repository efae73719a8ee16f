"""Executes an integer graph in NumPy: the reference that RTL, netlists and boards are compared with, bit for bit."""

from __future__ import annotations

import numpy as np

from hw.fpga import ir


def pad(x: np.ndarray, window: ir.Window, value: int = 0) -> np.ndarray:
    """[N, H, W, C] with its border filled."""
    top, left, bottom, right = window.pads
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def windows(x: np.ndarray, window: ir.Window, value: int = 0) -> np.ndarray:
    """[N, H, W, C] -> [N, OH, OW, KY, KX, C]."""
    padded = pad(x, window, value)
    oh, ow = window.output(x.shape[1], x.shape[2])
    (ky, kx), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
    n, _, _, c = padded.shape
    s = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded, (n, oh, ow, ky, kx, c), (s[0], s[1] * sy, s[2] * sx, s[1] * dy, s[2] * dx, s[3]), writeable=False
    )


def deformed(x: np.ndarray, distance: np.ndarray, kernel: int) -> np.ndarray:
    """[N, H, W, C] at distance [N, H, W, 1] times each tap's direction -> [N, H, W, kernel, kernel, C]; zeros outside."""
    n, h, w, _ = x.shape
    place = np.meshgrid(np.arange(n), np.arange(h), np.arange(w), indexing="ij")
    out = np.zeros((n, h, w, kernel, kernel, x.shape[3]), x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            row = place[1] + (i - kernel // 2) * distance[..., 0]
            col = place[2] + (j - kernel // 2) * distance[..., 0]
            inside = (row >= 0) & (row < h) & (col >= 0) & (col < w)
            out[:, :, :, i, j][inside] = x[place[0][inside], row[inside], col[inside]]
    return out


def _conv(x: np.ndarray, op: ir.Conv, distance: np.ndarray | None = None) -> np.ndarray:
    view = windows(x, op.window) if distance is None else deformed(x, distance, op.window.kernel[0])
    n, oh, ow = view.shape[:3]
    if op.depthwise:
        multiple = op.weight.shape[0] // op.groups
        weight = op.weight[..., 0].reshape(op.groups, multiple, *op.weight.shape[1:3])
        return np.einsum("nhwyxc,cmyx->nhwcm", view, weight).reshape(n, oh, ow, -1)
    # products of integers below 2^53 are exact in float64, and its matrix product is fast
    flat = view.reshape(n * oh * ow, -1).astype(np.float64) @ op.weight.reshape(len(op.weight), -1).T.astype(np.float64)
    return flat.astype(np.int64).reshape(n, oh, ow, -1)


def apply(op: ir.Op, xs: list[np.ndarray]) -> np.ndarray:
    """One operation on batches [N, H, W, C] of int64."""
    x = xs[0]
    match op:
        case ir.Conv():
            return _conv(x, op, *xs[1:])
        case ir.Pool(kind="max"):
            return windows(x, op.window, int(np.iinfo(np.int64).min)).max(axis=(3, 4))
        case ir.Pool():
            return windows(x, op.window).sum(axis=(3, 4))
        case ir.GlobalPool(kind="max"):
            return x.max(axis=(1, 2), keepdims=True)
        case ir.GlobalPool():
            return x.sum(axis=(1, 2), keepdims=True)
        case ir.Thresholds():
            rows = np.broadcast_to(op.thresholds, (x.shape[3], op.thresholds.shape[1]))
            return np.stack(
                [op.low + np.searchsorted(rows[c], x[..., c], side="right") for c in range(x.shape[3])], axis=-1
            )
        case ir.Scale():
            return np.clip((x * op.multiplier + op.offset) >> op.shift, op.low, op.high)
        case ir.Table():
            rows = np.broadcast_to(op.table, (x.shape[3], op.table.shape[1]))
            return np.stack([rows[c][x[..., c] - op.start] for c in range(x.shape[3])], axis=-1)
        case ir.Add():
            total = sum(v * m for v, m in zip(xs, op.multipliers, strict=True)) + op.offset
            return np.clip(total >> op.shift, op.low, op.high)
        case ir.Concat():
            return np.concatenate(xs, axis=3)
        case ir.Gather():
            return x[..., list(op.index)]
        case ir.TopK():
            return np.argsort(-x, axis=3, kind="stable")[..., : op.k]
        case ir.Upsample():
            return x.repeat(op.factor[0], axis=1).repeat(op.factor[1], axis=2)
        case ir.Flatten():
            return x.reshape(len(x), 1, 1, -1)


def execute(graph: ir.Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph for a batch of integer inputs [N, H, W, C] by tensor name."""
    values = {name: v.astype(np.int64) for name, v in inputs.items()}
    for node in graph.nodes:
        values[node.output] = apply(node.op, [values[t] for t in node.inputs])
    return values


def quantize(graph: ir.Graph, floats: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Float inputs [N, ...] (channels first, as the model takes them) to integer inputs [N, H, W, C]: the host's first step."""
    ready = {}
    by_name = dict(zip(dict.fromkeys(i.name for i in graph.inputs), floats, strict=True))
    for spec in graph.inputs:
        x, tensor = by_name[spec.name], graph.tensors[spec.tensor]
        h, w, c = tensor.shape
        last = np.moveaxis(x.astype(np.float64).reshape(len(x), c, h, w), 1, 3)
        v = np.rint((last * spec.gain + spec.offset) / spec.scale)
        ready[spec.tensor] = np.clip(v, tensor.low, tensor.high).astype(np.int64)
    return ready


def dequantize(output: ir.Output, v: np.ndarray) -> np.ndarray:
    """An integer result [N, H, W, C] to the model's float output [N, ...]: the host's last step."""
    y = (v * output.scale + output.offset).reshape(len(v), -1)[:, output.order].reshape(len(v), *output.shape)
    for name, axis in output.after:
        if name == "Softmax":
            e = np.exp(y - y.max(axis=axis, keepdims=True))
            y = e / e.sum(axis=axis, keepdims=True)
        elif name == "Sigmoid":
            y = 1 / (1 + np.exp(-y))
        elif name == "LogSoftmax":
            y = y - y.max(axis=axis, keepdims=True)
            y = y - np.log(np.exp(y).sum(axis=axis, keepdims=True))
        elif name == "Relu":
            y = np.maximum(y, 0)
        elif name == "Tanh":
            y = np.tanh(y)
        elif name == "ArgMax":
            y = y.argmax(axis=axis)
    return y.astype(np.int64) if output.labels else y


def run(graph: ir.Graph, floats: list[np.ndarray]) -> list[np.ndarray]:
    """The whole model: float inputs [N, ...] to float outputs [N, ...]."""
    values = execute(graph, quantize(graph, floats))
    return [dequantize(o, values[o.tensor]) for o in graph.outputs]


def measure_range(op: ir.Op, inputs: list[ir.Tensor]) -> tuple[int, int]:
    """Bounds of an operation's result over every possible input, the exact ones where weights are known."""
    x = inputs[0]
    low, high = min(x.low, 0), max(x.high, 0)  # padding brings zeros in
    match op:
        case ir.Conv():
            w = op.weight.reshape(len(op.weight), -1).astype(np.int64)
            if not any(op.window.pads) and not op.bound:
                low, high = x.low, x.high
            up, down = np.maximum(w, 0).sum(1), np.minimum(w, 0).sum(1)
            return int((up * low + down * high).min()), int((up * high + down * low).max())
        case ir.Pool(kind="sum"):
            return low * op.window.size if any(op.window.pads) else x.low * op.window.size, high * op.window.size
        case ir.GlobalPool(kind="sum"):
            return x.low * x.pixels, x.high * x.pixels
        case ir.Thresholds():
            return op.low, op.low + op.thresholds.shape[1]
        case ir.Scale() | ir.Add():
            return op.low, op.high
        case ir.Table():
            return int(op.table.min()), int(op.table.max())
        case ir.TopK():
            return 0, x.channels - 1
        case ir.Concat():
            return min(t.low for t in inputs), max(t.high for t in inputs)
    return x.low, x.high


def result(op: ir.Op, inputs: list[ir.Tensor]) -> ir.Tensor:
    """Shape and range of an operation's result."""
    h, w, c = inputs[0].shape
    match op:
        case ir.Conv():
            h, w = (h, w) if op.bound else op.window.output(h, w)
            c = len(op.weight)
        case ir.Pool():
            h, w = op.window.output(h, w)
        case ir.GlobalPool():
            h, w = 1, 1
        case ir.Concat():
            c = sum(t.channels for t in inputs)
        case ir.TopK():
            c = op.k
        case ir.Gather():
            c = len(op.index)
        case ir.Upsample():
            h, w = h * op.factor[0], w * op.factor[1]
        case ir.Flatten():
            h, w, c = 1, 1, h * w * c
    return ir.Tensor((h, w, c), *measure_range(op, inputs))
