"""Where quantizers go on a graph, so that runtimes fuse whole layers to integers and an FPGA sees integers at every input.

Rules, for the layers with static ranges:
1. The input of a layer is quantized.
2. The output of a layer is quantized, after its ReLU where that is its only user; not where it only leads out of the model.
3. The inputs and the output of Add, Mul, Concat, pooling means and sigmoid-like functions are quantized where a layer, or
   another such operator, wants the output quantized.
4. Max pooling, reshapes, slices, transposes, ReLU of a quantized value and nearest upsampling keep their input's grid.
5. Distances of a deformable convolution are integers from 0 to their bound: a quantizer of step 1 where they are made.
6. Concatenations that pass a value on to the next, as in ShuffleNetV2's stages, share one grid: no value is rounded twice.
7. Values that cannot be negative (after ReLU and what preserves it) are unsigned; the model's input is what it was seen to be.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.deform import Distance, SquareSample
from compress.graph import submodule

_RELU_FUNCTIONS = {F.relu, torch.relu, F.relu6, F.relu_, torch.relu_}
_RELU_METHODS = {"relu", "relu_"}
_KEEP_MODULES = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Unflatten,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    SquareSample,
)
_KEEP_FUNCTIONS = {
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    F.max_pool2d,
    torch.max_pool2d,
    F.dropout,
    F.pixel_shuffle,
    operator.getitem,
    torch.chunk,
    torch.split,
    torch.narrow,
    torch.channel_shuffle,
}
_KEEP_METHODS = {
    "view",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "chunk",
    "split",
    "narrow",
}
_SUM_FUNCTIONS = {
    operator.add,
    operator.iadd,
    torch.add,
    operator.mul,
    operator.imul,
    torch.mul,
    torch.cat,
    torch.concat,
}
_SUM_METHODS = {"add", "add_", "mul", "mul_"}
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_AVERAGE_FUNCTIONS = {torch.mean, F.adaptive_avg_pool2d, F.avg_pool2d, "mean"}
_JOIN_FUNCTIONS = (
    _SUM_FUNCTIONS | _AVERAGE_FUNCTIONS | {torch.sigmoid, F.sigmoid, F.hardsigmoid, F.silu, F.hardswish, F.leaky_relu}
)
_JOIN_METHODS = _SUM_METHODS | {"mean", "sigmoid", "sigmoid_"}
_JOIN_MODULES = (*_AVERAGES, nn.Sigmoid, nn.Hardsigmoid, nn.SiLU, nn.Hardswish, nn.LeakyReLU)
_NONNEGATIVE_FUNCTIONS = {torch.sigmoid, F.sigmoid, F.hardsigmoid, torch.softmax, F.softmax}
_NONNEGATIVE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax)


@dataclass
class Point:
    """One place for a quantizer: after `node`. `nonnegative` is None for a model input (decided by what is seen)."""

    node: fx.Node
    nonnegative: bool | None
    limit: float | None = None
    inner: bool = False  # feeds an operator, not a ReLU output: gets the wider bits


@dataclass
class _Facts:
    static: set[fx.Node]
    wants: dict[fx.Node, bool] = field(default_factory=dict)
    grid: set[fx.Node] = field(default_factory=set)
    nonnegative: dict[fx.Node, bool | None] = field(default_factory=dict)


def relu_limit(gm: fx.GraphModule, node: Any) -> tuple[bool, float | None]:
    """Whether a node is a ReLU-like clamp at zero, and its upper bound (6 for ReLU6)."""
    if not isinstance(node, fx.Node):
        return False, None
    module = submodule(gm, node)
    if isinstance(module, nn.ReLU6) or (node.op == "call_function" and node.target is F.relu6):
        return True, 6.0
    if isinstance(module, Distance):
        return module.low == 0 and module.bound is not None, module.bound
    if isinstance(module, nn.Hardtanh):
        return module.min_val == 0, float(module.max_val) if module.min_val == 0 else None
    # timm writes ReLU6 and friends as Hardtanh, plain functions, or nn modules
    if isinstance(module, nn.ReLU):
        return True, None
    if node.op == "call_function" and node.target in _RELU_FUNCTIONS:
        return True, None
    return node.op == "call_method" and node.target in _RELU_METHODS, None


def integer_bits(gm: fx.GraphModule, node: fx.Node) -> int:
    """Rule 5: the bits of a node whose values are integers from 0 to a bound by definition, at least 2; 0 for any other."""
    module = submodule(gm, node)
    if isinstance(module, Distance) and module.integer and module.low == 0 and module.bound is not None:
        return max(2, int(module.bound).bit_length())  # one-bit values are another kind in QONNX
    return 0


def _is(gm: fx.GraphModule, node: fx.Node, modules: tuple[type, ...], functions: set[Any], methods: set[str]) -> bool:
    if node.op == "call_module":
        return isinstance(submodule(gm, node), modules)
    return (
        node.target in functions if node.op == "call_function" else node.op == "call_method" and node.target in methods
    )


def keeps_grid(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Rule 4."""
    if node.op == "call_function" and node.target is F.interpolate:
        mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
        return mode == "nearest"
    module = submodule(gm, node)
    if isinstance(module, nn.Upsample):
        return module.mode == "nearest"
    return _is(gm, node, _KEEP_MODULES, _KEEP_FUNCTIONS, _KEEP_METHODS)


