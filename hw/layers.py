"""The layer table: times of a runtime's nodes joined with the work that the file's nodes hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from hw import work
from hw.runtime.base import LayerTime, Program


def _aliases(model: onnx.ModelProto) -> dict[str, str]:
    """Every name under which a runtime may report a heavy node: its own, its output's, and those of a ReLU or Add fused to it."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in work.HEAVY:
            continue
        found[node.name] = node.name
        at = node
        while True:
            found.setdefault(at.output[0], node.name)
            after = users.get(at.output[0], [])
            if len(after) != 1 or after[0].op_type not in (
                "Relu",
                "Clip",
                "Add",
                "LeakyRelu",
                "Sigmoid",
                "HardSigmoid",
                "Tanh",
            ):
                break
            at = after[0]
            found.setdefault(at.name, node.name)
    return found


def by_layer(rows: Sequence[LayerTime], model: onnx.ModelProto) -> dict[str, float]:
    """Times by the names of the file's heavy nodes; a runtime renames nodes when it fuses them."""
    names = _aliases(model)
    found: dict[str, float] = {}
    for row in rows:
        base = row.name.partition("_token")[0].removesuffix("_nchwc").removesuffix("_quant")
        if base in names:
            found[names[base]] = found.get(names[base], 0.0) + row.microseconds
    return found


def float_left(model: onnx.ModelProto, rows: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """Heavy operators that the runtime still runs in float, and why."""
    heavy = {n.name: n for n in model.graph.node if n.op_type in work.HEAVY}
    names = _aliases(model)
    left = []
    for row in rows:
        if row.op in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"):
            node = heavy.get(names.get(row.name.partition("_token")[0], ""))
            constant = node is not None and work.stored(
                node.input[1],
                {i.name: i for i in model.graph.initializer},
                {o: n for n in model.graph.node for o in n.output},
            )
            why = "both inputs are activations" if not constant else "its input or output is not on an integer grid"
            left.append({"layer": row.name, "op": row.op, "us": row.microseconds, "why": why})
    return left


def _paired(times: dict[str, float], floats: Sequence[work.Work], rows: Sequence[work.Work]) -> dict[str, float]:
    """Float times under the names of the compressed file: by position where both files hold the same work in the same order
    (a folded BatchNorm renames its convolution), else by name."""
    if [f.macs for f in floats] != [r.macs for r in rows]:
        return times
    return {r.name: times[f.name] for f, r in zip(floats, rows, strict=True) if f.name in times}


def layer_table(
    model: onnx.ModelProto, program: Program, base_model: onnx.ModelProto, base: Program, values: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
    rows, floats = program.layers(values, 30), base.layers(values, 30)
    counted = {w.name: w for w in work.count(model)}
    float_times = _paired(by_layer(floats, base_model), work.count(base_model), list(counted.values()))
    times = by_layer(rows, model)
    table = []
    for name, w in counted.items():
        if name not in times:
            continue
        us = times[name]
        table.append(
            {
                "layer": name,
                "op": w.op,
                "macs": w.macs,
                "parameters": w.parameters,
                "weight_bytes": w.weight_bytes,
                "activation_bytes": w.activation_bytes,
                "us": us,
                "float_us": float_times.get(name),
                "gmacs": w.macs / max(us, 1e-3) / 1e3,
            }
        )
    by_op: Counter[str] = Counter()
    for row in rows:
        by_op[row.op] += row.microseconds  # type: ignore[assignment]
    return table, float_left(model, rows), {k: float(v) for k, v in by_op.most_common()}
