"""QuantizeLinear and DequantizeLinear, and the operators that stay in integers between them.

DequantizeLinear only notes what the integers stand for. A convolution or product of noted integers sums them exactly, and where one QuantizeLinear
reads the result, the sum is scaled once, as ONNX Runtime's integer kernels do: round(sum * (x scale * weight scale / y scale)) + zero point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from hw.runtime.tvm.ops.conv import back, geometry, image
from hw.runtime.tvm.rules import amx, depthwise, dot, qconv, qmatmul
from hw.runtime.tvm.value import NHWC, Quantized, Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node

EXACT = 1 << 24  # integers that float32 holds exactly


def _limits(kind: str) -> tuple[int, int]:
    info = np.iinfo(kind)
    return int(info.min), int(info.max)


MAGIC = 3 << 22  # added to a float32 of at most 2^22, it leaves its nearest integer (halves to even) in the low bits
BITS = int(np.float32(MAGIC).view(np.int32))


def rounded(value: Any, kind: str, zero: Any, reach: tuple[Any, Any]) -> Any:
    """clip(round(value) + zero) as an integer of `kind`; reach: the least and largest value + 0 that zero leaves room for, in float32.

    Clipped before it is rounded (the bounds are integers, so that is the same), then rounded by one addition.
    """
    from tvm import te, tirx

    held = te.max(te.min(value, reach[1]), reach[0]) + tirx.const(float(MAGIC), "float32")
    return (tirx.op.reinterpret("int32", held) + (zero - BITS)).astype(kind)


TINY = 1e-30  # below it a step's reciprocal may be infinite


def quotient(value: Any, step: Any, fma: bool) -> Any:
    """value / step as IEEE rounds it, by the step's reciprocal and one correction (Markstein 1990): a vector division takes as long as ten products.
    Quotients beyond 2^22 are cut off there. The step's reciprocal must be finite."""
    from tvm import te, tirx

    if not fma:
        return value / step
    inverse = tirx.const(1.0, "float32") / step
    reach = tirx.const(float(MAGIC // 3), "float32")  # 2^22: beyond every integer that is wanted, and finite
    near = te.max(te.min(value * inverse, reach), tirx.const(-1.0, "float32") * reach)
    return tirx.op.fma(tirx.op.fma(near * tirx.const(-1.0, "float32"), step, value), inverse, near)


def round_kernel(kind: str, scale: float, zero: int, divide: bool, fma: bool = False) -> Any:
    """x -> clip(round(x / scale) + zero), halves to even; times `scale` where it is a factor."""
    from tvm import te, tirx

    low, high = _limits(kind)
    reach = tirx.const(low - zero, "float32"), tirx.const(high - zero, "float32")

    def build(x: Any) -> Any:
        step = tirx.const(scale, "float32")

        def one(*i: Any) -> Any:
            if not divide:
                return rounded(x(*i) * step, kind, zero, reach)
            return rounded(quotient(x(*i), step, fma and scale > TINY), kind, zero, reach)

        return te.compute(x.shape, one, "quantize")

    return build


def quantize(g: Graph, node: Node) -> Value | None:
    x, scale, zero = node[0], node.array(1), node.array(2) if len(node.inputs) > 2 else None
    if scale is None or scale.size > 1 or x.constant:
        return None
    offset = 0 if zero is None else int(zero.reshape(-1)[0])
    kind = {0: "uint8", 2: "uint8", 3: "int8"}.get(node.get("output_dtype", 0), "") if zero is None else str(zero.dtype)
    if kind not in ("uint8", "int8"):
        return None
    if (
        x.quantized is not None and x.dtype == kind and x.quantized.scale.size == 1
        and float(x.quantized.scale.reshape(-1)[0]) == float(scale.reshape(-1)[0])
        and int(x.quantized.zero.reshape(-1)[0]) == offset
    ):  # fmt: skip
        return Value(x.data, x.shape, x.perm, x.dtype)  # the same grid again
    x = g.float(x)
    return g.kernel(
        round_kernel(kind, float(scale.reshape(-1)[0]), offset, True, g.machine.fma),
        [x.data],
        x.shape,
        x.perm,
        "quantize",
        pattern=0,
    )


def scaled_on_device(g: Graph, node: Node) -> Value | None:
    """(x - zero) * scale with numbers that are computed (one each)."""
    if node[1].shape not in ((), (1,)):
        return None
    op, x = g.relax.op, node[0]
    number = g.builder.emit(op.astype(g.expr(x), "float32"))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        number = g.builder.emit(op.subtract(number, g.builder.emit(op.astype(g.expr(node[2]), "float32"))))
    return g.emit(op.multiply(number, g.expr(node[1])), x.shape, x.perm)


def dequantize(g: Graph, node: Node) -> Value | None:
    if not node[1].constant:
        return scaled_on_device(g, node)
    x, scale, zero = node[0], node.array(1), node.array(2) if len(node.inputs) > 2 else None
    if scale is None or x.dtype not in ("uint8", "int8", "int32"):
        return None
    block = node.get("block_size", 0)
    if block:
        if not isinstance(x.data, np.ndarray):
            return None
        axis = node.get("axis", 1) % x.data.ndim
        wide = np.repeat(scale, block, axis)[tuple(slice(s) for s in x.shape)]
        shift = 0 if zero is None else np.repeat(zero, block, axis)[tuple(slice(s) for s in x.shape)].astype(np.float32)
        return g.constant((x.data.astype(np.float32) - shift) * wide.astype(np.float32))
    if zero is None:
        zero = np.zeros(scale.shape, x.dtype)
    axis = node.get("axis", 1) % max(len(x.shape), 1) if scale.size > 1 else -1
    return Value(x.data, x.shape, x.perm, x.dtype, Quantized(scale, zero, axis))


def unsigned(g: Graph, x: Value) -> tuple[Value, float, int] | None:
    """Activations as u8 with their scale and zero point; None where they are not per-tensor integers."""
    q = x.quantized
    if q is None or x.constant or q.scale.size > 1 or x.dtype not in ("uint8", "int8"):
        return None
    scale, zero = float(q.scale.reshape(-1)[0]), int(q.zero.reshape(-1)[0])
    if x.dtype == "uint8":
        return x, scale, zero
    from tvm import te

    moved = g.kernel(
        lambda v: te.compute(v.shape, lambda *i: (v(*i).astype("int16") + 128).astype("uint8"), "unsigned"),
        [x.data], x.shape, x.perm, "unsigned", pattern=0,
    )  # fmt: skip
    return (
        Value(moved.data, x.shape, x.perm, "uint8", Quantized(q.scale, np.asarray(zero + 128), -1)),
        scale,
        zero + 128,
    )


def signed_weight(value: Value, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Integer weights with zero point 0 and their scales (one, or one per output, which is on `axis`); None where they are something else."""
    q = value.quantized
    if q is None or not isinstance(value.data, np.ndarray) or value.dtype not in ("int8", "uint8"):
        return None
    if q.scale.size > 1 and q.axis != axis:
        return None
    whole = value.data.transpose(np.argsort(value.perm)).astype(np.int16)
    zero = q.zero.astype(np.int16)
    if zero.size > 1:
        shape = [1] * whole.ndim
        shape[q.axis] = -1
        zero = zero.reshape(shape)
    whole = whole - zero
    if whole.min() < -128 or whole.max() > 127:
        return None
    return np.ascontiguousarray(whole.astype(np.int8)), q.scale.astype(np.float32).reshape(-1)


def next_quantizer(g: Graph, name: str) -> tuple[onnx.NodeProto, float, int, str] | None:
    """The QuantizeLinear that alone reads a tensor, with its scale, zero point and type."""
    user = g.sole_user(name)
    if user is None or user.op_type != "QuantizeLinear":
        return None
    scale, zero = g.values.get(user.input[1]), g.values.get(user.input[2]) if len(user.input) > 2 else None
    if scale is None or zero is None or not scale.constant or not zero.constant or scale.data.size > 1:
        return None
    if zero.dtype not in ("uint8", "int8"):
        return None
    return user, float(scale.data.reshape(-1)[0]), int(zero.data.reshape(-1)[0]), zero.dtype


def finish(g: Graph, node: Node, sums: Value, bias: np.ndarray, scale: np.ndarray, channel: int, rank: int) -> Value:
    """Integer sums [.., C] -> the node's float result, or straight to the integers of the quantizer behind it.

    bias: [C] int32 in units of a sum. scale: [C] or [1]. channel: the axis of C in ONNX's order. rank: axes of the node's result.
    """
    op = g.relax.op
    shape = [1] * len(sums.shape)
    shape[sums.perm.index(channel)] = -1
    total = g.builder.emit(op.add(sums.data, g.const(bias.astype(np.int32).reshape(shape))))
    number = g.builder.emit(op.astype(total, "float32"))
    found = next_quantizer(g, node.proto.output[0])
    if found is None:
        factor = g.const(np.broadcast_to(scale, bias.shape).astype(np.float32).reshape(shape))
        return back(g, g.emit(op.multiply(number, factor), sums.shape, sums.perm), rank)
    user, step, zero, kind = found
    factor = np.broadcast_to(scale / np.float32(step), bias.shape).astype(np.float32).reshape(shape)
    scaled = g.builder.emit(op.multiply(number, g.const(factor)))
    whole = g.kernel(round_kernel(kind, 1.0, zero, False), [scaled], sums.shape, sums.perm, "requantize", pattern=0)
    out = back(g, whole, rank)
    g.values[user.output[0]] = out
    return Value(
        out.data, out.shape, out.perm, out.dtype, Quantized(np.asarray(step, np.float32), np.asarray(zero), -1)
    )


def bias_of(g: Graph, node: Node, unit: np.ndarray, count: int) -> np.ndarray | None:
    """The third input, one number or one per output, in units of a sum; None where it does not come out as integers."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(count, np.int64)
    if not isinstance(value.data, np.ndarray) or value.shape not in ((), (1,), (count,), (1, count)):
        return None
    q = value.quantized
    if (
        q is not None and value.dtype == "int32" and not q.zero.any()
        and np.allclose(q.scale.astype(np.float64), unit, rtol=1e-5, atol=0)
    ):  # fmt: skip
        found = value.data.astype(np.float64)
    else:
        with np.errstate(divide="ignore", over="ignore"):
            found = np.rint(g.float(value).data.astype(np.float64).reshape(-1) / unit)
    if not np.isfinite(found).all() or abs(found).max(initial=0) >= 1 << 31:
        return None
    return np.broadcast_to(found.reshape(-1), (count,)).astype(np.int64)


def planar_pixels(g: Graph, x: Value, border: tuple[int, ...], zero: int) -> Value:
    """An image of few channels as one 32-bit number per pixel."""
    x = g.ordered(x, range(len(x.shape)), keep=True)
    shape = x.shape if len(x.shape) == 4 else (*x.shape[:2], 1, x.shape[2])
    data = x.data if len(x.shape) == 4 else g.builder.emit(g.relax.op.reshape(x.data, shape))
    out = (shape[0], shape[2] + border[0] + border[2], shape[3] + border[1] + border[3])
    return g.kernel(amx.pixels(border, zero), [data], out, range(3), "pixels", pattern=8)


def conv_int(g: Graph, node: Node) -> Value | None:
    """A convolution of integers; None where it must be computed in float."""
    if len(node[0].shape) not in (3, 4):
        return None
    left, right = unsigned(g, node[0]), signed_weight(node[1], 0)
    if left is None or right is None:
        return None
    x, x_scale, zero = left
    w, w_scale = right
    strides, pads, dilations = geometry(node, x, w.shape[2:])
    if w.ndim == 3:
        w = w[:, :, None, :]
    unit = np.float32(x_scale) * w_scale
    bias = bias_of(g, node, unit.astype(np.float64), w.shape[0])
    if bias is None:
        return None
    source, (n, c, height, width) = image(g, x, keep=True)
    kh, kw = w.shape[2:]
    out = (
        n,
        (height + pads[0] + pads[2] - dilations[0] * (kh - 1) - 1) // strides[0] + 1,
        (width + pads[1] + pads[3] - dilations[1] * (kw - 1) - 1) // strides[1] + 1,
        w.shape[0],
    )
    shape = (out[0], out[3], out[1], out[2])
    groups = node.get("group", 1)
    if groups == 1:
        block = amx.block_for(out[1], out[2], c, g.machine, strides, (kh, kw), dilations)
        if block is not None:
            build, packed = amx.compute(out, block, strides, pads, dilations, zero), amx.pack(w, block)
            if block.narrow:
                source = planar_pixels(g, x, amx.border_of(out[1], out[2], block, strides, pads), zero)
        else:
            tile = qconv.tile_for(source.stored, w.shape, out, (strides, pads, dilations), g.machine)
            build = qconv.compute(out, tile, strides, pads, dilations, zero, dot.factor(g.machine))
            packed = qconv.pack(w, tile)
        sums = g.kernel(build, [source.data, packed], shape, NHWC, "qconv")
        bias = bias - zero * w.astype(np.int64).sum((1, 2, 3))
    elif w.shape[1] == 1 and kh * kw * 255 * 128 < EXACT:
        d = depthwise.tile_for(out, g.machine)
        build = depthwise.compute(out, d, strides, pads, dilations, w.shape[0] // c, zero)
        packed = np.ascontiguousarray(w[:, 0].transpose(1, 2, 0)).astype(np.float32)
        exact = g.kernel(build, [source.data, packed], shape, NHWC, "depthwise")
        sums = g.emit(g.relax.op.astype(exact.data, "int32"), shape, NHWC)
        bias = bias - zero * w.astype(np.int64).sum((1, 2, 3))
    else:
        return None
    if abs(bias).max() >= 1 << 31:
        return None
    return finish(g, node, sums, bias, unit, 1, len(x.shape))


def product_of(g: Graph, data: Any, shape: tuple[int, ...], weight: np.ndarray) -> Value:
    """u8 [.., M, K] x s8 [K, N] -> i32 [.., M, N]."""
    out = (*shape[:-1], weight.shape[1])
    block = amx.block_for(shape[-3] if len(shape) > 2 else 1, shape[-2], shape[-1], g.machine)
    if block is not None and len(shape) <= 4:
        build = amx.compute(out, block)
        return g.kernel(build, [data, amx.pack(weight.T[:, :, None, None], block)], out, range(len(out)), "qmatmul")
    tile = qmatmul.tile_for(shape, weight.shape[1], g.machine)
    build = qmatmul.compute(shape, weight.shape[1], tile, dot.factor(g.machine))
    return g.kernel(build, [data, qmatmul.pack(weight, tile)], out, range(len(out)), "qmatmul")


def matmul_int(g: Graph, node: Node) -> Value | None:
    """MatMul or Gemm of quantized activations with constant integer weights."""
    outputs = 0 if node.op == "Gemm" and node.get("transB", 0) else 1
    left, right = unsigned(g, node[0]), signed_weight(node[1], outputs)
    if left is None or right is None or right[0].ndim != 2 or len(node[0].shape) < 2:
        return None
    x, x_scale, zero = left
    w, w_scale = right
    if node.op == "Gemm":
        if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0:
            return None
        w = np.ascontiguousarray(w.T) if node.get("transB", 0) else w
    if w.shape[0] % 4:
        return None
    unit = np.float32(x_scale) * w_scale
    if unit.size not in (1, w.shape[1]):
        return None
    bias = (
        bias_of(g, node, unit.astype(np.float64), w.shape[1]) if node.op == "Gemm" else np.zeros(w.shape[1], np.int64)
    )
    if bias is None:
        return None
    bias = bias - zero * w.astype(np.int64).sum(0)
    if abs(bias).max() >= 1 << 31:
        return None
    x = g.ordered(x, range(len(x.shape)), keep=True)
    sums = product_of(g, x.data, x.shape, w)
    rank = len(sums.shape)
    return finish(g, node, sums, bias, unit, rank - 1, rank)


OPS = {"QuantizeLinear": quantize, "DequantizeLinear": dequantize}
