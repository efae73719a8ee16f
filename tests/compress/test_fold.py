"""Folding is exact for every kind of layer, and refused where it would not be."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.fold import fold, fold_after, fold_before
from compress.graph import plain_layers, relative_error, trace
from tests.conftest import perturb

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _norm(kind: type[nn.Module], channels: int, affine: bool) -> nn.Module:
    norm = kind(channels, affine=affine)
    perturb(norm)
    return norm.eval()


@settings(max_examples=60, deadline=None)
@given(
    dims=st.integers(1, 3), transposed=st.booleans(), groups=st.sampled_from([1, 2, 4]), wide_in=st.integers(1, 3),
    wide_out=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 1), bias=st.booleans(),
    affine=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_fold_after_is_exact(dims, transposed, groups, wide_in, wide_out, kernel, stride, padding, bias, affine, seed):  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    kind = (TRANSPOSED if transposed else PLAIN)[dims]
    c_in, c_out = groups * wide_in, groups * wide_out
    pad = min(padding, kernel - 1) if transposed else padding
    layer = kind(c_in, c_out, kernel, stride, pad, groups=groups, bias=bias)
    net = nn.Sequential(layer, _norm(NORMS[dims], c_out, affine)).eval()
    x = torch.randn(2, c_in, *[6] * dims)
    with torch.no_grad():
        want = net(x)
        graph = trace(copy.deepcopy(net))
        assert graph is not None
        records = fold(graph)
        assert [r.folded for r in records] == [True]
        assert not any(isinstance(m, NORMS[dims]) for m in graph.modules())
        assert relative_error(graph(x), want) <= 1e-6


@settings(max_examples=30, deadline=None)
@given(groups=st.sampled_from([1, 2, 4]), kernel=st.integers(1, 3), bias=st.booleans(), seed=st.integers(0, 999))
def test_fold_before_an_unpadded_layer_is_exact(groups: int, kernel: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    norm, layer = _norm(nn.BatchNorm2d, 8, True), nn.Conv2d(8, 4, kernel, groups=groups, bias=bias)
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        want = layer(norm(x))
        fold_before(norm, layer)
        assert relative_error(layer(x), want) <= 1e-6


def test_linear_with_batchnorm_folds() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Linear(5, 7), _norm(nn.BatchNorm1d, 7, True)
    x = torch.randn(4, 5)
    with torch.no_grad():
        want = norm(layer(x))
        fold_after(layer, norm)
        assert relative_error(layer(x), want) <= 1e-6


class Shared(nn.Module):
    """One convolution used with two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), _norm(nn.BatchNorm2d, 3, True), _norm(nn.BatchNorm2d, 3, True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.conv(x)) + self.b(self.conv(x))


class Elsewhere(nn.Module):
    """The convolution's output is used before the BatchNorm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), _norm(nn.BatchNorm2d, 3, True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def _padded() -> nn.Module:
    return nn.Sequential(_norm(nn.BatchNorm2d, 3, True), nn.Conv2d(3, 3, 3, padding=1))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Shared(), "shared"),
        (Elsewhere(), "used elsewhere"),
        (_padded(), "padded"),
        (nn.Sequential(nn.ReLU(), _norm(nn.BatchNorm2d, 3, True)), "no "),
    ],
)
def test_refusals_say_why_and_change_nothing(net: nn.Module, words: str) -> None:
    graph = trace(copy.deepcopy(net.eval()))
    assert graph is not None
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        want = net(x)
        records = fold(graph)
        assert records and all(not r.folded and words in r.reason for r in records)
        assert torch.equal(graph(x), want)


def test_no_running_statistics_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    graph = trace(net)
    assert graph is not None and "running statistics" in fold(graph)[0].reason


def test_timm_norm_with_activation_is_split() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4))
    perturb(net)
    net.eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        want = net(x)
        plain_layers(net)
        graph = trace(net)
        assert graph is not None and fold(graph)[0].folded
        assert relative_error(graph(x), want) <= 1e-6
