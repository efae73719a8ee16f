"""Quantized weights of layers that run in float are stored small and expanded once.

1. Gather(DequantizeLinear(W), index) reads integer rows and scales only those: the table stays integer in memory.
2. Any other dequantized constant whose user's activation is float becomes Cast -> Mul, which a runtime folds at load; it never folds
   DequantizeLinear of a constant, and would expand the weight again in every run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.lower.base import Pass, Result, array_of, attribute, constant, drop_unused, substitute
from export.lower.bias import grid_scale, weight_scale

_INTEGER_LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")


def _gather(graph: ir.Graph, node: ir.Node, dequantize: ir.Node, scale: np.ndarray) -> bool:
    if attribute(node, "axis", 0) != 0 or (scale.size > 1 and attribute(dequantize, "axis", 1) != 0):
        return False
    rows = ir.node("Gather", [dequantize.inputs[0], node.inputs[1]], {"axis": 0})
    cast = ir.node("Cast", [rows.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    nodes = [rows, cast]
    if scale.size > 1:
        table = constant(graph, f"{dequantize.outputs[0].name}_rows", scale.reshape(-1, 1).astype(np.float32))
        step = ir.node("Gather", [table, node.inputs[1]], {"axis": 0})
        nodes.append(step)
        factor = step.outputs[0]
    else:
        factor = dequantize.inputs[1]  # type: ignore[assignment]
    product = ir.node("Mul", [cast.outputs[0], factor])
    nodes.append(product)
    product.outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_before(node, nodes)
    substitute(node.outputs[0], product.outputs[0])
    return True


def _call(model: ir.Model) -> Result:
    graph = model.graph
    changed = False
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            scale = weight_scale(value)
            if value is None or scale is None or array_of(value) is not None:
                continue
            dequantize = value.producer()
            if dequantize is None or np.dtype(_element(dequantize)) == np.int32:
                continue
            if node.op_type == "Gather" and index == 0 and _gather(graph, node, dequantize, scale):
                changed = True
                break
            if node.op_type in _INTEGER_LAYERS and index == 1 and grid_scale(node.inputs[0]) is not None:
                continue
            node.replace_input_with(index, _expanded(graph, node, dequantize, scale))
            changed = True
    drop_unused(model)
    return Result(model, changed)


def _element(dequantize: ir.Node) -> type:
    source = array_of(dequantize.inputs[0])
    return np.int32 if source is not None and source.dtype == np.int32 else np.int8


def _expanded(graph: ir.Graph, before: ir.Node, dequantize: ir.Node, scale: np.ndarray) -> ir.Value:
    shape = [1]
    if scale.size > 1:
        axis = attribute(dequantize, "axis", 1)
        rank = len(_shape(dequantize))
        shape = [scale.size if i == axis else 1 for i in range(rank)]
    cast = ir.node("Cast", [dequantize.inputs[0]], {"to": int(ir.DataType.FLOAT)})
    step = constant(graph, f"{dequantize.outputs[0].name}_step", scale.reshape(shape).astype(np.float32))
    product = ir.node("Mul", [cast.outputs[0], step])
    graph.insert_before(before, [cast, product])
    return product.outputs[0]


def _shape(dequantize: ir.Node) -> tuple[int, ...]:
    value = dequantize.inputs[0]
    while value is not None and value.const_value is None:
        producer = value.producer()
        value = producer.inputs[0] if producer is not None else None
    return tuple(int(n) for n in value.const_value.shape) if value is not None and value.const_value is not None else ()


PASS = Pass("floats", _call)
