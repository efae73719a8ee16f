"""Does the exported file compute what the model computes? Relative errors on outputs that vary, and integer steps.

Float files: max|err| / max|ref| against torch. Quantized files: signal to noise ratio in dB against torch (a rounding tie that
falls the other way moves everything after it, so no maximum is meaningful), and for every activation quantizer the share of its
integers that differ from the QONNX reference, in steps (LSB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from deploy.errors import BoundError
from deploy.inputs import InputSpec, examples

FLOAT_BOUND = 1e-3
SQNR_BOUND = 20.0
REFERENCE_SAMPLES = 2


@dataclass(frozen=True)
class Parity:
    """One comparison; `passed` is against the bound stated beside it."""

    what: str
    against: str
    figure: float
    unit: str
    bound: float
    passed: bool
    samples: int


def session(model: onnx.ModelProto, threads: int = 0) -> ort.InferenceSession:
    """An ONNX Runtime CPU session of a model in memory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feed(names: Sequence[str], values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(names, values, strict=True))


def fresh(specs: Sequence[InputSpec], samples: int, seed: int) -> list[list[np.ndarray]]:
    """Inputs for the checks: each sample has its own seed; every second one is non-negative, like images."""
    rows = []
    for index in range(samples):
        values = examples(specs, seed * 1000 + 17 + index)
        rows.append([np.abs(v) if index % 2 and v.dtype == np.float32 else v for v in values])
    return rows


def varies(outputs: Sequence[np.ndarray]) -> bool:
    """Whether outputs prove anything: finite, not constant within a sample, and different between samples."""
    first = outputs[0]
    finite = all(np.isfinite(o).all() for o in outputs)
    within = any(o.size > 1 and np.ptp(o) > 0 for o in outputs) or first.size == 1
    between = len(outputs) == 1 or any(not np.array_equal(first, o) for o in outputs[1:])
    return bool(finite and within and between)


def relative(outputs: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """max|err| / max|ref| over all samples."""
    top = max(float(np.abs(r).max()) for r in references)
    return max(float(np.abs(o - r).max()) for o, r in zip(outputs, references, strict=True)) / max(top, 1e-30)


def sqnr(outputs: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Signal to noise ratio in dB over all samples, at most 150."""
    signal = sum(float(np.square(r, dtype=np.float64).sum()) for r in references)
    noise = sum(float(np.square(o.astype(np.float64) - r).sum()) for o, r in zip(outputs, references, strict=True))
    return float(min(150.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def compare(what: str, against: str, outputs: Sequence[np.ndarray], references: Sequence[np.ndarray], quantized: bool) -> Parity:
    """Compare two lists of outputs. Raises BoundError when the references prove nothing (constant or not finite)."""
    if not varies(references):
        raise BoundError(f"parity of {what} cannot be shown: the model's output is constant or not finite on random inputs "
                         "(an untrained head initialised with zeros?); export a trained model")
    if quantized:
        figure = sqnr(outputs, references)
        return Parity(what, against, figure, "dB", SQNR_BOUND, figure >= SQNR_BOUND, len(outputs))
    figure = relative(outputs, references)
    return Parity(what, against, figure, "relative", FLOAT_BOUND, figure <= FLOAT_BOUND, len(outputs))


def run_qonnx(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Execute a QONNX graph with the qonnx package (the integer reference); returns every tensor by name."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for tensor in (*copy.graph.input, *copy.graph.output):
        for dim in tensor.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    wrapper = ModelWrapper(copy).transform(InferShapes())
    return dict(execute_onnx(wrapper, values, return_full_exec_context=True))


def integer_steps(qonnx_model: onnx.ModelProto, runtime_model: onnx.ModelProto, values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Per activation quantizer: how far the runtime's integers are from the QONNX reference, in steps.

    The runtime runs fully optimised, with the uint8 tensors of the file as extra outputs.
    """
    reference = run_qonnx(qonnx_model, values)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(runtime_model)
    init = {i.name: onnx.numpy_helper.to_array(i) for i in exposed.graph.initializer}
    rows = {}
    for node in exposed.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0].endswith("_u8") and node.output[0][:-3] in reference:
            rows[node.output[0]] = (float(init[node.input[1]]), int(init[node.input[2]]))
            exposed.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None))
    if not rows:
        return []
    outputs = session(exposed).run(list(rows), values)
    found = []
    for (name, (scale, zero)), got in zip(rows.items(), outputs, strict=True):
        want = np.round(reference[name[:-3]].astype(np.float64) / scale).astype(np.int64)
        steps = np.abs(got.astype(np.int64) - zero - want.reshape(got.shape))
        found.append({"quantizer": name[:-3], "values": int(steps.size), "differ": int((steps > 0).sum()), "total_steps": int(steps.sum()), "max_steps": int(steps.max(initial=0))})
    return found


def summary(rows: Sequence[Parity], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What goes into the manifest."""
    total = sum(r["values"] for r in steps)
    differ = sum(r["differ"] for r in steps)
    first = next((r["quantizer"] for r in steps if r["max_steps"] > 1), "")
    return {"checks": [asdict(r) for r in rows], "integers_compared": total, "integers_differ": differ,
            "max_steps": max((r["max_steps"] for r in steps), default=0), "first_over_one_step": first}
