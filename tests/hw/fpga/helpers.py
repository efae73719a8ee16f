"""What the FPGA tests share: exporting a network, building and simulating a graph."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import boards
from bench.networks import NAMED, Net, one_node, random_network
from deploy.inputs import InputSpec
from export.torch2onnx import export_quantized
from hw.fpga import fold, ir, simulate
from hw.fpga.assemble import assemble, layer_of
from hw.fpga.blocks import blocks
from hw.fpga.blocks.base import Fold, Target
from hw.fpga.lower import lower

__all__ = ["one_node"]  # for the tests


def exported(net: torch.nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    return export_quantized(net, [InputSpec("x", (1, *shape), "float32")])[0]


@cache
def network(name: str, **_: Any) -> tuple[Net, onnx.ModelProto]:
    """A named or (by number) random network with its QONNX file."""
    net = random_network(int(name)) if name.isdigit() else NAMED[name]()
    return net, exported(net, net.shape)


def graph_of(model: onnx.ModelProto) -> ir.Graph:
    lowered = lower(model)
    assert not lowered.problems, [str(p) for p in lowered.problems]
    return lowered.graph


def data(net: Net, count: int, seed: int = 0) -> np.ndarray:
    x = torch.rand(count, *net.shape, generator=torch.Generator().manual_seed(seed + 7))
    return (x * 2 - 1 if net.input.spec.signed else x).numpy()


@torch.no_grad()
def brevitas(net: Net, x: np.ndarray) -> np.ndarray:
    """The Brevitas model in float64: rounding ties are then those of the mathematics."""
    out = net.double()(torch.from_numpy(x).double()).numpy()
    net.float()
    return out


def random_folds(graph: ir.Graph, rng: random.Random, target: Target) -> dict[str, Fold]:
    return {n.name: rng.choice(blocks()[n.kind].folds(layer_of(graph, n), target)) for n in graph.nodes}


def prove(
    graph: ir.Graph, folds: dict[str, Fold], target: Target, work: Path, frames: int = 4, seed: int = 0
) -> simulate.Measured:
    """Size the FIFOs, simulate with and without stalls; raises BoundError when one integer differs."""
    shutil.rmtree(work, ignore_errors=True)
    depths = simulate.size_fifos(graph, folds, target, work / "size", seed) if len(graph.nodes) > 1 else {}
    net = assemble(graph, folds, target, depths)
    measured, _ = simulate.verify(graph, net, simulate.random_inputs(graph, frames, seed + 1), work / "verify", seed)
    return measured


def build(name: str, board: str, work: Path, fps_interval: int | None = None) -> simulate.Measured:
    """A network on a board as `deploy build` folds it."""
    graph = graph_of(network(name)[1])
    part = boards.get(board)
    found = fold.search(graph, part, fps_interval)
    assert found.fits
    return prove(graph, found.folds, fold.target_of(part), work)
