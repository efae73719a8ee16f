"""Relu and Clip before QuantizeLinear go, where the saturation of uint8 already does what they do.

1. Relu, when the zero point is 0.
2. Clip(0, high), when the zero point is 0 and high is at least the largest value of the grid.
Only where the quantizer is the sole user: runtimes fuse Conv -> QuantizeLinear, and not with a Clip in between.
"""

from __future__ import annotations

import onnx_ir as ir

from export.lower.base import Pass, Result, array_of, drop_unused, of_type


def _absorbed(node: ir.Node, quantize: ir.Node) -> bool:
    zero, scale = array_of(quantize.inputs[2]), array_of(quantize.inputs[1])
    if zero is None or scale is None or int(zero.reshape(-1)[0]) != 0:
        return False
    if node.op_type == "Relu":
        return True
    low = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    high = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    low_ok = low is None or float(low.reshape(-1)[0]) <= 0
    # the last step may round up to 255: half a step of slack is still saturated
    high_ok = high is None or float(high.reshape(-1)[0]) >= float(scale.reshape(-1)[0]) * 254.5
    return low_ok and high_ok


def _call(model: ir.Model) -> Result:
    changed = False
    for quantize in of_type(model, "QuantizeLinear"):
        while True:
            source = quantize.inputs[0]
            node = source.producer() if source is not None else None
            if (
                source is None
                or node is None
                or node.op_type not in ("Relu", "Clip")
                or len(source.uses()) != 1
                or source.is_graph_output()
                or not _absorbed(node, quantize)
            ):
                break
            quantize.replace_input_with(0, node.inputs[0])
            changed = True
    drop_unused(model)
    return Result(model, changed)


PASS = Pass("absorb", _call)
