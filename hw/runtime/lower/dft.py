"""DFT as products with constant cosines and sines. Runtimes without DFT need it, and ONNX Runtime 1.25 returns a wrong shape for the inverse of a
one-sided spectrum (irfft), silently. Long convolutions by FFT (S4, HorNet) become products of the sequence's length squared.
"""

from __future__ import annotations

import numpy as np
import onnx

from hw.runtime.lower.builder import Builder, attribute


def matrix(length: int, given: int, parts: int, inverse: bool, onesided: bool) -> np.ndarray:
    """[given * parts, bins * out parts]: the linear map from `given` samples (real, or real and imaginary) to the transform of `length`.

    Inverse and one-sided: `given` bins of a real signal's spectrum to its `length` real samples.
    """
    if inverse and onesided:
        k, t = np.arange(given)[:, None], np.arange(length)[None, :]
        weight = np.where((k == 0) | ((length % 2 == 0) & (k == length // 2)), 1.0, 2.0)
        angle = 2 * np.pi * k * t / length
        out = np.stack([weight * np.cos(angle), -weight * np.sin(angle)], 1) / length
        return out[:, :parts].reshape(given * parts, length)
    bins = length // 2 + 1 if onesided else length
    used = min(given, length)
    n, k = np.arange(used)[:, None], np.arange(bins)[None, :]
    angle = (2 if inverse else -2) * np.pi * n * k / length
    cos, sin = np.cos(angle) / (length if inverse else 1), np.sin(angle) / (length if inverse else 1)
    rows = [np.stack([cos, sin], -1)]
    if parts == 2:
        rows.append(np.stack([-sin, cos], -1))
    out = np.zeros((given, parts, bins, 2))
    out[:used] = np.stack(rows, 1)
    return out.reshape(given * parts, bins * 2)


def _dft(b: Builder, node: onnx.NodeProto) -> bool:
    shape = b.shape(node, node.input[0])
    if b.opset >= 20:
        axis = int(b.needed(node, 2).reshape(-1)[0]) if len(node.input) > 2 and node.input[2] else -2
    else:
        axis = attribute(node, "axis", 1)
    axis %= len(shape)
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    given, parts = shape[axis], shape[-1]
    length = given if not (inverse and onesided) else 2 * (given - 1)
    if len(node.input) > 1 and node.input[1]:
        length = int(b.needed(node, 1).reshape(-1)[0])
    weights = matrix(length, given, parts, inverse, onesided).astype(np.float32)
    order = [a for a in range(len(shape)) if a not in (axis, len(shape) - 1)]
    back = [*order, axis, len(shape) - 1]
    moved = b.transpose(node.input[0], back)
    lead = [shape[a] for a in order]
    flat = b.reshape(moved, (*lead, given * parts))
    product = b.add("MatMul", [flat, b.constant(weights)])
    out_parts = 1 if inverse and onesided else 2
    wide = b.reshape(product, (*lead, weights.shape[1] // out_parts, out_parts))
    b.transpose(wide, [int(i) for i in np.argsort(back)], node.output[0])
    return True


def wrong_in_ort(node: onnx.NodeProto) -> bool:
    """The form that ONNX Runtime computes wrongly."""
    return node.op_type == "DFT" and bool(attribute(node, "inverse", 0)) and bool(attribute(node, "onesided", 0))


OPS = {"DFT": _dft}
