"""Deformable networks in hardware: the lowered graph against Brevitas, and the RTL against the lowered graph."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import exported, graph_of, prove, random_folds
from torch import Tensor, nn

import boards
from compress.api import compress
from compress.codenet.network import codenet
from compress.config import CompressConfig
from compress.deform import DeformConv2d
from deploy.data import Batch
from deploy.inputs import InputSpec
from export.torch2onnx import export_quantized
from hw.fpga import fold, ir, reference
from hw.fpga.blocks.base import Target
from hw.fpga.lower import lower


class Small(nn.Module):
    """One deformable layer with distances of every size between two convolutions."""

    def __init__(self, dense: bool, kernel: int, bound: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.deform = DeformConv2d(6, 6, kernel, depthwise=not dense, bound=bound)
        self.last = nn.Conv2d(6, 4, 1)
        nn.init.normal_(self.deform.offset.weight, 0, 2 * bound)
        nn.init.constant_(self.deform.offset.bias, bound / 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.deform(self.stem(x)))
        return out


def quantized(net: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    rows = [Batch((np.random.default_rng(seed + k).normal(size=(4, *shape)).astype(np.float32),)) for k in range(3)]
    return compress(net.eval(), CompressConfig(bits=4), inputs=(InputSpec("x", (1, *shape)),), calibration=rows).module


@torch.no_grad()
def exact(net: nn.Module, x: np.ndarray) -> np.ndarray:
    out: np.ndarray = net.double()(torch.from_numpy(x).double()).numpy()
    net.float()
    return out


@pytest.mark.parametrize(("dense", "kernel", "bound"), [(False, 3, 7), (False, 5, 2), (True, 3, 3), (False, 3, 1)])
def test_a_deformable_network(dense: bool, kernel: int, bound: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = quantized(Small(dense, kernel, bound), (3, 18, 10))
    graph = graph_of(exported(net, (3, 18, 10)))
    (layer,) = (n for n in graph.nodes if isinstance(n.op, ir.Conv) and n.op.bound)
    assert len(layer.inputs) == 2
    x = np.random.default_rng(5).normal(size=(6, 3, 18, 10)).astype(np.float32)
    values = reference.execute(graph, reference.quantize(graph, [x]))
    assert {0, bound} <= set(np.unique(values[layer.inputs[1]]).tolist())
    want = exact(net, x)
    assert np.abs(reference.run(graph, [x])[0] - want).max() <= 1e-4 * np.abs(want).max()
    rng, target = random.Random(kernel), Target()
    prove(graph, random_folds(graph, rng, target), target, tmp_path / "w", frames=3)


def test_a_detector(tmp_path: Path) -> None:
    """The whole of a small CoDeNet: split, shuffle, concatenation, upsampling, three deformable levels, three heads."""
    torch.manual_seed(0)
    net = codenet("small", 10, resolution=32)
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, DeformConv2d):
            nn.init.normal_(m.offset.weight, 0, 2 / m.offset.in_channels**0.5)
            nn.init.constant_(m.offset.bias, 2.5)
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(8, 3, 32, 32))
    module = quantized(net, (3, 32, 32))
    model = export_quantized(module, net.inputs)[0]
    lowered = lower(model)
    assert not lowered.problems
    kinds = [n.kind for n in lowered.graph.nodes]
    # one scale per shuffle stage: nothing is requantized between split and concatenation
    assert kinds.count("Concat") == 9 and kinds.count("Scale") + kinds.count("Thresholds") == 50
    x = np.random.default_rng(5).normal(size=(2, 3, 32, 32)).astype(np.float32)
    want = exact(module, x)
    got = reference.run(lowered.graph, [x])[0]
    assert want.std() > 0.05
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    part = boards.get("ultra96-v2")
    found = fold.search(lowered.graph, part, 40_000)
    prove(lowered.graph, found.folds, fold.target_of(part), tmp_path / "w", frames=2)


def test_refusals() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.deform = DeformConv2d(4, 4, bound=20)
            nn.init.normal_(self.deform.offset.weight, 0, 20)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.deform(self.stem(x))
            return out

    lowered = lower(exported(quantized(Wide(), (3, 8, 8)), (3, 8, 8)))
    assert any("integers from 0 to 15" in p.reason for p in lowered.problems)
