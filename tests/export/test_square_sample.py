"""Deformable convolution in ONNX: one function in every form, bit for bit on integers, borders and bound included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from compress.api import compress
from compress.config import CompressConfig
from compress.deform import DeformConv2d, square_sample
from deploy.data import Batch
from deploy.errors import UserError
from deploy.inputs import InputSpec
from export import onnxfile, parity
from export.lower import deform
from export.lower.base import run
from export.square_sample import blocks
from export.stage import convert


def integer_layer(channels: int, kernel: int, bound: int, seed: int) -> DeformConv2d:
    """Weights and distances are integers: every form's result is then exact."""
    torch.manual_seed(seed)
    layer = DeformConv2d(channels, channels, kernel, bound=bound).eval()
    with torch.no_grad():
        layer.conv.weight.copy_(torch.randint(-7, 8, layer.conv.weight.shape))
        layer.offset.weight.copy_(torch.tensor([1.0, -1.0] * (channels // 2)).view(1, -1, 1, 1) * bound / 128)
        layer.offset.bias.fill_(bound / 2)  # type: ignore[union-attr]
    return layer


def image(n: int, channels: int, h: int, w: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, h, w)).astype(np.float32)


class Oracle(nn.Module):
    """The same layer through torchvision's operator, which torch.onnx writes as the standard DeformConv."""

    def __init__(self, layer: DeformConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.reference(x)


def operator_form(layer: DeformConv2d, x: Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(Oracle(layer), (x,), dynamo=True, opset_version=21, input_names=["x"], verbose=False)
    model: onnx.ModelProto = program.model_proto  # type: ignore[union-attr]
    assert [n.op_type for n in model.graph.node].count("DeformConv") == 1
    return model


@pytest.mark.parametrize(("kernel", "bound"), [(3, 7), (3, 1), (5, 3)])
def test_every_form_gives_the_same_integers(kernel: int, bound: int, tmp_path: Path) -> None:
    """torch, DeformConv (ONNX Runtime), rows of a table (ONNX Runtime and TVM), NumPy."""
    from hw.runtime.tvm import RUNTIME

    layer, x = integer_layer(4, kernel, bound, 0), image(1, 4, 13, 11, 1)
    specs = (InputSpec("x", (1, 4, 13, 11)),)
    with torch.no_grad():
        want = layer(torch.from_numpy(x)).numpy()
        distance = layer.distance(layer.offset(torch.from_numpy(x))).numpy()
    assert {0, bound} <= set(distance.ravel().tolist())
    files, _ = convert(layer, None, specs)
    gathered = files["float.onnx"]
    assert all(n.domain == "" for n in gathered.graph.node)
    weight = layer.conv.weight.detach().numpy()[:, 0]
    taps = blocks(x, distance, kernel).reshape(1, 4, 13, kernel, 11, kernel)
    assert np.array_equal(np.einsum("nchiwj,cij->nchw", taps, weight), want)
    for model in (operator_form(layer, torch.from_numpy(x)), gathered):
        (got,) = parity.session(model).run(None, {"x": x})
        assert np.array_equal(got, want)
    assert np.array_equal(RUNTIME.load(gathered, 1, tmp_path).run([x])[0], want)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([3, 5]),
    st.integers(0, 7),
    st.integers(0, 99),
)
def test_lowered_operator(n: int, c: int, h: int, w: int, kernel: int, top: int, seed: int) -> None:
    """The pass on a graph of the operator alone, any size and batch, against torch and NumPy."""
    rng = np.random.default_rng(seed)
    x, d = rng.normal(size=(n, c, h, w)).astype(np.float32), rng.integers(0, top + 1, (n, 1, h, w)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("SquareSample", ["x", "d"], ["y"], domain="deploy", kernel=kernel)], "g",
        [info("x", TensorProto.FLOAT, ("N", c, h, w)), info("d", TensorProto.FLOAT, ("N", 1, h, w))],
        [info("y", TensorProto.FLOAT, ("N", c, kernel * h, kernel * w))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("deploy", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    lowered = ir.to_proto(run(ir.from_proto(model), [deform.PASS])[0])
    (got,) = parity.session(lowered).run(None, {"x": x, "d": d})
    assert np.array_equal(got, blocks(x, d, kernel))
    assert np.array_equal(got, square_sample(torch.from_numpy(x), torch.from_numpy(d), kernel).numpy())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.deform = DeformConv2d(8, 8)
        self.last = nn.Conv2d(8, 5, 1)
        nn.init.normal_(self.deform.offset.weight, 0, 0.8)
        nn.init.constant_(self.deform.offset.bias, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.deform(self.stem(x)))
        return out


def test_quantized_network_keeps_its_parity_and_reads_integers() -> None:
    """QONNX against ONNX Runtime at every quantizer; the rows are gathered as bytes and the convolution runs as an integer one."""
    torch.manual_seed(0)
    net, specs = Small().eval(), (InputSpec("x", (1, 3, 16, 16)),)
    rows = [Batch((np.random.default_rng(k).normal(size=(4, 3, 16, 16)).astype(np.float32),)) for k in range(4)]
    done = compress(net, CompressConfig(bits=4), inputs=specs, calibration=rows)
    files, record = convert(net, done.module, specs, dynamic_batch=True)
    assert record["parity"]["own_max"] <= 1
    assert any(n.domain == "deploy" for n in files["model.qonnx.onnx"].graph.node)
    runtime = ir.from_proto(files["model.onnx"])
    (read,) = (n for n in runtime.graph if n.op_type == "Gather")
    assert read.inputs[0] is not None and read.inputs[0].dtype == ir.DataType.UINT8
    x = np.random.default_rng(9).normal(size=(3, 3, 16, 16)).astype(np.float32)
    (got,) = parity.session(files["model.onnx"]).run(None, {"x": x})
    with torch.no_grad():
        assert parity.sqnr([got], [done.module(torch.from_numpy(x)).numpy()]) > 30


def test_files_with_the_operator_are_read_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    info = helper.make_tensor_value_info
    for domain, ok in (("deploy", True), ("os", False)):
        graph = helper.make_graph(
            [helper.make_node("SquareSample", ["x", "d"], ["y"], domain=domain, kernel=3)], "g",
            [info("x", TensorProto.FLOAT, (1, 2, 4, 4)), info("d", TensorProto.FLOAT, (1, 1, 4, 4))],
            [info("y", TensorProto.FLOAT, (1, 2, 12, 12))],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
        if ok:
            onnxfile.load(path)
        else:
            with pytest.raises(UserError, match="domain 'os'"):
                onnxfile.load(path)
