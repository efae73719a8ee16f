"""Rules of the operators that do the work: convolutions, linear layers, pooling, upsampling, quantizers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from hw.fpga import ir
from hw.fpga.lower import fit
from hw.fpga.lower.convert import Context, Grid, quant_range, round_by, rule
from hw.fpga.lower.ends import FLOAT
from hw.fpga.lower.expr import Apply, Const, Expr, Leaf, direction, leaves, linear, substitute, times
from hw.fpga.lower.grids import Quantizer, as_grid, join, materialize, summed
from hw.fpga.lower.problems import CannotLower
from hw.fpga.lower.rules_deform import deformable
from hw.fpga.lower.state import Piece, State


def _weight(context: Context, name: str) -> Grid:
    if name in context.grids:
        return context.grids[name]
    if name in context.constants:
        raise CannotLower(
            "its weight is float", "quantize this layer (compress --bits; a --layer rule may have left it out)"
        )
    raise CannotLower("its weight is computed at run time", "replace the product of two activations by a layer")


def _per_output(grid: Grid, axis: int) -> np.ndarray:
    """The scale of a weight as [] or [out]."""
    if grid.scale.size == 1:
        return grid.scale.reshape(())
    if grid.scale.ndim != grid.integers.ndim or grid.scale.shape[axis] != grid.scale.size:
        raise CannotLower(
            "its weight scale is neither one number nor one per output channel",
            "use per-channel or per-tensor weight scales",
        )
    return grid.scale.reshape(-1)


def window_of(attributes: dict[str, Any], spatial: tuple[int, int], rank: int, kernel: tuple[int, ...]) -> ir.Window:
    """The geometry of a convolution or pooling node, 1-D as height 1. Handles auto_pad and ceil_mode."""

    def two(values: Any, default: int) -> tuple[int, int]:
        values = tuple(values or (default,) * (rank - 2))
        return (default, int(values[0])) if rank == 3 else (int(values[0]), int(values[1]))

    size, stride, dilation = two(kernel, 1), two(attributes.get("strides"), 1), two(attributes.get("dilations"), 1)
    pads = list(attributes.get("pads") or [0] * 2 * (rank - 2))
    top, left, bottom, right = (0, pads[0], 0, pads[1]) if rank == 3 else pads
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        both = []
        for n, k, s, d in zip(spatial, size, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            half = total // 2
            both.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
        (top, bottom), (left, right) = both
    if attributes.get("ceil_mode"):
        for axis in (0, 1):
            before, after = ((top, bottom), (left, right))[axis]
            span = (size[axis] - 1) * dilation[axis] + 1
            rest = (spatial[axis] + before + after - span) % stride[axis]
            extra = stride[axis] - rest if rest else 0
            steps = (spatial[axis] + before + after + extra - span) // stride[axis]
            if extra and steps * stride[axis] < spatial[axis] + before:  # the last window must start inside
                if axis == 0:
                    bottom += extra
                else:
                    right += extra
    window = ir.Window(size, stride, dilation, (top, left, bottom, right))
    if min(window.output(*spatial)) < 1:
        raise CannotLower("its window is larger than its input", "check the input shape of the export")
    return window


@rule("Conv")
def conv(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Convolution of a grid by integers: an accumulator, then its scale and bias as an expression."""
    grid = _weight(context, node.input[1])
    groups = int(attributes.get("group", 1))
    if node.input[0] in context.samples:
        _, unit, _, _ = as_grid(context, context.state(node.input[0]))
        _accumulator(context, node, deformable(context, node, attributes, grid, groups), unit, grid, 4)
        return
    source = context.state(node.input[0])
    if source.rank not in (3, 4):
        raise CannotLower("only 1-D and 2-D convolutions have hardware blocks", "reshape to [N, C, H, W]")
    tensor, unit, index, state = as_grid(context, source, permutation_ok=groups == 1)
    window = window_of(attributes, state.spatial, source.rank, grid.integers.shape[2:])
    weight = grid.integers if grid.integers.ndim == 4 else grid.integers[:, :, None, :]
    weight = weight.transpose(0, 2, 3, 1)
    if index is not None:
        placed = np.zeros_like(weight)
        placed[..., index] = weight
        weight = placed
    out = _convolve(context, tensor, weight, window, groups, grid.bits)
    _accumulator(context, node, out, unit, grid, source.rank)


def _accumulator(context: Context, node: onnx.NodeProto, out: str, unit: float, grid: Grid, rank: int) -> None:
    """The state of a convolution's result: integers times their scale, plus the bias."""
    expr: Expr = times(out, unit * _per_output(grid, 0))
    if len(node.input) > 2 and node.input[2]:
        expr = Apply("Add", (expr, Const(np.asarray(context.constant(node.input[2]), np.float64).reshape(-1))))
    shape = context.graph.tensors[out].shape
    context.states[node.output[0]] = State.plain(expr, shape[2], shape[:2], rank)


