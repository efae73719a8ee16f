"""Does the exported file compute what the model computes? Relative errors on outputs that vary, and integer steps.

Float files: max|err| / max|ref| against torch. Quantized files: every activation quantizer's integers against the QONNX
reference, layer by layer, where only rounding ties may differ, by one step; and the whole network against torch as signal
to noise ratio in dB, with a wide bound, because one tie that falls the other way moves everything after it.
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
from export.square_sample import DOMAIN

FLOAT_BOUND = 1e-3
SQNR_BOUND = 8.0
TIES = 5e-3  # sums of grids whose scales are in a simple ratio fall on ties often (HRNet: 3 in 1,000)
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
    errors = [float(np.abs(o - r).max()) for o, r in zip(outputs, references, strict=True)]
    return float(np.max(errors)) / max(top, 1e-30) if np.isfinite(errors).all() else float("inf")


def sqnr(outputs: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Signal to noise ratio in dB over all samples, at most 150; minus infinity where an output is no finite number and its reference is."""
    signal = sum(float(np.square(r, dtype=np.float64).sum()) for r in references)
    noise = sum(float(np.square(o.astype(np.float64) - r).sum()) for o, r in zip(outputs, references, strict=True))
    if not np.isfinite(noise):
        return float("-inf")
    return float(min(150.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


def compare(
    what: str, against: str, outputs: Sequence[np.ndarray], references: Sequence[np.ndarray], quantized: bool
) -> Parity:
    """Compare two lists of outputs. Raises BoundError when the references prove nothing (constant or not finite)."""
    if not varies(references):
        raise BoundError(
            f"parity of {what} cannot be shown: the model's output is constant or not finite on random inputs "
            "(an untrained head initialised with zeros?); export a trained model"
        )
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
    # qonnx infers shapes itself, but those around our own operator it asks for beforehand
    around = {name for node in copy.graph.node if node.domain == DOMAIN for name in node.input}
    kept = [v for v in copy.graph.value_info if v.name in around]
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(kept)
    for tensor in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        for dim in tensor.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    wrapper = ModelWrapper(copy).transform(InferShapes())
    return dict(execute_onnx(wrapper, values, return_full_exec_context=True))


def cut(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[float, int]]]:
    """The runtime graph cut at every activation quantizer: what was read from its integers comes from a new input
    `<name>_in`, and the integers it makes are an output. Returns the graph and (scale, zero point) by quantizer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    init = {i.name: i for i in copy.graph.initializer}
    found: dict[str, tuple[float, int]] = {}
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0].endswith("_u8"):
            scale, zero = (onnx.numpy_helper.to_array(init[name]) for name in node.input[1:3])
            found[node.output[0]] = (float(scale), int(zero))
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in found:
            node.input[0] += "_in"
    kind = onnx.TensorProto.UINT8
    for name in found:
        copy.graph.input.append(onnx.helper.make_tensor_value_info(f"{name}_in", kind, None))
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return copy, found


def integer_steps(
    qonnx_model: onnx.ModelProto, runtime_model: onnx.ModelProto, values: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Per activation quantizer: how far the runtime's integers are from the QONNX reference, in steps.

    `own`: the layers between two quantizers, fed with the reference's integers, so that one rounding tie is counted once.
    `carried`: the whole network run through, where a tie moves everything after it. The runtime is fully optimised. `own` is
    not counted behind layers whose ranges are dynamic.
    """
    reference = run_qonnx(qonnx_model, values)
    cut_model, places = cut(runtime_model)
    places = {n: p for n, p in places.items() if n[:-3] in reference}
    if not places:
        return []
    want = {n: np.round(reference[n[:-3]].astype(np.float64) / s).astype(np.int64) for n, (s, _) in places.items()}
    stored = {f"{n}_in": (want[n] + zero).astype(np.uint8) for n, (_, zero) in places.items()}
    whole = onnx.ModelProto()
    whole.CopyFrom(runtime_model)
    for name in places:
        whole.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    own = session(cut_model).run(list(places), {**values, **stored})
    carried = session(whole).run(list(places), values)
    found = []
    for name in after_dynamic(cut_model, list(places)):
        own[list(places).index(name)] = (want[name] + places[name][1]).astype(np.uint8)
    for (name, (_, zero)), a, b in zip(places.items(), own, carried, strict=True):
        row: dict[str, Any] = {"quantizer": name[:-3], "values": int(a.size)}
        for key, got in (("own", a), ("carried", b)):
            steps = np.abs(got.astype(np.int64) - zero - want[name].reshape(got.shape))
            row |= {f"{key}_differ": int((steps > 0).sum()), f"{key}_max": int(steps.max(initial=0))}
        found.append(row)
    return found


def after_dynamic(cut_model: onnx.ModelProto, names: Sequence[str]) -> set[str]:
    """The quantizers with a run-time quantized layer before them (after the cut): the QONNX reference keeps that in float."""
    producer = {o: n for n in cut_model.graph.node for o in n.output}
    found = set()
    for name in names:
        waiting, seen = [name], set()
        while waiting:
            node = producer.get(waiting.pop())
            if node is None or node.name + node.output[0] in seen:
                continue
            seen.add(node.name + node.output[0])
            if node.op_type == "DynamicQuantizeLinear":
                found.add(name)
                break
            waiting += node.input
    return found


def add_steps(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two samples' rows in one."""
    if not a:
        return b
    return [
        {k: v if k == "quantizer" else max(v, y[k]) if k.endswith("_max") else v + y[k] for k, v in x.items()}
        for x, y in zip(a, b, strict=True)
    ]


def check_steps(rows: Sequence[dict[str, Any]]) -> str:
    """'' when every layer's own integers are the reference's but for rounding ties; else the first that is not."""
    for row in rows:
        if row["own_max"] > 1 or row["own_differ"] > max(2, TIES * row["values"]):
            return (
                f"{row['quantizer']}: {row['own_differ']} of {row['values']} integers differ, by up to {row['own_max']}"
            )
    return ""


def summary(rows: Sequence[Parity], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What goes into the manifest."""
    return {
        "checks": [asdict(r) for r in rows],
        "integers_compared": sum(r["values"] for r in steps),
        "own_differ": sum(r["own_differ"] for r in steps),
        "own_max": max((r["own_max"] for r in steps), default=0),
        "carried_differ": sum(r["carried_differ"] for r in steps),
        "carried_max": max((r["carried_max"] for r in steps), default=0),
    }
