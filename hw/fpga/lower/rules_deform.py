"""Deformable convolutions: SquareSample (export/square_sample.py) and the convolution behind it become one operation."""

from __future__ import annotations

from typing import Any

import onnx

from hw.fpga import ir
from hw.fpga.lower.convert import Context, Grid, rule
from hw.fpga.lower.expr import times
from hw.fpga.lower.grids import as_grid
from hw.fpga.lower.problems import CannotLower
from hw.fpga.lower.state import State

MOST_DISTANCE = 15  # 32 rows of buffer for a 3x3 kernel


@rule("SquareSample")
def square_sample(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """The blocks are kept aside for the convolution behind them, which reads both tensors."""
    kernel = int(attributes.get("kernel", 0))
    if kernel not in (3, 5, 7) or len(node.input) != 2 or not all(n in context.states for n in node.input):
        raise CannotLower("it has no kernel of 3, 5 or 7, or not two computed inputs", "export the model again")
    tensor, unit, _, state = as_grid(context, context.state(node.input[0]))
    distance, step, _, _ = as_grid(context, context.state(node.input[1]))
    made = context.graph.tensors[distance]
    if step != 1.0 or made.low < 0 or made.channels != 1 or made.high > MOST_DISTANCE:
        raise CannotLower(
            f"its distances are not integers from 0 to {MOST_DISTANCE}",
            "use DeformConv2d with square=True, integer=True and a bound",
        )
    if made.shape[:2] != state.spatial:
        raise CannotLower("its image and its distances differ in size", "give one distance per place")
    context.samples[node.output[0]] = (tensor, distance, kernel)
    spatial = (state.spatial[0] * kernel, state.spatial[1] * kernel)
    context.states[node.output[0]] = State.plain(times(tensor, unit), state.channels, spatial, 4)


def deformable(context: Context, node: onnx.NodeProto, attributes: dict[str, Any], grid: Grid, groups: int) -> str:
    """The convolution behind a sample; its kernel and stride are the sample's. Returns the tensor of its accumulators."""
    tensor, distance, kernel = context.samples[node.input[0]]
    channels, bound = context.graph.tensors[tensor].channels, context.graph.tensors[distance].high
    shape = (
        tuple(grid.integers.shape[2:]),
        tuple(attributes.get("strides") or (1, 1)),
        tuple(attributes.get("dilations") or (1, 1)),
    )
    if shape != ((kernel, kernel), (kernel, kernel), (1, 1)) or any(attributes.get("pads") or ()):
        raise CannotLower(
            "it reads deformable samples in another way than kernel by kernel", "keep the convolution of DeformConv2d"
        )
    if groups not in (1, channels) or (groups > 1 and len(grid.integers) != groups):
        raise CannotLower("it is grouped, or has several filters per channel", "use a dense or a depthwise convolution")
    weight = grid.integers.transpose(0, 2, 3, 1)
    op = ir.Conv(weight, ir.Window((kernel, kernel)), groups, grid.bits, max(1, bound))
    return context.emit(op, [tensor, distance])