def _convolve(context: Context, tensor: str, weight: np.ndarray, window: ir.Window, groups: int, bits: int) -> str:
    channels = context.graph.tensors[tensor].channels
    if groups == 1:
        return context.emit(ir.Conv(weight, window, 1, bits), [tensor])
    if groups == channels:
        multiple = len(weight) // groups
        if multiple > 1:
            tensor = context.emit(ir.Gather(tuple(int(i) for i in np.repeat(np.arange(channels), multiple))), [tensor])
        return context.emit(ir.Conv(weight, window, len(weight), bits), [tensor])
    parts, span = [], channels // groups
    for g, rows in enumerate(np.split(weight, groups)):
        part = context.emit(ir.Gather(tuple(range(g * span, (g + 1) * span))), [tensor])
        parts.append(context.emit(ir.Conv(rows, window, 1, bits), [part]))
    return context.emit(ir.Concat(), parts)


@rule("Gemm", "MatMul")
def linear_layer(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """A linear layer on a vector: a convolution of one pixel; flattening and shuffles are folded into its columns."""
    source = context.state(node.input[0]) if node.input[0] in context.states else None
    grid = _weight(context, node.input[1])
    if source is None or source.view.size != source.view.shape[-1] or attributes.get("transA"):
        raise CannotLower(
            "it is no product of one vector per sample with a stored matrix",
            "flatten to [N, features] before linear layers",
        )
    rows = grid.integers if attributes.get("transB") else grid.integers.T
    scale = _per_output(grid, 0 if attributes.get("transB") else 1)
    if attributes.get("alpha", 1.0) != 1.0:
        scale = scale * attributes["alpha"]
    positions = source.stream_positions()
    base = State.of(source.pieces, source.spatial, 4)
    tensor, unit, _, _ = as_grid(context, base)
    columns = np.zeros((len(rows), base.channels * base.spatial[0] * base.spatial[1]), np.int64)
    np.add.at(columns.T, positions, rows.T)
    if base.spatial != (1, 1):
        key = ("flatten", tensor)
        if key not in context.made:
            context.made[key] = context.emit(ir.Flatten(), [tensor])
        tensor = context.made[key]
    out = context.emit(ir.Conv(columns[:, None, None, :], ir.Window(), 1, grid.bits), [tensor])
    expr: Expr = times(out, unit * scale)
    if len(node.input) > 2 and node.input[2]:
        bias = np.asarray(context.constant(node.input[2]), np.float64).reshape(-1) * attributes.get("beta", 1.0)
        expr = Apply("Add", (expr, Const(bias)))
    made = State.plain(expr, len(rows), (1, 1), 2)
    context.states[node.output[0]] = State(made.pieces, (1, 1), made.view.reshape(*source.view.shape[:-1], len(rows)))


def _replace_leaves(context: Context, state: State, op: ir.Op, spatial: tuple[int, int], divide: float = 1.0) -> State:
    """The same expressions over `op` applied to every tensor that they read."""
    exprs = []
    for piece in state.pieces:
        names: dict[str, Expr] = {}
        for leaf in leaves(piece.expr):
            if leaf.startswith(FLOAT):
                raise CannotLower("it works on the model's float input", "put a quantizer on the model's input")
            key = (type(op).__name__, repr(op), leaf)
            if key not in context.made:
                context.made[key] = context.emit(op, [leaf])
            new: Expr = Leaf(context.made[key])
            names[leaf] = new if divide == 1 else Apply("Div", (new, Const(np.array(divide))))
        exprs.append(substitute(piece.expr, names))
    return State.of(state.with_exprs(exprs).pieces, spatial, state.rank)


@rule("MaxPool", "GlobalMaxPool", "ReduceMax")
def max_pool(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """The maximum commutes with functions that never fall."""
    state, _ = materialize(context, context.state(node.input[0]))
    state = state.with_exprs([summed(context, p.expr) for p in state.pieces])
    state = state.with_exprs(
        [_rising(context, p.expr, leaves(p.expr)[0])[0] if len(leaves(p.expr)) == 1 else p.expr for p in state.pieces]
    )
    for piece in state.pieces:
        ways = [direction(piece.expr, n) for n in leaves(piece.expr)]
        if len(ways) != 1 or ways[0] is None or np.any(ways[0] < 0):
            raise CannotLower(
                "the function in front of it does not only rise", "put a quantizer in front of the pooling"
            )
    if node.op_type == "MaxPool":
        window = window_of(attributes, state.spatial, state.rank, attributes["kernel_shape"])
        op: ir.Op = ir.Pool("max", window)
        spatial = window.output(*state.spatial)
    else:
        _check_all_pixels(context, node, attributes, state)
        op, spatial = ir.GlobalPool("max"), (1, 1)
    made = _replace_leaves(context, state, op, spatial)
    context.states[node.output[0]] = (
        made if node.op_type != "ReduceMax" or attributes.get("keepdims", 1) else _drop_pixels(made)
    )


def _drop_pixels(state: State) -> State:
    """[1, C, 1, 1] as [1, C]."""
    return State(state.pieces, state.spatial, state.view.reshape(1, -1))


def _check_all_pixels(context: Context, node: onnx.NodeProto, attributes: dict[str, Any], state: State) -> None:
    if not node.op_type.startswith("Reduce"):
        return
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = context.constant(node.input[1]).reshape(-1).tolist()
    wanted = set(range(2, state.rank))
    if axes is None or {int(a) % state.rank for a in axes} != wanted or not wanted:
        raise CannotLower("it reduces other axes than height and width", "use global pooling over height and width")


@rule("AveragePool", "GlobalAveragePool", "ReduceMean")
def average_pool(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Integers are summed, the division joins the expression; right because the expression is linear."""
    state, _ = materialize(context, context.state(node.input[0]))
    keep = bool(attributes.get("keepdims", 1))
    for piece in state.pieces:
        if linear(piece.expr) is None:
            raise CannotLower(
                "a nonlinear function stands between the last integers and it",
                "put a quantizer in front of the pooling",
            )
    if node.op_type == "AveragePool":
        window = window_of(attributes, state.spatial, state.rank, attributes["kernel_shape"])
        padded = any(window.pads)
        if padded and (not attributes.get("count_include_pad") or attributes.get("ceil_mode")):
            raise CannotLower("its divisor changes at the border", "use count_include_pad=True, or no padding")
        if padded and any(np.any(linear(p.expr)[1]) for p in state.pieces):  # type: ignore[index]
            raise CannotLower(
                "padding and an unquantized bias in front of it do not commute",
                "put a quantizer in front of the pooling",
            )
        made = _replace_leaves(context, state, ir.Pool("sum", window), window.output(*state.spatial), window.size)
    else:
        _check_all_pixels(context, node, attributes, state)
        made = _replace_leaves(context, state, ir.GlobalPool("sum"), (1, 1), state.spatial[0] * state.spatial[1])
    context.states[node.output[0]] = made if keep else _drop_pixels(made)


@rule("Resize", "Upsample")
def resize(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Nearest neighbour by an integer factor."""
    state, _ = materialize(context, context.state(node.input[0]))
    how = (
        attributes.get("mode", "nearest"),
        attributes.get("coordinate_transformation_mode", "half_pixel"),
        attributes.get("nearest_mode", "round_prefer_floor"),
    )
    allowed = how[1:] in (
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("pytorch_half_pixel", "round_prefer_floor"),
    )
    if node.op_type == "Upsample":
        allowed = True
    rest = [context.constant(n) for n in node.input[1:] if n]
    rest = [r for r in rest if r.size == state.rank]
    if how[0] != "nearest" or not allowed or not rest:
        raise CannotLower(
            f"its interpolation ({', '.join(how)}) has no hardware block", "use nearest upsampling by an integer factor"
        )
    sizes = state.view.shape
    factors = [float(v) if rest[-1].dtype.kind == "f" else v / s for v, s in zip(rest[-1], sizes, strict=True)]
    whole = [round(f) for f in factors]
    if any(abs(f - w) > 1e-6 or w < 1 for f, w in zip(factors, whole, strict=True)) or whole[0] != 1 or whole[1] != 1:
        raise CannotLower(
            "its factor is no integer over height and width", "use nearest upsampling by an integer factor"
        )
    factor = (1, whole[2]) if state.rank == 3 else (whole[2], whole[3])
    spatial = (state.spatial[0] * factor[0], state.spatial[1] * factor[1])
    context.states[node.output[0]] = _replace_leaves(context, state, ir.Upsample(factor), spatial)


@rule("Pad")
def pad(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Zeros around an image."""
    source = context.state(node.input[0])
    amounts = [int(v) for v in (context.constant(node.input[1]) if len(node.input) > 1 else attributes["pads"])]
    value = float(context.constant(node.input[2]).reshape(())) if len(node.input) > 2 and node.input[2] else 0.0
    half = len(amounts) // 2
    if (
        attributes.get("mode", "constant") != "constant"
        or value != 0
        or half != 4
        or any(amounts[i] for i in (0, 1, 4, 5))
        or min(amounts) < 0
    ):
        raise CannotLower("it pads with something else than zeros around an image", "use zero padding")
    tensor, unit, _, state = as_grid(context, source)
    window = ir.Window(pads=(amounts[2], amounts[3], amounts[6], amounts[7]))
    out = context.emit(ir.Pool("sum", window), [tensor])
    context.states[node.output[0]] = State.plain(times(out, unit), state.channels, window.output(*state.spatial), 4)


@rule("Quant")
def quant(context: Context, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """An activation quantizer: the float region in front of it becomes integers."""
    scale, zero, bits = (context.constant(n).astype(np.float64).reshape(-1) for n in node.input[1:4])
    if len(np.unique(scale)) != 1 or len(np.unique(zero)) != 1 or not scale[0] > 0 or zero[0] != int(zero[0]):
        raise CannotLower("its scale is not one positive number per tensor", "use per-tensor activation scales")
    low, high = quant_range(attributes, float(bits[0]))
    quantize = Quantizer(float(scale[0]), low, high, float(zero[0]), round_by(attributes.get("rounding_mode", "ROUND")))
    state = context.state(node.input[0])
    if not np.array_equal(np.sort(state.view.ravel()), np.arange(state.view.size)):
        state, _ = materialize(context, state)
    bounds = (low - int(zero[0]), high - int(zero[0]))
    exprs: list[Expr] = []
    for piece in state.pieces:
        name = _quantize(context, piece.expr, piece.channels, quantize, bounds, state, node.input[0])
        exprs.append(times(name, quantize.unit))
    made = state.with_exprs(exprs)
    if len(exprs) > 1:
        whole = times(join(context, [leaves(e)[0] for e in exprs]), quantize.unit)
        made = replace(made, pieces=(Piece(whole, state.channels),))
    context.states[node.output[0]] = made


def _quantize(
    context: Context, expr: Expr, channels: int, quantize: Quantizer, bounds: tuple[int, int], state: State, source: str
) -> str:
    expr = summed(context, expr)
    names = leaves(expr)
    if not names:
        raise CannotLower("its input does not depend on the model's input", "remove it")
    if any(n.startswith(FLOAT) for n in names):
        return _input(context, expr, channels, quantize, bounds, state)
    if len(names) > 1:
        ordered, op = fit.addition(expr, context.graph.tensors, quantize, *bounds)
        return context.emit(op, ordered)
    tensor = context.graph.tensors[names[0]]
    found = linear(expr)
    if (
        found is not None
        and not np.any(found[1])
        and np.all(found[0][names[0]] == quantize.unit)
        and tensor.low >= bounds[0]
        and tensor.high <= bounds[1]
    ):
        return names[0]
    expr, name = _rising(context, expr, names[0])
    return context.emit(fit.function(expr, context.graph.tensors[name], quantize, *bounds), [name], "requant")


def _rising(context: Context, expr: Expr, name: str) -> tuple[Expr, str]:
    """The same expression over an accumulator whose falling channels (negative BatchNorm slopes) have their weights negated,
    so that thresholds exist. A convolution that others read as well is built twice."""
    producer = None if name.startswith(FLOAT) else context.graph.producer(name)
    way = direction(expr, name)
    if way is None or not np.any(way < 0) or producer is None or not isinstance(producer.op, ir.Conv):
        return expr, name
    sign = np.where(np.broadcast_to(way, len(producer.op.weight)) < 0, -1, 1).astype(np.int64)
    flipped = replace(producer.op, weight=producer.op.weight * sign.reshape(-1, 1, 1, 1))
    new = context.emit(flipped, list(producer.inputs))
    return substitute(expr, {name: times(new, sign)}), new


def _input(
    context: Context, expr: Expr, channels: int, quantize: Quantizer, bounds: tuple[int, int], state: State
) -> str:
    found = linear(expr)
    if found is None or len(found[0]) != 1 or quantize.zero or quantize.rounding is not np.rint:
        raise CannotLower(
            "the model's input is quantized with a zero point, with another rounding than to the nearest, or behind more than a scale and an offset",
            "quantize the input itself, zero point 0",
        )
    (leaf, scale), offset = next(iter(found[0].items())), found[1]
    key = ("input", leaf, quantize.unit, *bounds, *np.atleast_1d(scale).tolist(), *np.atleast_1d(offset).tolist())
    if key not in context.made:
        name = f"in{len(context.graph.inputs)}"
        context.graph.tensors[name] = ir.Tensor((*state.spatial, channels), *bounds)
        shape = tuple(int(n) for n in state.view.shape)
        context.graph.inputs.append(
            ir.Input(
                name,
                leaf[len(FLOAT) :],
                quantize.unit,
                shape,
                np.broadcast_to(scale, channels).copy(),
                np.broadcast_to(offset, channels).copy(),
            )
        )
        context.made[key] = name
    return context.made[key]
