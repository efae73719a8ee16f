"""QONNX -> QDQ: the same integers, by small random graphs against qonnx; each pass's own promises."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export import parity
from export.lower import absorb, base
from export.lower.qdq import to_qdq

QUANT = "qonnx.custom_op.general"


class Graph:
    """Builds a QONNX graph step by step."""

    def __init__(self, shape: list[int]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.init: list[onnx.TensorProto] = []
        self.shape, self.last = shape, "x"

    def const(self, value: object, name: str = "") -> str:
        name = name or f"c{len(self.init)}"
        self.init.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [out], f"n{len(self.nodes)}", domain=domain, **attributes)
        )
        self.last = out
        return out

    def quant(self, value: str, scale: object, bits: int, signed: bool = True, narrow: bool = False) -> str:
        rows = [self.const(scale), self.const(0.0), self.const(float(bits))]
        return self.op(
            "Quant", value, *rows, domain=QUANT, signed=int(signed), narrow=int(narrow), rounding_mode="ROUND"
        )

    def model(self, dims: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, [None] * dims)], self.init,
        )  # fmt: skip
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(QUANT, 2)], ir_version=10
        )


def _lower(model: onnx.ModelProto) -> tuple[onnx.ModelProto, base.Report]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lowered, report = to_qdq(ir.from_proto(copy))
    proto = ir.to_proto(lowered)
    onnx.checker.check_model(proto)
    return proto, report


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8), act=st.integers(4, 8), signed=st.booleans(), groups=st.sampled_from([1, 2]), relu=st.booleans(), per_channel=st.booleans(),
    kernel=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
def test_conv_graphs_give_the_reference_integers(bits, act, signed, groups, relu, per_channel, kernel, seed):  # type: ignore[no-untyped-def]
    """Quant -> Conv -> (Relu) -> Quant against qonnx, on scales that are powers of two so that no rounding tie is in doubt."""
    rng = np.random.default_rng(seed)
    g = Graph([1, 4, 6, 6])
    weight_scale = 2.0 ** rng.integers(-6, -3, (6, 1, 1, 1) if per_channel else ())
    weight = rng.standard_normal((6, 4 // groups, kernel, kernel)) * 0.3
    xq = g.quant("x", 2.0**-5, act, signed)
    wq = g.quant(g.const(weight, "w"), weight_scale, bits, True, True)
    bias = rng.integers(-50, 50, 6) * 2.0**-5 * np.broadcast_to(weight_scale, (6, 1, 1, 1)).reshape(-1)
    y = g.op("Conv", xq, wq, g.const(bias, "b"), group=groups, pads=[1, 1, 1, 1])
    y = g.op("Relu", y) if relu else y
    g.quant(y, 2.0**-4, act, not relu)
    model = g.model(4)
    x = rng.standard_normal((1, 4, 6, 6), np.float32)
    lowered, report = _lower(model)
    want = parity.run_qonnx(model, {"x": x})[g.last]
    got = parity.session(lowered).run(None, {"x": x})[0]
    assert np.array_equal(got, want)
    assert {"weights", "activations", "bias"} <= set(report.changed)
    kinds = {i.data_type for i in lowered.graph.initializer if i.name.startswith("w_")}
    assert (TensorProto.INT4 in kinds) == (bits <= 4)
    if relu and act == 8:
        assert "Relu" not in {n.op_type for n in lowered.graph.node}


@settings(max_examples=20, deadline=None)
@given(bits=st.integers(2, 8), rank=st.integers(2, 3), gemm=st.booleans(), seed=st.integers(0, 999))
def test_linear_with_a_float_input_becomes_dynamic(bits: int, rank: int, gemm: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [3, 8] if gemm or rank == 2 else [2, 3, 8]
    g = Graph(shape)
    wq = g.quant(
        g.const(rng.standard_normal((5, 8)), "w"), np.abs(rng.standard_normal((5, 1))) * 0.1 + 0.01, bits, True, True
    )
    if gemm:
        g.op("Gemm", "x", wq, g.const(rng.standard_normal(5), "b"), transB=1)
    else:
        g.op("MatMul", "x", g.op("Transpose", wq, perm=[1, 0]))
    model = g.model(len(shape))
    lowered, report = _lower(model)
    ops = [n.op_type for n in lowered.graph.node]
    assert "MatMulInteger" in ops and "DynamicQuantizeLinear" in ops and "dynamic" in report.changed
    x = rng.standard_normal(shape).astype(np.float32)
    want = parity.run_qonnx(model, {"x": x})[g.last]
    got = parity.session(lowered).run(None, {"x": x})[0]
    weight = parity.run_qonnx(model, {"x": x})["t0"]
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    assert np.abs(got - want).max() <= 0.51 * step * np.abs(weight).sum(1).max() + 1e-5


def test_embedding_rows_stay_integers() -> None:
    rng = np.random.default_rng(0)
    g = Graph([2, 3])
    table = g.quant(
        g.const(rng.standard_normal((10, 4)), "w"), np.abs(rng.standard_normal((10, 1))) * 0.02 + 0.01, 8, True, True
    )
    g.op("Gather", table, "x", axis=0)
    model = g.model(3)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    lowered, _ = _lower(model)
    x = rng.integers(0, 10, (2, 3))
    want = parity.run_qonnx(model, {"x": x})[g.last]
    assert np.abs(parity.session(lowered).run(None, {"x": x})[0] - want).max() < 1e-6
    gathered = [n for n in lowered.graph.node if n.op_type == "Gather"]
    kinds = {i.name: i.data_type for i in lowered.graph.initializer}
    assert TensorProto.INT8 in {kinds.get(n.input[0]) for n in gathered}


def test_weights_of_float_convolutions_fold_at_load() -> None:
    """Weights-only: stored small, and no DequantizeLinear is left for every run."""
    rng = np.random.default_rng(0)
    g = Graph([1, 3, 5, 5])
    g.op(
        "Conv",
        "x",
        g.quant(g.const(rng.standard_normal((4, 3, 3, 3)), "w"), np.full((4, 1, 1, 1), 0.05), 4, True, True),
    )
    model = g.model(4)
    lowered, report = _lower(model)
    assert "DequantizeLinear" not in {n.op_type for n in lowered.graph.node} and "floats" in report.changed
    x = rng.standard_normal((1, 3, 5, 5)).astype(np.float32)
    assert (
        parity.relative(parity.session(lowered).run(None, {"x": x}), [parity.run_qonnx(model, {"x": x})[g.last]]) < 1e-6
    )


@pytest.mark.parametrize(
    ("high", "scale", "absorbed"), [(6.0, 6 / 255, True), (6.0, 4 / 255, True), (6.0, 8 / 255, False)]
)
def test_clip_is_absorbed_only_where_saturation_does_the_same(high: float, scale: float, absorbed: bool) -> None:
    g = Graph([1, 40])
    g.quant(g.op("Clip", "x", g.const(0.0), g.const(high)), scale, 8, False)
    model = g.model(2)
    lowered, _ = _lower(model)
    assert ("Clip" not in {n.op_type for n in lowered.graph.node}) == absorbed
    x = np.linspace(-2, 9, 40, dtype=np.float32)[None]
    assert np.array_equal(parity.session(lowered).run(None, {"x": x})[0], parity.run_qonnx(model, {"x": x})[g.last])


def test_runner_catches_a_pass_that_lies() -> None:
    g = Graph([1, 4])
    g.op("Relu", "x")
    model = ir.from_proto(g.model(2))
    liar = base.Pass("liar", lambda m: base.Result(m, True))
    with pytest.raises(base.PassError, match="liar says changed=True"):
        base.run(model, [liar])
    with pytest.raises(base.PassError, match="precondition"):
        base.run(model, [base.Pass("early", absorb.PASS.call, requires=lambda m: "not yet")])
    with pytest.raises(base.PassError, match="postcondition"):
        base.run(model, [base.Pass("late", absorb.PASS.call, ensures=lambda m: "left over")])
