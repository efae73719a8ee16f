"""Biases of integer layers become int32 in the unit of the accumulator (input scale times weight scale).

Where the input of Conv or Gemm lies on a known grid and the weight is dequantized, bias = DequantizeLinear(int32, scales).
The compressed model's biases are multiples of that unit already, so nothing is lost.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.lower.base import Pass, Result, array_of, constant, drop_unused, of_type

KEEPS = {
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Identity",
    "DequantizeLinear",
    "Relu",
    "Split",
    "Gather",
    "Resize",
    "DepthToSpace",
    "SpaceToDepth",
}


def grid_scale(value: ir.Value | None) -> float | None:
    """The scale of the activation grid that a value lies on, found back through operators that keep it."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in KEEPS:
            return None
        if node.op_type == "Resize" and (
            "mode" not in node.attributes or node.attributes["mode"].as_string() != "nearest"
        ):
            return None
        if node.op_type == "DequantizeLinear":
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            scale = array_of(node.inputs[1])
            return (
                float(scale.reshape(-1)[0])
                if source is not None and source.op_type == "QuantizeLinear" and scale is not None
                else None
            )
        value = node.inputs[0]
    return None


def weight_scale(value: ir.Value | None) -> np.ndarray | None:
    """Per-channel or scalar scale of a dequantized constant."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is not None and source.op_type == "QuantizeLinear":
        return None
    return array_of(node.inputs[1])


def _call(model: ir.Model) -> Result:
    changed = False
    for node in of_type(model, "Conv", "Gemm", "ConvTranspose"):
        if len(node.inputs) < 3:
            continue
        bias, scale, step = array_of(node.inputs[2]), weight_scale(node.inputs[1]), grid_scale(node.inputs[0])
        if bias is None or scale is None or step is None:
            continue
        unit = np.float32(step) * scale.reshape(-1).astype(np.float32)
        if unit.size not in (1, bias.size):
            unit = np.tile(unit, bias.size // unit.size)
        steps = np.round(bias.astype(np.float64).reshape(-1) / unit.astype(np.float64))
        if np.abs(steps).max(initial=0) >= 2**31:
            continue
        name = node.inputs[2].name or "bias"  # type: ignore[union-attr]
        stored = constant(model.graph, f"{name}_int32", steps.astype(np.int32))
        unit_value = constant(model.graph, f"{name}_unit", unit.reshape(()) if unit.size == 1 else unit)
        dequantize = ir.node("DequantizeLinear", [stored, unit_value], None if unit.size == 1 else {"axis": 0})
        model.graph.insert_before(node, dequantize)
        node.replace_input_with(2, dequantize.outputs[0])
        changed = True
    drop_unused(model)
    return Result(model, changed)


PASS = Pass("bias", _call)