def joins(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Rule 3."""
    return _is(gm, node, _JOIN_MODULES, _JOIN_FUNCTIONS, _JOIN_METHODS)


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def _sole_relu(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float | None] | None:
    """The ReLU that is the only user of a node, seen through identities."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    is_relu, limit = relu_limit(gm, user)
    if is_relu:
        return user, limit
    if isinstance(submodule(gm, user), (nn.Identity, nn.Dropout)):
        return _sole_relu(gm, user)
    return None


def points(gm: fx.GraphModule, static: set[fx.Node]) -> list[Point]:
    """Every place that wants a quantizer, given the layer nodes with static ranges; in graph order."""
    facts = _Facts(static)
    nodes = list(gm.graph.nodes)
    for node in reversed(nodes):
        facts.wants[node] = any(_asks(gm, node, user, facts) for user in node.users)
    found: list[Point] = []
    pending: dict[fx.Node, Point] = {}
    for node in nodes:
        if node.op in ("get_attr", "output"):
            continue
        facts.nonnegative[node] = _nonnegative(gm, node, facts)
        if node in pending:
            found.append(pending.pop(node))
            facts.grid.add(node)
            continue
        sources = _tensor_inputs(node)
        carried = keeps_grid(gm, node) or relu_limit(gm, node)[0]
        if carried and sources and sources[0] in facts.grid:
            facts.grid.add(node)
            continue
        if not (facts.wants[node] or (node in static and not _leads_out(gm, node))):
            continue
        if node.op != "placeholder" and _is_tuple(gm, node):
            continue
        relu = _sole_relu(gm, node)
        if relu is not None:
            pending[relu[0]] = Point(relu[0], True, relu[1])
            continue
        is_relu, limit = relu_limit(gm, node)
        sign = True if is_relu else facts.nonnegative[node]
        found.append(Point(node, sign, limit, inner=node.op != "placeholder" and not sign))
        facts.grid.add(node)
    return found


_TUPLES = {"chunk", "split", "unbind", "topk", "sort", torch.chunk, torch.split, torch.unbind, torch.topk, torch.sort}


def _is_tuple(gm: fx.GraphModule, node: fx.Node) -> bool:
    module = submodule(gm, node)
    return (
        node.target in _TUPLES
        or isinstance(module, (nn.RNNBase, nn.MultiheadAttention))
        or bool(getattr(module, "return_indices", False))
    )


def _asks(gm: fx.GraphModule, node: fx.Node, user: fx.Node, facts: _Facts) -> bool:
    """Whether `user` wants `node`, its data input (not a size or an index), on a grid."""
    if user in facts.static:
        return True
    if keeps_grid(gm, user) or relu_limit(gm, user)[0]:
        return facts.wants[user] and bool(user.args) and user.args[0] is node
    return joins(gm, user) and facts.wants[user]


def _leads_out(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every user of a node passes the value unchanged out of the model."""
    return all(user.op == "output" or (keeps_grid(gm, user) and _leads_out(gm, user)) for user in node.users)


def _least(gm: fx.GraphModule, node: fx.Node) -> float:
    """The smallest value of a stored tensor (minus infinity where it is none)."""
    value: Any = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return float(value.detach().min()) if isinstance(value, torch.Tensor) and value.numel() else float("-inf")


def _nonnegative(gm: fx.GraphModule, node: fx.Node, facts: _Facts) -> bool | None:
    if node.op == "placeholder":
        return None
    if relu_limit(gm, node)[0] or _is(
        gm, node, _NONNEGATIVE_MODULES, _NONNEGATIVE_FUNCTIONS, {"sigmoid", "softmax", "sigmoid_"}
    ):
        return True
    sources = _tensor_inputs(node)
    if not sources or node in facts.static:
        return False
    flags = [facts.nonnegative.get(s, False) for s in sources]
    if keeps_grid(gm, node):
        return flags[0]
    module = submodule(gm, node)
    mean = isinstance(module, _AVERAGES) or node.target in _AVERAGE_FUNCTIONS
    preserving = mean or node.target in _SUM_FUNCTIONS or node.target in _SUM_METHODS
    constants = [] if mean else [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, (int, float))]
    constants += [_least(gm, n) for n in node.all_input_nodes if n.op == "get_attr"]
    if preserving and all(f is True for f in flags) and all(n >= 0 for n in constants):
        return True
    return None if preserving and len(flags) == 1 and flags[0] is None and all(n >= 0 for n in constants) else False


_JOINTS = {torch.cat, torch.concat}


def _origins(gm: fx.GraphModule, node: fx.Node, placed: set[str]) -> set[str]:
    """The quantizers that a value lies on, found back through operators that keep the grid."""
    if node.name in placed:
        return {node.name}
    if not node.all_input_nodes or not (keeps_grid(gm, node) or relu_limit(gm, node)[0]):
        return set()
    return _origins(gm, node.all_input_nodes[0], placed)


def shared(gm: fx.GraphModule, placed: set[str]) -> list[tuple[set[str], set[str]]]:
    """Rule 6: sets of quantizers that want one scale, and which of them follow a concatenation."""
    joints = [n for n in gm.graph.nodes if n.op == "call_function" and n.target in _JOINTS]
    ends: dict[str, set[str]] = {}
    for node in joints:
        behind = [n for n in node.users if relu_limit(gm, n)[0] or keeps_grid(gm, n)]
        own = next((n.name for n in (node, *behind) if n.name in placed), "")
        if own:
            ends[own] = set().union(*(_origins(gm, source, placed) for source in node.all_input_nodes))
    groups: list[set[str]] = []
    for own, sources in ends.items():
        joined = {own, *sources}
        for group in [g for g in groups if g & joined]:
            groups.remove(group)
            joined |= group
        groups.append(joined)
    chained = {own for own, sources in ends.items() if sources & ends.keys()}
    return [(g, g & ends.keys()) for g in groups if g & chained]


def layer_ends(gm: fx.GraphModule, layers: set[fx.Node]) -> set[fx.Node]:
    """The first layers (reached from an input with no layer between) and the last (reaching an output likewise)."""
    before: dict[fx.Node, bool] = {}
    ends = set()
    for node in gm.graph.nodes:
        before[node] = any(before[s] or s in layers for s in node.all_input_nodes)
        if node in layers and not before[node]:
            ends.add(node)
    after: dict[fx.Node, bool] = {}
    for node in reversed(list(gm.graph.nodes)):
        after[node] = any(after[u] or u in layers for u in node.users)
        if node in layers and not after[node]:
            ends.add(node)
    return ends
