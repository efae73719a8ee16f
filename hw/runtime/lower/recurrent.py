"""LSTM and GRU, written out step by step (ONNX operator specification, LSTM-14 and GRU-14): the input's products for all steps at once, then one product
and the gates per step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from deploy.errors import ToolError
from hw.runtime.lower.builder import Builder, attribute

Step = Callable[[str, str, str], tuple[str, str]]


def _input(node: onnx.NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _covered(node: onnx.NodeProto) -> None:
    """Raises ToolError for the forms that are not written out."""
    for what in ("activations", "activation_alpha", "clip"):
        if attribute(node, what) is not None and what != "activations":
            raise ToolError(f"the {node.op_type} node {node.name!r} uses {what!r}, which this runtime cannot run")
    named = attribute(node, "activations")
    usual = [b"Sigmoid", b"Tanh"] + ([b"Tanh"] if node.op_type == "LSTM" else [])
    if named is not None and [x if isinstance(x, bytes) else x.encode() for x in named] != usual * (
        len(named) // len(usual)
    ):
        raise ToolError(f"the {node.op_type} node {node.name!r} has other activations than sigmoid and tanh")
    if _input(node, 4) or _input(node, 7) or attribute(node, "layout", 0) or attribute(node, "input_forget", 0):
        raise ToolError(f"the {node.op_type} node {node.name!r} uses sequence lengths, peepholes or batch-first layout")


def _recurrent(
    b: Builder, node: onnx.NodeProto, gates: int, make: Callable[[Builder, onnx.NodeProto, int, int], Step]
) -> bool:
    _covered(node)
    steps, batch, _ = b.shape(node, node.input[0])
    w = b.needed(node, 1)
    bias = b.needed(node, 3) if _input(node, 3) else np.zeros((w.shape[0], 2 * w.shape[1]), w.dtype)
    hidden = w.shape[1] // gates
    direction = attribute(node, "direction", "forward")
    ways = [True] if direction == "reverse" else [False, True][: w.shape[0]]
    sequences, last_h, last_c = [], [], []
    for d, backward in enumerate(ways):
        wide = b.add("MatMul", [node.input[0], b.constant(np.ascontiguousarray(w[d].T))])
        before = bias[d, : gates * hidden].copy()
        after = bias[d, gates * hidden :]
        if gates == 4:  # both biases of an LSTM meet in one sum
            before = before + after
        wide = b.add("Add", [wide, b.constant(before)])
        zero = b.constant(np.zeros((batch, hidden), np.float32))
        h = _initial(b, _input(node, 5), d, (batch, hidden)) or zero
        c = (_initial(b, _input(node, 6), d, (batch, hidden)) or zero) if gates == 4 else ""
        step = make(b, node, d, hidden)
        rows: list[str] = [""] * steps
        for t in range(steps)[:: -1 if backward else 1]:
            x = b.reshape(b.slice(wide, 0, t, t + 1), (batch, gates * hidden))
            h, c = step(x, h, c)
            rows[t] = b.reshape(h, (1, 1, batch, hidden))
        sequences.append(b.add("Concat", rows, axis=0) if steps > 1 else rows[0])
        last_h.append(b.reshape(h, (1, batch, hidden)))
        last_c.append(b.reshape(c, (1, batch, hidden)) if c else "")
    for name, parts, axis in zip(node.output, (sequences, last_h, last_c), (1, 0, 0), strict=False):
        if name and len(parts) > 1:
            b.add("Concat", parts, name, axis=axis)
        elif name:
            b.add("Identity", parts, name)
    return True


def _initial(b: Builder, name: str, d: int, shape: tuple[int, int]) -> str:
    return b.reshape(b.slice(name, 0, d, d + 1), shape) if name else ""


def _lstm(b: Builder, node: onnx.NodeProto, d: int, hidden: int) -> Step:
    r = b.constant(np.ascontiguousarray(b.needed(node, 2)[d].T))

    def step(x: str, h: str, c: str) -> tuple[str, str]:
        total = b.add("Add", [x, b.add("MatMul", [h, r])])
        i, o, f, g = (b.slice(total, 1, k * hidden, (k + 1) * hidden) for k in range(4))
        i, o, f = (b.add("Sigmoid", [v]) for v in (i, o, f))
        c = b.add("Add", [b.add("Mul", [f, c]), b.add("Mul", [i, b.add("Tanh", [g])])])
        return b.add("Mul", [o, b.add("Tanh", [c])]), c

    return step


def _gru(b: Builder, node: onnx.NodeProto, d: int, hidden: int) -> Step:
    weights = b.needed(node, 2)[d]
    bias = b.needed(node, 3)[d, 3 * hidden :] if _input(node, 3) else np.zeros(3 * hidden, np.float32)
    linear = bool(attribute(node, "linear_before_reset", 0))
    gates = b.constant(np.ascontiguousarray(weights[: 2 * hidden].T))
    new = b.constant(np.ascontiguousarray(weights[2 * hidden :].T))
    gate_bias, new_bias = b.constant(bias[: 2 * hidden]), b.constant(bias[2 * hidden :])
    one = b.constant(np.float32(1))

    def step(x: str, h: str, _: str) -> tuple[str, str]:
        x_gates, x_new = b.slice(x, 1, 0, 2 * hidden), b.slice(x, 1, 2 * hidden, 3 * hidden)
        both = b.add("Sigmoid", [b.add("Add", [b.add("Add", [x_gates, b.add("MatMul", [h, gates])]), gate_bias])])
        z, r = b.slice(both, 1, 0, hidden), b.slice(both, 1, hidden, 2 * hidden)
        if linear:
            inner = b.add("Mul", [r, b.add("Add", [b.add("MatMul", [h, new]), new_bias])])
        else:
            inner = b.add("Add", [b.add("MatMul", [b.add("Mul", [r, h]), new]), new_bias])
        n = b.add("Tanh", [b.add("Add", [x_new, inner])])
        return b.add("Add", [b.add("Mul", [b.add("Sub", [one, z]), n]), b.add("Mul", [z, h])]), ""

    return step


OPS = {
    "LSTM": lambda b, node: _recurrent(b, node, 4, _lstm),
    "GRU": lambda b, node: _recurrent(b, node, 3, _gru),
}
