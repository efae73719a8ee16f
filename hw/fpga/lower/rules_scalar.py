"""Rules of the elementwise operators: they only make expressions longer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from hw.fpga.lower.convert import Context, rule
from hw.fpga.lower.expr import Apply, Const, Expr
from hw.fpga.lower.grids import materialize
from hw.fpga.lower.problems import CannotLower
from hw.fpga.lower.state import State


@rule("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "HardSwish", "Exp", "Floor", "Round", "Softplus", "Elu", "Gelu", "Mish")
def unary(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    if node.op_type == "Elu" and attributes.get("alpha", 1.0) != 1.0:
        raise CannotLower("its alpha is not 1", "use ReLU")
    context.states[node.output[0]] = state.with_exprs([Apply(node.op_type, (p.expr,)) for p in state.pieces])


@rule("HardSigmoid")
def hard_sigmoid(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    a, b = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    made: list[Expr] = []
    for p in state.pieces:
        line = Apply("Add", (Apply("Mul", (p.expr, Const(np.array(a)))), Const(np.array(b))))
        made.append(Apply("Clip", (line,), 0.0, 1.0))
    context.states[node.output[0]] = state.with_exprs(made)


@rule("Cast")
def cast(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    if int(attributes.get("to", 1)) not in (1, 10, 11, 16):
        raise CannotLower("it turns floats into integers by cutting them off", "use a quantizer")
    context.states[node.output[0]] = context.state(node.input[0])


@rule("Identity", "Dropout")
def same(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    context.states[node.output[0]] = context.state(node.input[0])


@rule("Clip")
def clip(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    given = [float(context.constant(n).reshape(())) if n else None for n in node.input[1:]] + [None, None]
    low = given[0] if given[0] is not None else float(attributes.get("min", -np.inf))
    high = given[1] if given[1] is not None else float(attributes.get("max", np.inf))
    context.states[node.output[0]] = state.with_exprs([Apply("Clip", (p.expr,), low, high) for p in state.pieces])


@rule("LeakyRelu")
def leaky(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    slope = float(attributes.get("alpha", 0.01))
    context.states[node.output[0]] = state.with_exprs([Apply("LeakyRelu", (p.expr,), slope) for p in state.pieces])


@rule("PRelu")
def prelu(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    slopes = np.unique(context.constant(node.input[1]))
    if len(slopes) != 1:
        raise CannotLower("its slope differs by channel", "use one slope (LeakyReLU)")
    state = context.state(node.input[0])
    context.states[node.output[0]] = state.with_exprs(
        [Apply("LeakyRelu", (p.expr,), float(slopes[0])) for p in state.pieces]
    )


@rule("BatchNormalization")
def batch_norm(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    state = context.state(node.input[0])
    gamma, beta, mean, var = (context.constant(n).astype(np.float64) for n in node.input[1:5])
    shape = (1, -1) + (1,) * (state.rank - 2)
    slope = gamma / np.sqrt(var + float(attributes.get("epsilon", 1e-5)))
    means, slopes, betas = (state.per_channel(v.reshape(shape)) for v in (mean, slope, beta))
    made: list[Expr] = []
    for p, m, s, b in zip(state.pieces, means, slopes, betas, strict=True):
        centred = Apply("Sub", (p.expr, Const(m)))
        made.append(Apply("Add", (Apply("Mul", (centred, Const(s))), Const(b))))
    context.states[node.output[0]] = state.with_exprs(made)


@rule("Add", "Sub", "Mul", "Div")
def binary(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    a, b = node.input
    if a in context.constants or b in context.constants:
        state = context.state(b if a in context.constants else a)
        values = state.per_channel(context.constants[a] if a in context.constants else context.constants[b])
        made: list[Expr] = []
        for p, v in zip(state.pieces, values, strict=True):
            made.append(Apply(node.op_type, (Const(v), p.expr) if a in context.constants else (p.expr, Const(v))))
        context.states[node.output[0]] = state.with_exprs(made)
        return
    first, second = context.state(a), context.state(b)
    if first.view.shape != second.view.shape:
        raise CannotLower(
            "it combines tensors of different shapes (a squeeze-and-excite gate?)", "use a network without such gates"
        )
    if first.bounds != second.bounds or not np.array_equal(first.view, second.view):
        first, second = (_aligned(context, s) for s in (first, second))
        first, second = _cut(context, first, second), _cut(context, second, first)
    both = zip(first.pieces, second.pieces, strict=True)
    context.states[node.output[0]] = first.with_exprs([Apply(node.op_type, (p.expr, q.expr)) for p, q in both])


def _aligned(context: Context, state: State) -> State:
    return materialize(context, state)[0]


def _cut(context: Context, state: State, other: State) -> State:
    """The state with its pieces cut where those of the other end."""
    from hw.fpga.lower.expr import times
    from hw.fpga.lower.grids import as_grid

    if state.bounds == other.bounds:
        return state
    ends = sorted({e for _, e in (*state.bounds, *other.bounds)})
    if [e for _, e in state.bounds] == ends:
        return state
    tensor, unit, _, plain = as_grid(context, state)
    whole = State.plain(times(tensor, unit), plain.channels, plain.spatial, plain.rank)
    parts, begin = [], 0
    for end in ends:
        view = whole.view[:, begin:end]
        parts.append(materialize(context, replace(whole, view=view))[0].pieces[0])
        begin = end
    return State.of(tuple(parts), plain.spatial, plain.rank)


@rule("Softmax", "ArgMax", "LogSoftmax")
def host_function(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Left to the host; only the output may follow."""
    state = context.state(node.input[0])
    axis = int(attributes.get("axis", -1 if node.op_type != "ArgMax" else 0))
    if node.op_type == "ArgMax" and attributes.get("keepdims", 1):
        raise CannotLower("it keeps the reduced axis", "use keepdim=False, or leave ArgMax to the caller")
    context.states[node.output[0]] = replace(state, after=(*state.after, (node.op_type, axis)))


@rule("TopK")
def top_k(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """The numbers of the largest channels; their values stay inside."""
    state = context.state(node.input[0])
    rank = state.rank
    if int(attributes.get("axis", -1)) % rank != 1 or not attributes.get("largest", 1):
        raise CannotLower("it is not the largest of the channels that it looks for", "take the largest along axis 1")
    k = int(context.constant(node.input[1]).reshape(-1)[0])
    context.states[node.output[1]] = replace(state, after=(*state.after, ("TopK", k)))
