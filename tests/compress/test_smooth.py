"""Channel equalization keeps the function, takes exactly the groups that its rules allow, and helps."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compress
from compress import CompressConfig
from compress.graph import relative_error, trace
from compress.quantize.smooth import groups, smooth
from deploy.data import Batch
from deploy.inputs import InputSpec


class Bottleneck(nn.Module):
    """expand -> act -> depthwise -> act -> project, with a residual sum; channel ranges spread over two decades,
    which the layers that read them undo."""

    def __init__(self, act: type[nn.Module], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.expand, self.depth = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
        )
        self.project, self.head, self.act = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 5, 1), act()
        with torch.no_grad():
            for layer in (self.stem, self.project):
                layer.weight *= torch.logspace(-1, 1, 6)[:, None, None, None]
            for layer in (self.expand, self.head):
                layer.weight *= torch.logspace(1, -1, 6)[None, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.act(self.depth(self.act(self.expand(x)))))
        return self.head(x).mean((2, 3))


@settings(max_examples=20, deadline=None)
@given(relu6=st.booleans(), seed=st.integers(0, 99))
def test_function_is_kept(relu6: bool, seed: int) -> None:
    net = Bottleneck(nn.ReLU6 if relu6 else nn.ReLU, seed).eval()
    graph = trace(net)
    assert graph is not None
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        want = graph(x)
        assert smooth(graph, [(x,)]) == (1 if relu6 else 3)
        assert relative_error(graph(x), want) < 1e-5


def test_groups() -> None:
    graph = trace(Bottleneck(nn.ReLU6).eval())
    assert graph is not None
    (group,) = groups(graph)
    assert {str(n.target) for n in group.producers} == {"stem", "project"}
    assert {str(n.target) for n in group.consumers} == {"expand", "head"}


def test_it_helps() -> None:
    rng = np.random.default_rng(0)
    batches = [Batch((rng.standard_normal((32, 3, 8, 8), dtype=np.float32),))]
    figures = {}
    for choice in ("auto", "off"):
        config = CompressConfig(bits=8, equalize=choice)
        figures[choice] = compress.compress(
            Bottleneck(nn.ReLU6).eval(), config, inputs=(InputSpec("input", (1, 3, 8, 8)),), calibration=batches
        ).record["accuracy"]["sqnr_db"]
    assert figures["auto"] > figures["off"] + 0.5, figures
