"""The two ends of the graph, which are the host's work: making integers of the input, floats of the result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from hw.fpga import ir
from hw.fpga.lower.convert import Context
from hw.fpga.lower.expr import Apply, Expr, Leaf, linear
from hw.fpga.lower.grids import join, summed
from hw.fpga.lower.labels import KEEPS_ORDER, select
from hw.fpga.lower.problems import CannotLower, Problem
from hw.fpga.lower.state import State

FLOAT = "@"  # leaves whose values are the model's float inputs carry this prefix
_HOST_UNARY = {"Relu", "Sigmoid", "Tanh"}


def start(context: Context, model: onnx.ModelProto, problems: list[Problem], poisoned: set[str]) -> None:
    """A float leaf for every model input."""
    for tensor in model.graph.input:
        if tensor.name in context.constants:
            continue
        shape = [d.dim_value for d in tensor.type.tensor_type.shape.dim]
        if len(shape) not in (2, 3, 4) or any(d < 1 for d in shape) or shape[0] != 1:
            problems.append(
                Problem(
                    tensor.name,
                    "input",
                    f"its shape {shape} is no [1, C], [1, C, L] or [1, C, H, W] with fixed sizes",
                    "export with a fixed batch of one",
                )
            )
            poisoned.add(tensor.name)
            continue
        spatial = {2: (1, 1), 3: (1, shape[-1]), 4: (shape[-2], shape[-1])}[len(shape)]
        context.states[tensor.name] = State.plain(Leaf(FLOAT + tensor.name), shape[1], spatial, len(shape))


def finish(
    context: Context, model: onnx.ModelProto, problems: list[Problem], poisoned: set[str], top_k: int = 0
) -> None:
    """Integer results and what the host does with them."""
    for tensor in model.graph.output:
        if tensor.name in poisoned:
            continue
        context.label = tensor.name
        if tensor.name not in context.states:
            what = (
                "it is a constant"
                if tensor.name in context.constants
                else "only the numbers of the largest channels leave the hardware, not their values"
            )
            problems.append(Problem(tensor.name, "output", what, "remove this output"))
            continue
        if tensor.name in context.samples:
            reason = "it is a deformable sample that no convolution follows"
            problems.append(
                Problem(tensor.name, "output", reason, "end the model behind the convolution of DeformConv2d")
            )
            continue
        try:
            _output(context, tensor.name, _largest(context.state(tensor.name), top_k))
        except CannotLower as error:
            problems.append(Problem(tensor.name, "output", error.reason, error.remedy))


def _output(context: Context, name: str, state: State) -> None:
    tensors, scales, offsets, tails = [], [], [], []
    for piece in state.pieces:
        expr, tail = _host_tail(piece.expr)
        expr = summed(context, expr)
        found = linear(expr)
        if found is None or len(found[0]) != 1:
            raise CannotLower(
                "what follows the last integers is more than a scale and an offset per channel",
                "end the model with a layer or a quantizer",
            )
        (leaf, scale), offset = next(iter(found[0].items())), found[1]
        if leaf.startswith(FLOAT):
            raise CannotLower("it is the model's input", "remove this output")
        tensors.append(leaf)
        scales.append(np.broadcast_to(scale, piece.channels))
        offsets.append(np.broadcast_to(offset, piece.channels))
        tails.append(tail)
    if any(t != tails[0] for t in tails):
        raise CannotLower("its parts end in different functions", "quantize the result")
    whole, after = join(context, tensors), (*tails[0], *state.after)
    if _label_select(context, name, state, whole, np.concatenate(scales), np.concatenate(offsets), after):
        return
    context.graph.outputs.append(
        ir.Output(
            whole,
            name,
            np.concatenate(scales),
            np.concatenate(offsets),
            state.stream_positions(),
            tuple(state.view.shape[1:]),
            after,
        )
    )


def _largest(state: State, top_k: int) -> State:
    """The state with a label select at its end, where one is asked for."""
    if not top_k:
        return state
    if state.after and state.after[-1][0] in ("ArgMax", "TopK"):
        raise CannotLower("it ends in labels already", "leave --top-k out")
    return replace(state, after=(*state.after, ("TopK", top_k)))


def _keeps_order(name: str, axis: int, rank: int) -> bool:
    """Whether a host function leaves the order of a pixel's channels as it is."""
    return name in KEEPS_ORDER and (name not in ("Softmax", "LogSoftmax") or axis % rank == 1)


def _label_select(
    context: Context,
    name: str,
    state: State,
    tensor: str,
    scale: np.ndarray,
    offset: np.ndarray,
    after: tuple[tuple[str, int], ...],
) -> bool:
    """Put ArgMax or TopK over channels at the output into hardware; False where there is none (or none over channels)."""
    if not after or after[-1][0] not in ("ArgMax", "TopK"):
        return False
    kind, value = after[-1]
    index, able = state.channel_index(), all(_keeps_order(n, a, state.rank) for n, a in after[:-1])
    if kind == "ArgMax" and (value % state.rank != 1 or index is None or not able):
        return False  # the host's
    if index is None or not able:
        raise CannotLower(
            "its largest channels are asked for behind a function that may make them equal", "remove that function"
        )
    k = 1 if kind == "ArgMax" else value
    made = select(context, tensor, scale, offset, index, k)
    h, w = state.spatial
    places = (h, w)[4 - state.rank :] if state.rank > 2 else ()
    order = np.arange(h * w * k).reshape(h * w, k).T.reshape(-1)
    shape = places if kind == "ArgMax" else (k, *places)
    context.graph.outputs.append(ir.Output(made, name, np.ones(k), np.zeros(k), order, shape, (), labels=True))
    return True


def _host_tail(expr: Expr) -> tuple[Expr, tuple[tuple[str, int], ...]]:
    """Split trailing activation functions off an expression."""
    tail: list[tuple[str, int]] = []
    while isinstance(expr, Apply) and expr.op in _HOST_UNARY:
        tail.insert(0, (expr.op, 0))
        expr = expr.args[0]
    return expr, tuple(tail)
