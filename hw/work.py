"""How much work an ONNX graph holds: multiply-accumulates, weights and activation bytes per node; and what this host could do."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger")


@dataclass(frozen=True)
class Work:
    """One node: MACs, stored weight bytes, bytes of its inputs and outputs as float32."""

    name: str
    op: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    parameters: int


def count(model: onnx.ModelProto) -> list[Work]:
    """MACs and bytes of the heavy nodes, for the shapes in the file (open dimensions count as 1)."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        v.name: tuple(d.dim_value or 1 for d in v.type.tensor_type.shape.dim)
        for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    init = {i.name: i for i in model.graph.initializer}
    producers = {o: n for n in model.graph.node for o in n.output}
    rows = []
    for node in model.graph.node:
        if node.op_type not in HEAVY:
            continue
        weight = stored(node.input[1], init, producers)
        out = shapes.get(node.output[0], ())
        first = shapes.get(node.input[0], ())
        if weight is not None:
            dims = tuple(weight.dims)
            params, size = int(np.prod(dims)), len(weight.raw_data) or int(np.prod(dims)) * 4
            if node.op_type == "Conv":
                macs = int(np.prod(out)) * int(np.prod(dims[1:]))
            elif node.op_type == "ConvTranspose":
                macs = int(np.prod(first)) * int(np.prod(dims[1:]))
            else:
                macs = int(np.prod(out)) * (dims[0] if out and out[-1] == dims[-1] else dims[-1])
        else:
            second = shapes.get(node.input[1], ())
            params, size = 0, 0
            macs = int(np.prod(out)) * (first[-1] if first else 1)
            out = (*out, 0) if not second else out
        rows.append(
            Work(
                node.name,
                node.op_type,
                macs,
                size,
                4 * (int(np.prod(first or (0,))) + int(np.prod(out or (0,)))),
                params,
            )
        )
    return rows


def stored(name: str, init: dict[str, TensorProto], producers: dict[str, onnx.NodeProto]) -> TensorProto | None:
    """The initializer behind a weight, through Cast, DequantizeLinear, Mul, Transpose and Quant."""
    while name not in init:
        node = producers.get(name)
        if node is None or node.op_type not in ("Cast", "DequantizeLinear", "Mul", "Transpose", "Quant"):
            return None
        name = node.input[0]
    return init[name]


@dataclass(frozen=True)
class Peaks:
    """What one run of this process could reach here, measured: GMAC/s of large matrix products and GB/s of copying."""

    float_gmacs: float
    int8_gmacs: float
    copy_gbs: float


def peaks(threads: int = 1) -> Peaks:
    """Measure the host with ONNX Runtime's own matrix products (1024 cubed) and a 256 MB copy; best of several."""
    from export.parity import session

    def best(model: onnx.ModelProto, x: np.ndarray) -> float:
        program = session(model, threads)
        times = []
        for _ in range(12):
            t = time.perf_counter()
            program.run(None, {"a": x})
            times.append(time.perf_counter() - t)
        return 1024**3 / min(times) / 1e9

    rng = np.random.default_rng(0)
    floats = best(
        _product("MatMul", TensorProto.FLOAT, rng.standard_normal((1024, 1024), np.float32), TensorProto.FLOAT),
        rng.standard_normal((1024, 1024), np.float32),
    )
    ints = best(
        _product(
            "MatMulInteger", TensorProto.UINT8, rng.integers(-127, 128, (1024, 1024)).astype(np.int8), TensorProto.INT32
        ),
        rng.integers(0, 256, (1024, 1024)).astype(np.uint8),
    )
    source, target = np.ones(1 << 25, np.float32), np.zeros(1 << 25, np.float32)
    times = []
    for _ in range(5):
        t = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - t)
    return Peaks(floats, ints, 2 * source.nbytes / min(times) / 1e9)


def _product(op: str, kind: int, weight: np.ndarray, out: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", kind, [1024, 1024])],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(weight, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
