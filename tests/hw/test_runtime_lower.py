"""Operators that a runtime lacks, written in others: equal to ONNX's reference, to torch, and through every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from deploy.errors import ToolError
from deploy.inputs import InputSpec
from export.torch2onnx import export_float
from hw.runtime import runtimes
from hw.runtime.lower import lower, rewrites

CPU = ("onnxruntime", "openvino", "tvm")


def model_of(
    nodes: list[Any],
    inputs: dict[str, tuple[int, ...]],
    weights: dict[str, np.ndarray],
    outs: list[str],
    opset: int = 20,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outs], [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(got: np.ndarray, want: np.ndarray, bound: float = 1e-5) -> None:
    assert got.shape == want.shape and np.ptp(want) > 0
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


def everywhere(
    model: onnx.ModelProto, values: list[np.ndarray], want: np.ndarray, folder: Path, bound: float = 1e-5
) -> None:
    for name in CPU:
        place = folder / name
        place.mkdir()
        close(runtimes()[name].load(model, 1, place).run(values)[0], want, bound)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("full", [False, True])
def test_recurrent_layers(kind: str, direction: str, full: bool) -> None:
    """With and without biases and first states; every output; GRU in both of its forms."""
    gates, ways = (
        (4, 2 if direction == "bidirectional" else 1)
        if kind == "LSTM"
        else (3, 2 if direction == "bidirectional" else 1)
    )
    steps, batch, size, hidden = 5, 2, 6, 7
    weights = {"w": normal(ways, gates * hidden, size, seed=1), "r": normal(ways, gates * hidden, hidden, seed=2)}
    names = ["x", "w", "r"]
    if full:
        weights |= {"b": normal(ways, 2 * gates * hidden, seed=3), "h0": normal(ways, batch, hidden, seed=4)}
        names += ["b", "", "h0"]
        if kind == "LSTM":
            weights["c0"] = normal(ways, batch, hidden, seed=5)
            names.append("c0")
    outs = ["y", "yh", "yc"] if kind == "LSTM" else ["y", "yh"]
    more = {"linear_before_reset": int(full)} if kind == "GRU" else {}
    node = helper.make_node(kind, names, outs, hidden_size=hidden, direction=direction, **more)
    model = model_of([node], {"x": (steps, batch, size)}, weights, outs)
    import onnxruntime as ort

    x = normal(steps, batch, size)
    want = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    low = lower(model, [kind])
    assert kind not in {n.op_type for n in low.graph.node}
    for a, b in zip(ort.InferenceSession(low.SerializeToString()).run(None, {"x": x}), want, strict=True):
        close(a, b)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 9), length=st.integers(2, 10), parts=st.integers(1, 2), inverse=st.booleans(), axis=st.integers(0, 1), opset=st.sampled_from([17, 20]),
    onesided=st.booleans(),
)  # fmt: skip
def test_dft(n: int, length: int, parts: int, inverse: bool, axis: int, opset: int, onesided: bool) -> None:
    """Against NumPy: forward and inverse, real and complex, padded and cut, one-sided both ways."""
    if onesided and (parts == 2) != inverse:
        return  # a one-sided spectrum comes from real samples, and goes back to them
    shape = [3, 3, parts]
    shape[axis] = n
    if onesided and inverse:
        shape[axis] = length // 2 + 1
    weights = {"n": np.asarray(length)} | ({"a": np.asarray(axis)} if opset == 20 else {})
    more = {} if opset == 20 else {"axis": axis}
    node = helper.make_node(
        "DFT", ["x", "n", *(["a"] if opset == 20 else [])], ["y"], inverse=int(inverse), onesided=int(onesided), **more
    )
    model = model_of([node], {"x": tuple(shape)}, weights, ["y"], opset)
    x = normal(*shape)
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    if onesided and inverse:
        want = np.fft.irfft(signal, length, axis=axis)[..., None]
    else:
        wide = (np.fft.ifft if inverse else np.fft.rfft if onesided else np.fft.fft)(signal, length, axis=axis)
        want = np.stack([wide.real, wide.imag], -1)
    got = ReferenceEvaluator(lower(model, ["DFT"])).run(None, {"x": x})[0]
    assert got.shape == want.shape and np.abs(got - want).max() <= 1e-5 * max(1, np.abs(want).max())


class GlobalFilter(nn.Module):
    """HorNet's global filter: a product in the spectrum of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 8, 5, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")


class LongConvolution(nn.Module):
    """S4D's convolution with a kernel as long as the sequence, by FFT of twice the length."""

    def __init__(self, length: int = 32) -> None:
        super().__init__()
        decay = torch.exp(-torch.arange(length) / 6.0)
        self.kernel = nn.Parameter(torch.randn(4, length, generator=torch.Generator().manual_seed(0)) * decay)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(x, n=2 * n) * torch.fft.rfft(self.kernel, n=2 * n), n=2 * n)[..., :n]


@pytest.mark.parametrize("net,shape", [(GlobalFilter(), (1, 4, 8, 8)), (LongConvolution(), (1, 4, 32))])
def test_networks_with_fft_run_everywhere(net: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    """ONNX Runtime alone returns wrong numbers for these files, without a word; OpenVINO and TVM refuse them."""
    model, _ = export_float(net.eval(), (InputSpec("x", shape),))
    assert "DFT" in {n.op_type for n in model.graph.node}
    x = normal(*shape)
    everywhere(model, [x], net(torch.from_numpy(x)).detach().numpy(), tmp_path)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 8, 2, bidirectional=True), nn.GRU(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0]


def test_a_recurrent_network_runs_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Recurrent().eval()
    model, _ = export_float(net, (InputSpec("x", (4, 1, 6)),))
    x = normal(4, 1, 6)
    everywhere(model, [x], net(torch.from_numpy(x)).detach().numpy(), tmp_path)


