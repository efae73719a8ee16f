"""The ONNX operator deploy.SquareSample, version 1: what hardware builds its deformable window from (compress/deform.py).

SquareSample(X [N, C, H, W], D [N, 1, H, W], kernel k) -> Y [N, C, k H, k W]: the k x k block of place (y, x) holds
X[y + d t_y, x + d t_x] for t in {-(k/2)..k/2}^2 and d = D[y, x], 0 outside. D holds integers. A convolution of kernel and stride
k after it is a deformable convolution. It stands in QONNX files only; runtimes get plain operators (export/lower/deform.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import defs
from onnxscript.values import Opset
from qonnx.custom_op.base import CustomOp
from qonnx.custom_op.registry import add_domain_alias

from compress.deform import template

DOMAIN, VERSION, NAME = "deploy", 1, "SquareSample"


def blocks(x: np.ndarray, distance: np.ndarray, kernel: int) -> np.ndarray:
    """The operator in NumPy: x [N, C, H, W], distance [N, 1, H, W] of integers -> [N, C, kernel H, kernel W]."""
    n, c, h, w = x.shape
    d = distance[:, 0].astype(np.int64)
    out = np.zeros((n, c, h, kernel, w, kernel), x.dtype)
    sample, y, xs = np.meshgrid(np.arange(n), np.arange(h), np.arange(w), indexing="ij")
    for k, (ty, tx) in enumerate(template(kernel).tolist()):
        row, col = y + d * ty, xs + d * tx
        inside = (row >= 0) & (row < h) & (col >= 0) & (col < w)
        values = x[sample, :, row.clip(0, h - 1), col.clip(0, w - 1)] * inside[..., None].astype(x.dtype)
        out[:, :, :, k // kernel, :, k % kernel] = values.transpose(0, 3, 1, 2)
    return out.reshape(n, c, h * kernel, w * kernel)


def _schema() -> defs.OpSchema:
    parameter = defs.OpSchema.FormalParameter
    return defs.OpSchema(
        NAME, DOMAIN, VERSION, "Blocks of values at a distance that varies from place to place.",
        inputs=[parameter("X", "T"), parameter("D", "T")],
        outputs=[parameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(uint8)", "tensor(int8)"], "floats or 8-bit integers")],
        attributes=[defs.OpSchema.Attribute("kernel", defs.OpSchema.AttrType.INT)],
    )  # fmt: skip


if not defs.has(NAME, DOMAIN):
    defs.register_schema(_schema())
add_domain_alias(DOMAIN, __name__)
_OPSET = Opset(DOMAIN, VERSION)


def _translate(x: Any, distance: Any, kernel: int) -> Any:
    return _OPSET.SquareSample(x, distance, kernel=kernel)


TRANSLATION = {torch.ops.deploy.square_sample.default: _translate}  # for torch.onnx.export


class SquareSample(CustomOp):  # type: ignore[misc]
    """The operator for the qonnx package, which runs the reference."""

    def get_nodeattr_types(self) -> dict[str, tuple[str, bool, int]]:
        return {"kernel": ("i", True, 3)}

    def make_shape_compatible_op(self, model: Any) -> onnx.NodeProto:
        n, c, h, w = model.get_tensor_shape(self.onnx_node.input[0])
        k = self.get_nodeattr("kernel")
        return self.make_const_shape_op([n, c, h * k, w * k])

    def infer_node_datatype(self, model: Any) -> None:
        model.set_tensor_datatype(self.onnx_node.output[0], model.get_tensor_datatype(self.onnx_node.input[0]))

    def execute_node(self, context: dict[str, np.ndarray], graph: Any) -> None:
        x, distance = (context[name] for name in self.onnx_node.input)
        context[self.onnx_node.output[0]] = blocks(x, distance, self.get_nodeattr("kernel"))

    def verify_node(self) -> list[str]:
        return []
