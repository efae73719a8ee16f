"""Scales, rounding, placement, quantizer modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compress.graph import trace
from compress.quantize import scheme
from compress.quantize.place import points
from compress.quantize.plan import parse_overrides
from compress.quantize.rounding import gptq, moments, patches, refit
from compress.quantize.scales import Histogram, weight_scales
from deploy.errors import UserError


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), axis=st.integers(0, 1), per_channel=st.booleans(), seed=st.integers(0, 999))
def test_mse_scales_never_lose_to_max(bits: int, axis: int, per_channel: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(5, 4, 3, 3) * torch.rand(5, 4, 1, 1).exp()
    high = (1 << (bits - 1)) - 1
    errors = {}
    for method in ("max", "mse"):
        scale = weight_scales(weight, bits, axis, per_channel, method)
        errors[method] = float((weight - torch.clamp(torch.round(weight / scale), -high, high) * scale).square().sum())
        assert scale.numel() == (weight.shape[axis] if per_channel else 1)
    assert errors["mse"] <= errors["max"] * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2]), kernel=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_patches_reproduce_the_convolution(
    groups: int, kernel: int, stride: int, padding: int, dilation: int, seed: int
) -> None:
    """weight @ patches equals the layer's output at the same positions."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias=False)
    x = torch.randn(3, 4, 9, 8)
    with torch.no_grad():
        y = layer(x)
        flat = y.permute(1, 0, 2, 3).reshape(6, -1)
        chosen = torch.randint(0, flat.shape[1], (20,))
        columns = patches(layer, x, chosen)
        got = layer.weight.reshape(groups, 6 // groups, -1) @ columns
        assert torch.allclose(got.reshape(6, -1), flat[:, chosen], atol=1e-4)


def test_second_order_rounding_beats_nearest() -> None:
    """On correlated inputs the output error of GPTQ is well under that of rounding to nearest, at the same scales."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    mix = torch.randn(64, 64) / 8
    x = [torch.randn(500, 64) @ mix for _ in range(4)]
    y = [layer(v) for v in x]
    h, g = moments(layer, x, x, y, torch.Generator().manual_seed(0))
    weight = layer.weight.detach()[None]
    scale = weight_scales(layer.weight.detach(), 3, 0).reshape(1, -1)
    nearest = torch.clamp(torch.round(weight / scale[..., None]), -3, 3) * scale[..., None]
    rounded = gptq(refit(weight, h, g), h, scale, 3)
    assert torch.equal(torch.round(rounded / scale[..., None]) * scale[..., None], rounded)

    def error(w: torch.Tensor) -> float:
        return float(((w[0] - weight[0]) @ h[0] * (w[0] - weight[0])).sum())

    assert error(rounded) < 0.7 * error(nearest)


def test_refit_recovers_a_scaled_input() -> None:
    """Where the quantized input is half the exact one, the target weight doubles."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    x = [torch.randn(8, 3, 10, 10)]
    h, g = moments(layer, [x[0] / 2], x, [layer(x[0])], torch.Generator().manual_seed(0))
    target = refit(layer.weight.detach().reshape(1, 4, -1), h, g, 1e-6)
    assert torch.allclose(target.reshape(layer.weight.shape), 2 * layer.weight, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(4, 8), signed=st.booleans(), scale=st.floats(1e-3, 10), seed=st.integers(0, 99))
def test_activation_quantizer_is_the_plain_formula(bits: int, signed: bool, scale: float, seed: int) -> None:
    spec = scheme.ActivationSpec(bits, signed)
    quantizer = scheme.Quantizer(spec)
    quantizer.set_scale(scale)
    x = torch.randn(100, generator=torch.Generator().manual_seed(seed)) * scale * 40
    step = torch.tensor(quantizer.scale)
    want = torch.clamp(torch.round(x / step), spec.low, spec.high) * step
    assert torch.equal(quantizer.eval()(x), want)


@settings(max_examples=40, deadline=None)
@given(low=st.floats(-5, 0), high=st.floats(0, 5), seed=st.integers(0, 99))
def test_dynamic_activation_is_onnx_dynamic_quantize_linear(low: float, high: float, seed: int) -> None:
    import onnx
    from onnx import helper

    from export.parity import session

    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = low + (high - low) * torch.rand(64, generator=torch.Generator().manual_seed(seed))
    want = session(model).run(None, {"x": x.numpy()})[0]
    got = scheme.DynamicActivation()(x).numpy()
    step = max((max(float(x.max()), 0) - min(float(x.min()), 0)) / 255, 1e-12)
    assert np.abs(got - want).max() <= 1.01 * step and (np.abs(got - want) > 1e-6 * step).mean() < 0.05


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv3d(2, 3, 2), nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, groups=2),
     nn.ConvTranspose3d(2, 4, 2), nn.Linear(5, 3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")],
)  # fmt: skip
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_layer_computes_with_its_integers(layer: nn.Module, bits: int) -> None:
    torch.manual_seed(0)
    new = scheme.quantized_layer(layer, bits).eval()
    scheme.set_weight_scale(
        new, weight_scales(layer.weight.detach(), bits, scheme.output_axis(layer), scheme.is_per_channel(new))
    )  # type: ignore[arg-type, operator]
    high = (1 << (bits - 1)) - 1
    assert int(scheme.integers(new).abs().max()) <= high, "narrow range"
    plain = layer.eval()
    plain.weight.data = scheme.integers(new).float() * scheme.weight_scale(new)  # type: ignore[union-attr, operator]
    shape = {nn.Linear: (2, 5)}.get(type(layer)) or (2, layer.in_channels, *[7] * (layer.weight.ndim - 2))  # type: ignore[union-attr, operator]
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.allclose(new(x), plain(x), atol=1e-6)


def test_histogram_grows_and_finds_the_bulk() -> None:
    histogram = Histogram()
    rng = torch.Generator().manual_seed(0)
    for spread in (0.1, 1.0, 1.0):
        histogram(torch.randn(50_000, generator=rng) * spread)
    histogram(torch.tensor([40.0]))
    assert histogram.counts.sum() == 150_001 and histogram.high == 40.0
    assert histogram.scale(8, True, "max") == pytest.approx(40 / 127)
    assert histogram.scale(8, True, "mse") < 0.6 * histogram.scale(8, True, "max")
    assert histogram.scale(8, True, "percentile") < histogram.scale(8, True, "max")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.relu, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.a(x))
        x = F.relu(self.b(F.max_pool2d(x, 2)) + F.max_pool2d(x, 2))
        return self.head(self.pool(x).flatten(1))


def test_placement_on_a_residual_network() -> None:
    """Input, after ReLU (unsigned), the summand that is no ReLU (signed, inner), after the final ReLU, after pooling; not the output."""
    graph = trace(Residual().eval())
    assert graph is not None
    static = {
        n
        for n in graph.graph.nodes
        if n.op == "call_module" and isinstance(graph.get_submodule(str(n.target)), (nn.Conv2d, nn.Linear))
    }
    found = [(p.node.name, p.nonnegative, p.inner) for p in points(graph, static)]
    assert found == [
        ("x", None, False),
        ("relu", True, False),
        ("b", False, True),
        ("relu_1", True, False),
        ("pool", True, False),
    ]


def test_overrides() -> None:
    assert parse_overrides(("head=8/8", "stem.*=float", "a=b=4")) == [
        ("head", 8, 8),
        ("stem.*", None, None),
        ("a=b", 4, None),
    ]
    for bad in ("head", "head=9", "head=4/3", "=4"):
        with pytest.raises(UserError):
            parse_overrides((bad,))
