"""Linear layers with quantized weights and float activations measure the activation's range at run time.

1. MatMul(x, W) and Gemm(x, W, b) with a dequantized constant W [K, N] and x not on a grid become
   DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(x scale * W scale) [-> Add b], the order that ONNX Runtime fuses to one
   kernel.
2. Only ranks and layouts that this form covers (no transA, alpha = beta = 1) are taken.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.lower.base import Pass, Result, attribute, constant, drop_unused, of_type, substitute
from export.lower.bias import grid_scale, weight_scale


def _plain_gemm(node: ir.Node) -> bool:
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    return not attribute(node, "transA", 0) and not attribute(node, "transB", 0) and alpha == 1.0 and beta == 1.0


def _call(model: ir.Model) -> Result:
    graph = model.graph
    changed = False
    quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for node in of_type(model, "MatMul", "Gemm"):
        scale = weight_scale(node.inputs[1])
        if (
            scale is None
            or grid_scale(node.inputs[0]) is not None
            or (node.op_type == "Gemm" and not _plain_gemm(node))
        ):
            continue
        dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
        axis = attribute(dequantize, "axis", 1) if scale.size > 1 else None
        if axis not in (None, 1, -1) or node.inputs[0] is None:
            continue
        x = node.inputs[0]
        nodes: list[ir.Node] = []
        if x not in quantized:
            dynamic = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            producer = x.producer()
            if producer is None:
                graph.insert_before(graph[0], dynamic)
            else:
                graph.insert_after(producer, dynamic)
            quantized[x] = (dynamic.outputs[0], dynamic.outputs[1], dynamic.outputs[2])
        xq, xs, xz = quantized[x]
        product = ir.node("MatMulInteger", [xq, dequantize.inputs[0], xz], name=node.name)  # type: ignore[union-attr]
        cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        name = node.inputs[1].name or "weight"  # type: ignore[union-attr]
        step = ir.node("Mul", [xs, constant(graph, f"{name}_step", scale.reshape(-1).astype(np.float32))])
        result = ir.node("Mul", [cast.outputs[0], step.outputs[0]])
        nodes += [product, cast, step, result]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [result.outputs[0], node.inputs[2]]))
        out = nodes[-1].outputs[0]
        out.dtype = ir.DataType.FLOAT
        graph.insert_before(node, nodes)
        substitute(node.outputs[0], out)
        changed = True
    drop_unused(model)
    return Result(model, changed)


PASS = Pass("dynamic", _call)
