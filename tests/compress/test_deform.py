"""Deformable convolution: every form against torchvision.ops.deform_conv2d, gradients of the integer form, quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.api import compress
from compress.config import CompressConfig
from compress.deform import BOUND, DeformConv2d, sample_taps, square_sample, square_taps
from compress.quantize.scheme import Quantizer
from deploy.data import Batch
from deploy.inputs import InputSpec

FORMS: list[dict[str, Any]] = [
    {"depthwise": False, "bound": None, "square": False, "integer": False},
    {"bound": None, "square": False, "integer": False},
    {"square": False, "integer": False},
    {"square": False},
    {"integer": False},
    {"bound": None},
    {},
    {"kernel": 5, "bound": 3},
    {"depthwise": False, "bias": True},
]


def lively(layer: DeformConv2d, spread: float = 1.5) -> DeformConv2d:
    nn.init.normal_(layer.offset.weight, 0, spread)
    return layer


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMS), st.integers(1, 3), st.integers(1, 14), st.integers(1, 14), st.integers(0, 999))
def test_equals_torchvision(form: dict[str, Any], n: int, h: int, w: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer, x = lively(DeformConv2d(4, 4, **form)), torch.randn(n, 4, h, w)
    got, want = layer(x), layer.reference(x)
    assert float((got - want).detach().abs().max()) <= 1e-5 * max(1.0, float(want.detach().abs().max()))
    assert got.shape == (n, 4, h, w)


@pytest.mark.parametrize("form", [f for f in FORMS if f.get("integer") is False])
def test_gradients_of_interpolated_forms_equal_torchvision(form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = (
        lively(DeformConv2d(4, 4, **form)).double(),
        torch.randn(2, 4, 9, 7, dtype=torch.float64).requires_grad_(),
    )
    wanted = [x, layer.offset.weight, layer.offset.bias, layer.conv.weight]
    a = torch.autograd.grad(layer(x).square().sum(), wanted)  # type: ignore[arg-type]
    b = torch.autograd.grad(layer.reference(x).square().sum(), wanted)  # type: ignore[arg-type]
    for p, q in zip(a, b, strict=True):
        assert float((p - q).abs().max()) <= 1e-10 * float(q.abs().max())


def test_a_fresh_layer_is_a_plain_convolution() -> None:
    for form in FORMS:
        layer, x = DeformConv2d(4, 4, **form), torch.randn(1, 4, 8, 8)
        k = layer.kernel
        plain = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding=k // 2, groups=layer.conv.groups)
        assert torch.allclose(layer(x), plain, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, BOUND), st.integers(0, 999))
def test_integer_blocks_are_exact(h: int, w: int, top: int, seed: int) -> None:
    """Large integers come through bit for bit, borders are zero, at distances 0 to the bound."""
    rng = np.random.default_rng(seed)
    x, d = rng.integers(1, 1 << 20, (2, 3, h, w)), rng.integers(0, top + 1, (2, 1, h, w))
    got = square_sample(torch.from_numpy(x).float(), torch.from_numpy(d).float(), 3).numpy()
    for n, y, c in np.ndindex(2, h, w):
        for i, j in np.ndindex(3, 3):
            row, col = y + (i - 1) * d[n, 0, y, c], c + (j - 1) * d[n, 0, y, c]
            inside = 0 <= row < h and 0 <= col < w
            want = x[n, :, row, col] if inside else 0
            assert np.array_equal(got[n, :, 3 * y + i, 3 * c + j], np.broadcast_to(want, 3))


def test_gradient_of_the_integer_form_is_the_central_difference() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    d = torch.randint(1, 6, (2, 1, 12, 12)).double().requires_grad_()
    weight = torch.randn(2, 3, 36, 36, dtype=torch.float64)
    to_x, to_d = torch.autograd.grad((square_sample(x, d, 3) * weight).sum(), [x, d])

    def value(distance: torch.Tensor) -> torch.Tensor:
        part = (sample_taps(x.detach(), square_taps(distance, 3), 3, True) * weight).view(2, 3, 12, 3, 12, 3)
        return part.sum((1, 3, 5))[:, None]

    assert torch.allclose(to_d, (value(d.detach() + 1) - value(d.detach() - 1)) / 2)
    assert float(to_d.abs().max()) > 0
    assert torch.autograd.gradcheck(lambda v: square_sample(v, d.detach(), 3), (x,))
    assert to_x.shape == x.shape


def test_distances_learn() -> None:
    """A target that is a dilation of 3: training moves the distance there from 1, through rounding and clamping."""
    torch.manual_seed(0)
    layer = DeformConv2d(4, 4)
    x = nn.functional.avg_pool2d(torch.randn(64, 4, 20, 20), 5, 1, 2)  # smooth images: slopes tell the way
    want = nn.functional.conv2d(x, layer.conv.weight.detach(), padding=3, dilation=3, groups=4)
    optimizer = torch.optim.Adam(layer.offset.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (layer(x) - want).square().mean().backward()
        optimizer.step()
    distance = layer.distance(layer.offset(x))
    assert float((distance == 3).float().mean()) > 0.9
    assert set(distance.unique().tolist()) <= set(range(BOUND + 1))


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)])
def test_quantized(bits: tuple[int, int]) -> None:
    """The distance is a 3-bit integer of step 1, the blocks stay on the image's grid."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), lively(DeformConv2d(8, 8), 0.5), nn.Conv2d(8, 5, 1)
    ).eval()
    rows = [Batch((np.random.default_rng(k).normal(size=(8, 3, 16, 16)).astype(np.float32),)) for k in range(4)]
    config = CompressConfig(bits=bits[0], act_bits=bits[1])
    done = compress(net, config, inputs=(InputSpec("x", (1, 3, 16, 16)),), calibration=rows, evaluation=rows)
    quantizers = {n: m for n, m in done.module.named_modules() if isinstance(m, Quantizer)}
    (distance,) = (m for n, m in quantizers.items() if "distance" in n)
    assert (distance.spec.bits, distance.spec.signed, distance.scale) == (3, False, 1.0)
    assert not any("sample" in n for n in quantizers)
    assert done.record["accuracy"]["sqnr_db"] > {(8, 8): 25, (4, 8): 12, (4, 4): 8}[bits]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps its 4 channels"):
        DeformConv2d(4, 8)
    with pytest.raises(ValueError, match="no centre"):
        DeformConv2d(4, 4, 2)
