"""Label select: which channel is the largest, in hardware, and that it is the float model's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import brevitas, data, exported, graph_of, network, prove, random_folds
from torch import Tensor

from bench.networks import NAMED, Net
from hw.fpga import ir, reference
from hw.fpga.blocks.base import Target
from hw.fpga.lower import lower


class Labels(torch.nn.Module):
    """A network that ends in labels. how: argmax, topk, softmax."""

    def __init__(self, net: Net, how: str) -> None:
        super().__init__()
        self.net, self.how = net, how
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        if self.how == "softmax":
            y = y.softmax(1)
        return y.topk(3, 1).indices if self.how == "topk" else y.argmax(1)


@pytest.mark.parametrize("name", ["mlp", "encoder-decoder", "mobilenet-v1"])
@pytest.mark.parametrize("how", ["argmax", "topk", "softmax"])
def test_labels_are_the_models(name: str, how: str) -> None:
    """Per-channel weight scales and biases at the end: scores are compared on a common grid."""
    net, _ = network(name)
    graph = graph_of(exported(Labels(net, how), net.shape))
    assert graph.outputs[0].labels
    assert [n.kind for n in graph.nodes][-1] == "TopK"
    x = data(net, 40)
    scores = brevitas(net, x)
    got = reference.run(graph, [x])[0]
    got = got if how == "topk" else got[:, None]
    want = np.argsort(-scores, axis=1, kind="stable")[:, : 3 if how == "topk" else 1]
    assert got.dtype == np.int64 and got.shape == want.shape
    assert len(np.unique(want)) > 1
    picked, best = (np.take_along_axis(scores, v, axis=1) for v in (got, want))
    assert np.abs(picked - best).max() <= 1e-5 * np.abs(scores).max()  # the same, or as large
    assert (got == want).mean() > 0.99


def test_top_k_is_asked_for_at_the_build(tmp_path: Path) -> None:
    net, model = network("mlp")
    lowered = lower(model, top_k=2)
    assert not lowered.problems
    graph = lowered.graph
    x = data(net, 20)
    want = np.argsort(-brevitas(net, x), axis=1, kind="stable")[:, :2]
    assert np.array_equal(reference.run(graph, [x])[0], want)
    target = Target(25, 18)
    prove(graph, random_folds(graph, random.Random(1), target), target, tmp_path / "w")


def test_refusals() -> None:
    net, model = network("mlp")
    assert "lower k" in str(lower(model, top_k=99).problems[0])
    twice = exported(Labels(net, "argmax"), net.shape)
    assert "leave --top-k out" in str(lower(twice, top_k=1).problems[0])


def test_other_axes_stay_with_the_host() -> None:
    class Rows(Labels):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).argmax(2)

    class Softened(Labels):
        """A softmax over rows changes which channel is the largest."""

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).softmax(2).argmax(1)

    net = NAMED["encoder-decoder"]()
    x = data(net, 3)
    scores = brevitas(net, x)
    soft = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    for kind, want in ((Rows, scores.argmax(2)), (Softened, soft.argmax(1))):
        model: onnx.ModelProto = exported(kind(net, ""), net.shape)
        graph = lower(model).graph
        assert not any(isinstance(n.op, ir.TopK) for n in graph.nodes)
        assert (reference.run(graph, [x])[0] == want).mean() > 0.999
    assert (soft.argmax(1) != scores.argmax(1)).mean() > 0.1
