"""Logic cells of a model by the bits of its layers, as the folding search estimates them: a cost of `deploy compress --budget`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from boards.board import Board
from deploy.inputs import InputSpec
from export.torch2onnx import export_quantized
from hw.fpga import fold, ir, reference
from hw.fpga.checks import board_of, check_folding, interval_of
from hw.fpga.config import BuildConfig
from hw.fpga.lower import lower
from hw.fpga.lower.problems import refuse

ANY_SPEED = 1 << 50  # cycles a frame: the smallest design


def luts(module: nn.Module, specs: Sequence[InputSpec], board: str, fps: float) -> Callable[[dict[str, int]], float]:
    """A function: bits by layer -> LUTs (six-input) of the design for `board` at `fps` frames per second (0: of the smallest).

    module: the model quantized to 8 bits. The same graph serves for all widths, with weights cut to theirs. Raises UserError
    where the board or an operator is none for hardware, BoundError where the frame rate is out of reach.
    """
    part: Board = board_of(BuildConfig(board=board))
    lowered = lower(export_quantized(module, list(specs))[0])
    refuse(lowered.problems, "the model")
    clock = part.clocks_mhz[0]
    interval = interval_of(BuildConfig(target_fps=fps), clock) or ANY_SPEED

    def count(bits: dict[str, int]) -> float:
        graph = narrowed(lowered.graph, bits)
        found = fold.search(graph, part, interval)
        if found.interval > interval:
            check_folding(found, graph, interval, part, clock, fps)
        return found.lut

    return count


def narrowed(graph: ir.Graph, bits: dict[str, int]) -> ir.Graph:
    """The graph with the weights of the layers named scaled to their bits, and accumulators as wide as they then are."""
    made = ir.Graph(graph.inputs, list(graph.nodes), graph.outputs, dict(graph.tensors))
    for node in graph.nodes:
        width = bits.get(node.label)
        if not isinstance(node.op, ir.Conv) or width is None or width >= node.op.weight_bits:
            continue
        high, old = (1 << (width - 1)) - 1, (1 << (node.op.weight_bits - 1)) - 1
        weight = (node.op.weight * high / old).round().astype(node.op.weight.dtype)
        op = replace(node.op, weight=weight, weight_bits=width)
        made.replace_node(node, op=op)
        made.tensors[node.output] = reference.result(op, [graph.tensors[t] for t in node.inputs])
    return made
