"""Quantized weights become stored integers.

1. Quant(constant) is evaluated once: integers, scale, axis.
2. A Transpose of it (linear layers) and Gemm's transB are folded into the stored integers, so that the channel axis is the last.
3. Up to 4 bits the integers are an INT4 initializer cast to INT8, which a runtime folds at load: small on disk, int8 kernels at
   run time. Above, an INT8 initializer.
4. DequantizeLinear with the channel axis gives the weight.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from export.lower.base import Pass, Result, array_of, constant, drop_unused, is_weight_quant, of_type, quant_bits


def _channel_axis(scale: np.ndarray, ndim: int) -> int | None:
    if scale.size == 1:
        return None
    full = scale.reshape((1,) * (ndim - scale.ndim) + scale.shape)
    return int(np.argmax(full.shape))


def _call(model: ir.Model) -> Result:
    graph = model.graph
    changed = False
    for node in of_type(model, "Quant"):
        if not is_weight_quant(node):
            continue
        bits, _, narrow = quant_bits(node)
        weight, scale = array_of(node.inputs[0]), array_of(node.inputs[1])
        if weight is None or scale is None:
            continue
        high = (1 << (bits - 1)) - 1
        low = -high if narrow else -high - 1
        values = np.clip(np.round(weight / scale), low, high).astype(np.int8)
        axis = _channel_axis(scale, weight.ndim)
        for use in list(node.outputs[0].uses()):
            user, index, stored, at = use.node, use.idx, values, axis
            target = user
            if user.op_type == "Transpose":
                order = (
                    [int(i) for i in user.attributes["perm"].as_ints()]
                    if "perm" in user.attributes
                    else list(range(values.ndim))[::-1]
                )
                stored, at = values.transpose(order), None if axis is None else order.index(axis)
            elif (
                user.op_type == "Gemm"
                and index == 1
                and user.attributes.get("transB") is not None
                and user.attributes["transB"].as_int()
            ):
                stored, at = values.T, None if axis is None else 1 - axis
                user.attributes["transB"] = ir.AttrInt64("transB", 0)
            name = (node.inputs[0].name or "weight").replace("/", "_") if node.inputs[0] is not None else "weight"
            out = _stored(
                graph, target, np.ascontiguousarray(stored), bits, scale.reshape(-1).astype(np.float32), at, name
            )
            if user.op_type == "Transpose":
                ir.convenience.replace_all_uses_with(user.outputs[0], out)
            else:
                user.replace_input_with(index, out)
        changed = True
    drop_unused(model)
    return Result(model, changed)


def _stored(
    graph: ir.Graph, before: ir.Node, values: np.ndarray, bits: int, scale: np.ndarray, axis: int | None, name: str
) -> ir.Value:
    nodes = []
    if bits <= 4:
        source = constant(graph, f"{name}_int4", values.astype(ml_dtypes.int4), ir.DataType.INT4)
        cast = ir.node("Cast", [source], {"to": int(ir.DataType.INT8)})
        nodes.append(cast)
        source = cast.outputs[0]
    else:
        source = constant(graph, f"{name}_int8", values)
    per_tensor = axis is None
    scale_value = constant(graph, f"{name}_scale", scale.reshape(()) if per_tensor else scale)
    zero = constant(
        graph, f"{name}_zero", np.zeros(() if per_tensor else scale.shape, np.int8)
    )  # ONNX Runtime's QGemm wants it spelled out
    dequantize = ir.node("DequantizeLinear", [source, scale_value, zero], None if per_tensor else {"axis": axis})
    nodes.append(dequantize)
    graph.insert_before(before, nodes)
    return dequantize.outputs[0]


def _no_weight_quant(model: ir.Model) -> str:
    left = [n for n in of_type(model, "Quant") if is_weight_quant(n)]
    return f"{len(left)} quantized weights left, first {left[0].name}" if left else ""


PASS = Pass("weights", _call, ensures=_no_weight_quant)
