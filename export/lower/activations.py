"""Activation Quant nodes become QuantizeLinear and DequantizeLinear with uint8 integers.

1. Unsigned: zero point 0. Signed of b bits: zero point 128, the same integers shifted by 128; x86 kernels want u8 activations.
2. Below 8 bits uint8 does not saturate where the grid does: a Clip to the grid's ends comes first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.lower.base import (
    Pass,
    Result,
    array_of,
    constant,
    drop_unused,
    is_weight_quant,
    of_type,
    quant_bits,
    substitute,
)


def _call(model: ir.Model) -> Result:
    graph = model.graph
    changed = False
    zero_points: dict[bool, ir.Value] = {}
    for node in of_type(model, "Quant"):
        scale = array_of(node.inputs[1])
        if is_weight_quant(node) or scale is None or scale.size != 1 or node.inputs[0] is None:
            continue
        bits, signed, narrow = quant_bits(node)
        if signed not in zero_points:
            zero_points[signed] = constant(
                graph, "zero_signed" if signed else "zero_unsigned", np.array(128 if signed else 0, np.uint8)
            )
        step = constant(graph, f"{node.outputs[0].name}_scale", scale.reshape(()).astype(np.float32))
        source: ir.Value = node.inputs[0]
        nodes = []
        if bits < 8 or narrow:
            high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
            low = (-high if narrow else -high - 1) if signed else 0
            ends = [
                constant(graph, f"{node.outputs[0].name}_{n}", np.array(np.float32(v) * np.float32(scale.reshape(()))))
                for n, v in (("low", low), ("high", high))
            ]
            clip = ir.node("Clip", [source, *ends])
            nodes.append(clip)
            source = clip.outputs[0]
        quantize = ir.node("QuantizeLinear", [source, step, zero_points[signed]])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], step, zero_points[signed]])
        for value in (quantize.outputs[0], dequantize.outputs[0]):
            value.shape = node.outputs[0].shape
        quantize.outputs[0].dtype, dequantize.outputs[0].dtype = ir.DataType.UINT8, ir.DataType.FLOAT
        quantize.outputs[0].name = f"{node.outputs[0].name}_u8"
        graph.insert_before(node, [*nodes, quantize, dequantize])
        substitute(node.outputs[0], dequantize.outputs[0])
        changed = True
    drop_unused(model)
    return Result(model, changed)


def _no_quant(model: ir.Model) -> str:
    left = of_type(model, "Quant")
    return f"{len(left)} Quant nodes left, first {left[0].name}" if left else ""


PASS = Pass("activations", _call, ensures=_no_quant)