@pytest.mark.parametrize("groups,offset_groups,mask,stride", [(1, 1, True, 1), (2, 2, False, 2), (1, 4, True, 1)])
def test_deformable_convolution_runs_everywhere(
    groups: int, offset_groups: int, mask: bool, stride: int, tmp_path: Path
) -> None:
    from torchvision.ops import deform_conv2d

    x, w, b = normal(1, 8, 9, 10), normal(6, 8 // groups, 3, 3, seed=1), normal(6, seed=2)
    height, width = (9 - 1) // stride + 1, (10 - 1) // stride + 1
    offset = normal(1, offset_groups * 18, height, width, seed=3) * 2
    names, weights = ["x", "w", "offset", "b"], {"w": w, "b": b}
    inputs = {"x": x.shape, "offset": offset.shape}
    values = [x, offset]
    if mask:
        names.append("mask")
        values.append(np.abs(normal(1, offset_groups * 9, height, width, seed=4)))
        inputs["mask"] = values[-1].shape
    node = helper.make_node(
        "DeformConv", names, ["y"], kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2, group=groups, offset_group=offset_groups
    )  # fmt: skip
    want = deform_conv2d(
        *map(torch.from_numpy, (x, offset, w, b)), stride=stride, padding=1, mask=torch.from_numpy(values[-1]) if mask else None
    )  # fmt: skip
    everywhere(model_of([node], inputs, weights, ["y"]), values, want.numpy(), tmp_path)


@pytest.mark.parametrize("stride,pad,dilation", [(2, 1, 1), (1, 0, 2), (3, 0, 1)])
def test_folded_patches_run_everywhere(stride: int, pad: int, dilation: int, tmp_path: Path) -> None:
    fold = nn.Fold((11, 12), 3, dilation, pad, stride)
    count = nn.functional.unfold(torch.zeros(1, 2, 11, 12), 3, dilation, pad, stride).shape[-1]
    x = normal(1, 18, count)
    weights = {"image": np.array([11, 12]), "block": np.array([3, 3])}
    node = helper.make_node(
        "Col2Im", ["x", "image", "block"], ["y"], strides=[stride] * 2, pads=[pad] * 4, dilations=[dilation] * 2
    )  # fmt: skip
    everywhere(model_of([node], {"x": x.shape}, weights, ["y"]), [x], fold(torch.from_numpy(x)).numpy(), tmp_path)


def test_older_quantized_operators(tmp_path: Path) -> None:
    """QLinearConv, QLinearMatMul, ConvInteger, MatMulNBits in TVM, as ONNX Runtime computes them."""
    rng = np.random.default_rng(0)
    weights = {
        "s": np.float32(0.02), "z": np.uint8(120), "w": rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8), "ws": np.full(8, 0.01, np.float32),
        "wz": np.zeros(8, np.int8), "ys": np.float32(0.1), "yz": np.uint8(128), "b": rng.integers(-500, 500, 8).astype(np.int32),
        "m": rng.integers(-127, 128, (8, 12)).astype(np.int8), "ms": np.float32(0.01), "mz": np.int8(0), "rows": np.array([36, 8]),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "ws", "wz", "ys", "yz", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "rows"], ["r"]),
        helper.make_node("QLinearMatMul", ["r", "ys", "yz", "m", "ms", "mz", "ys", "yz"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]
    integer = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["c"], pads=[1] * 4),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    x = normal(1, 4, 6, 6)
    for index, (body, bound) in enumerate(((nodes, 1 / 128), (integer, 0))):
        used = {i for n in body for i in n.input}
        model = model_of(body, {"x": x.shape}, {k: v for k, v in weights.items() if k in used}, ["y"])
        want = runtimes()["onnxruntime"].load(model, 1, tmp_path).run([x])[0]
        place = tmp_path / str(index)
        place.mkdir()
        close(runtimes()["tvm"].load(model, 1, place).run([x])[0], want, bound)


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_of_packed_weights(bits: int, tmp_path: Path) -> None:
    """Against the weights unpacked by hand: ONNX Runtime itself may quantize the activations of such a product."""
    rng = np.random.default_rng(0)
    n, k, block = 6, 64, 32
    integers = rng.integers(0, 1 << bits, (n, k))
    packed = integers.astype(np.uint8) if bits == 8 else (integers[:, ::2] | (integers[:, 1::2] << 4)).astype(np.uint8)
    scale = rng.random((n, k // block)).astype(np.float32) / 10
    weights = {"w": packed.reshape(n, k // block, -1), "s": scale.reshape(-1)}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block
    )
    model = model_of([node], {"x": (1, 5, k)}, weights, ["y"])
    full = (integers - (1 << (bits - 1))) * np.repeat(scale, block, 1)
    x = normal(1, 5, k)
    close(runtimes()["tvm"].load(model, 1, tmp_path).run([x])[0], (x @ full.T.astype(np.float32)), 1e-5)


def test_what_is_not_covered_is_said() -> None:
    assert {"LSTM", "GRU", "DFT", "DeformConv", "QLinearConv", "MatMulNBits"} <= set(rewrites())
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2, clip=1.0)
    model = model_of([node], {"x": (3, 1, 2)}, {"w": normal(1, 8, 2), "r": normal(1, 8, 2)}, ["y"])
    with pytest.raises(ToolError, match="clip"):
        lower(model, ["LSTM"])
    open_model = model_of([helper.make_node("DFT", ["x"], ["y"])], {"x": (3, 4, 1)}, {}, ["y"], 17)
    open_model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "N"
    with pytest.raises(ToolError, match="fixed shapes"):
        lower(open_model, ["DFT"])
