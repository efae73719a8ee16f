"""The whole lowering from QONNX to the runtime's QDQ file, as a list of passes."""

from __future__ import annotations

import onnx_ir as ir

from export.lower import absorb, activations, bias, deform, dynamic, floats, weights
from export.lower.base import QUANT_DOMAIN, PassError, Report, run

OPSET = 21
_CHANGED_IN_21 = ("GroupNormalization",)


def to_qdq(model: ir.Model, dynamic_linear: bool = True) -> tuple[ir.Model, Report]:
    """Lower a QONNX graph in place to standard ONNX, opset 21 (4-bit integers);
    with dynamic_linear, linear layers with float inputs measure their ranges at run time. Raises PassError on a graph it cannot carry over."""
    if model.opset_imports.get("", 0) < OPSET:
        bad = [n.op_type for n in model.graph if n.op_type in _CHANGED_IN_21]
        if bad:
            raise PassError(f"{bad[0]} means something else from opset 21 on")
        model.opset_imports[""] = OPSET
    linear = [dynamic.PASS] if dynamic_linear else []
    model, report = run(
        model, [weights.PASS, activations.PASS, absorb.PASS, deform.PASS, bias.PASS, *linear, floats.PASS]
    )
    model.opset_imports.pop(QUANT_DOMAIN, None)
    model.ir_version = 10
    return model, report
