"""Quantized operators of the older form (QLinearConv, QLinearMatMul, ConvInteger) as the same arithmetic between QuantizeLinear and DequantizeLinear, and
MatMulNBits (com.microsoft) as a product with dequantized weights."""

from __future__ import annotations

import numpy as np
import onnx

from hw.runtime.lower.builder import Builder, attribute

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _dequantize(b: Builder, x: str, scale: str, zero: str, axis: int | None = None) -> str:
    array = b.array(scale)
    wide = axis is not None and array is not None and array.size > 1
    if array is not None and array.ndim == 1 and array.size == 1:
        scale = b.constant(array.reshape(()))
        found = b.array(zero)
        zero = b.constant(found.reshape(())) if found is not None else zero
    elif wide:
        found = b.array(zero)
        if found is not None and found.size == 1 and array is not None:
            zero = b.constant(np.broadcast_to(found.reshape(()), array.shape).copy())
    if wide:
        return b.add("DequantizeLinear", [x, scale, zero], axis=axis)
    return b.add("DequantizeLinear", [x, scale, zero])


def _qlinear_conv(b: Builder, node: onnx.NodeProto) -> bool:
    x, xs, xz, w, ws, wz, ys, yz, *bias = node.input
    inputs = [_dequantize(b, x, xs, xz), _dequantize(b, w, ws, wz, 0)]
    if bias and bias[0]:
        scale = (
            b.needed(node, 1).reshape(-1).astype(np.float32) * b.needed(node, 4).reshape(-1).astype(np.float32)
        ).astype(np.float32)
        values = b.needed(node, 8)
        scale = np.broadcast_to(scale, values.shape).copy()
        inputs.append(
            b.add(
                "DequantizeLinear", [bias[0], b.constant(scale), b.constant(np.zeros(values.shape, np.int32))], axis=0
            )
        )
    out = b.add("Conv", inputs, **{k: v for k in _CONV if (v := attribute(node, k)) is not None})
    b.add("QuantizeLinear", [out, ys, yz], node.output[0])
    return True


def _qlinear_matmul(b: Builder, node: onnx.NodeProto) -> bool:
    a, a_scale, az, w, ws, wz, ys, yz = node.input
    left = _dequantize(b, a, a_scale, az)
    right = _dequantize(b, w, ws, wz, -1 % max(len(b.shape(node, w)), 1))
    b.add("QuantizeLinear", [b.add("MatMul", [left, right]), ys, yz], node.output[0])
    return True


def _conv_integer(b: Builder, node: onnx.NodeProto) -> bool:
    """Sums of integers: in float32 they are exact below 2^24, which the products of one sum must not pass."""
    weight = b.needed(node, 1)
    if int(np.prod(weight.shape[1:])) * 255 * 255 >= 1 << 24:
        return False
    one = b.constant(np.float32(1))
    rows = []
    for index in (0, 1):
        zero = node.input[2 + index] if len(node.input) > 2 + index else ""
        value = b.add("Cast", [node.input[index]], to=onnx.TensorProto.FLOAT)
        if zero:
            array = b.array(zero)
            if index and array is not None and array.size > 1:
                zero = b.constant(array.reshape(-1, *[1] * (weight.ndim - 1)))
            shift = b.add("Cast", [zero], to=onnx.TensorProto.FLOAT)
            value = b.add("Sub", [value, shift])
        rows.append(value)
    out = b.add("Conv", rows, **{k: v for k in _CONV if (v := attribute(node, k)) is not None})
    b.add("Cast", [b.add("Round", [b.add("Mul", [out, one])])], node.output[0], to=onnx.TensorProto.INT32)
    return True


def unpack(packed: np.ndarray, bits: int, rows: int, columns: int) -> np.ndarray:
    """MatMulNBits weights [N, blocks, bytes] -> integers [N, K] (the first value in the low bits)."""
    flat = packed.reshape(rows, -1)
    if bits == 8:
        return flat[:, :columns].astype(np.int16)
    per = 8 // bits
    shifts = np.arange(per, dtype=np.uint8) * bits
    return ((flat[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(rows, -1)[:, :columns].astype(np.int16)


def _matmul_nbits(b: Builder, node: onnx.NodeProto) -> bool:
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 32)
    k, n = attribute(node, "K"), attribute(node, "N")
    blocks = -(-k // block)
    if bits not in (2, 4, 8):
        return False
    weight = unpack(b.needed(node, 1), bits, n, blocks * block)
    scale = b.needed(node, 2).reshape(n, blocks).astype(np.float32)
    zero = np.full((n, blocks), 1 << (bits - 1), np.int16)
    if len(node.input) > 3 and node.input[3]:
        stored = b.needed(node, 3)
        zero = unpack(stored, bits, n, blocks) if stored.dtype == np.uint8 else stored.reshape(n, blocks)
    group = np.arange(blocks * block) // block
    if len(node.input) > 4 and node.input[4]:
        group[:k] = b.needed(node, 4)
    full = (weight - zero[:, group]).astype(np.float32) * scale[:, group]
    out = node.output[0]
    bias = node.input[5] if len(node.input) > 5 else ""
    product = b.add("MatMul", [node.input[0], b.constant(np.ascontiguousarray(full[:, :k].T))], "" if bias else out)
    if bias:
        b.add("Add", [product, bias], out)
    return True


OPS = {
    "QLinearConv": _qlinear_conv, "QLinearMatMul": _qlinear_matmul, "ConvInteger": _conv_integer, "MatMulNBits": _matmul_nbits,
}  # fmt: skip
