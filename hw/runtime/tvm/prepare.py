"""The file as the importer wants it: constants folded, 4-bit weights widened, every shape known."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from deploy.errors import ToolError
from hw.runtime.lower import lower
from hw.runtime.ort import FAILURES


def widen_int4(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which 4-bit initializers (INT4, UINT4), behind a Cast or not, are 8-bit ones of the same values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wide = {onnx.TensorProto.INT4: np.int8, onnx.TensorProto.UINT4: np.uint8}
    small = {i.name: i for i in copy.graph.initializer if i.data_type in wide}
    if not small:
        return copy
    for tensor in small.values():
        values = numpy_helper.to_array(tensor).astype(wide[tensor.data_type])
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    renamed: dict[str, str] = {}
    for node in list(copy.graph.node):
        if node.op_type == "Cast" and node.input[0] in small:
            to = next(a.i for a in node.attribute if a.name == "to")
            if to == small[node.input[0]].data_type:
                renamed[node.output[0]] = node.input[0]
                copy.graph.node.remove(node)
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
    return copy


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants folded and functions written out by ONNX Runtime's basic optimisation."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(out)
        options.log_severity_level = 3
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantSharing", "MatMulAddFusion", "ReluClipFusion"],
            )  # fmt: skip
        except FAILURES as error:
            if out.is_file():
                raise ToolError(f"ONNX Runtime could not fold the model's constants: {str(error)[:200]}") from error
            return model
        return onnx.load(out)


LACKING = ("LSTM", "GRU", "DFT", "DeformConv", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulNBits")


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantized files are not folded: ONNX Runtime would turn integer weights into floats. The importer folds what it needs."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    model = lower(widen_int4(model), LACKING)
    quantized = any(n.op_type in ("DequantizeLinear", "DynamicQuantizeLinear") for n in model.graph.node)
    return model if quantized else fold(model)
