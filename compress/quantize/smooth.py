"""Channel equalization of activations: move range from activations, quantized per tensor, into weights, quantized per channel.

A value that flows only through additions, ReLUs and poolings from layers to layers may be divided per channel by any s > 0 if
its producers' output channels are divided by s and its consumers' input channels multiplied by s: the network's function stays
the same. s_c = (range_c / geometric mean)^alpha splits the difficulty between both sides; alpha is 3/4, because weights have
scales per channel and activations one per tensor. That is the idea of Xiao et al. (SmoothQuant, 2023,
section 4), here over whole residual groups of convolutional networks (compare Nagel et al. 2019, section 4.1).

1. Values joined by Add, Identity, Dropout, MaxPool, average pooling and (unbounded) ReLU form a group.
2. A group is scaled only if every producer is a convolution called once and every consumer one too: anything else, such as
   ReLU6, Concat or the model's output, would change the function.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.fold import CONVS, scale_inputs, scale_outputs
from compress.graph import calls, submodule

ALPHA = 0.75
LIMIT = 16.0
_MODULES = (nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FUNCTIONS = {
    operator.add,
    operator.iadd,
    torch.add,
    F.relu,
    torch.relu,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.dropout,
}
_METHODS = {"add", "add_", "relu", "relu_", "contiguous"}


@dataclass
class Group:
    """Layers that write and read one set of channels, and the graph nodes that carry it."""

    producers: list[fx.Node] = field(default_factory=list)
    consumers: list[fx.Node] = field(default_factory=list)
    values: list[fx.Node] = field(default_factory=list)
    closed: bool = True


def _carries(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = submodule(gm, node)
        return isinstance(module, _MODULES) or type(module) is nn.ReLU
    if not (
        node.target in _FUNCTIONS
        if node.op == "call_function"
        else node.op == "call_method" and node.target in _METHODS
    ):
        return False
    sums = node.target in (operator.add, operator.iadd, torch.add, "add", "add_")
    return not sums or (len(node.all_input_nodes) == 2 and len(node.args) == 2 and not node.kwargs)


def groups(gm: fx.GraphModule) -> list[Group]:
    """The closed groups of the graph, by rules 1 and 2."""
    count = calls(gm)
    leader: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while leader.setdefault(node, node) is not node:
            node = leader[node]
        return node

    nodes = [n for n in gm.graph.nodes if n.op != "output"]
    for node in nodes:
        if _carries(gm, node):
            for source in node.all_input_nodes:
                leader[find(source)] = find(node)
    found: dict[fx.Node, Group] = {}
    for node in nodes:
        group = found.setdefault(find(node), Group())
        group.values.append(node)
        layer = submodule(gm, node)
        if isinstance(layer, CONVS) and count[str(node.target)] == 1:
            group.producers.append(node)
        elif not _carries(gm, node):
            group.closed = False
        for user in node.users:
            reader = submodule(gm, user) if user.op != "output" else None
            if isinstance(reader, CONVS) and count[str(user.target)] == 1:
                if user not in group.consumers:
                    group.consumers.append(user)
            elif user.op == "output" or not _carries(gm, user):
                group.closed = False
    return [g for g in found.values() if g.closed and g.producers and g.consumers]


@torch.no_grad()
def ranges(gm: fx.GraphModule, chosen: list[Group], batches: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Largest magnitude per channel [C] of each group's values over the batches."""
    wanted = {node.name: i for i, group in enumerate(chosen) for node in group.values}
    seen: list[Tensor | None] = [None] * len(chosen)

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            out = super().run_node(n)
            if n.name in wanted and isinstance(out, Tensor) and out.ndim >= 3:
                top = out.abs().amax([d for d in range(out.ndim) if d != 1])
                old = seen[wanted[n.name]]
                seen[wanted[n.name]] = top if old is None or old.shape != top.shape else torch.maximum(old, top)
            return out

    for batch in batches:
        Watch(gm).run(*batch)
    return [s if s is not None else torch.ones(1) for s in seen]


@torch.no_grad()
def smooth(gm: fx.GraphModule, batches: list[tuple[Tensor, ...]], alpha: float = ALPHA) -> int:
    """Equalize every closed group in place; returns how many were."""
    chosen = groups(gm)
    done = 0
    for group, top in zip(chosen, ranges(gm, chosen, batches), strict=True):
        writers = [gm.get_submodule(str(n.target)) for n in group.producers]
        readers = [gm.get_submodule(str(n.target)) for n in group.consumers]
        width = len(top)
        if any(w.out_channels != width for w in writers) or any(r.in_channels != width for r in readers):
            continue
        top = top.double().clamp(min=float(top.max()) * 1e-4 + 1e-12)
        scale = ((top / top.log().mean().exp()) ** alpha).clamp(1 / LIMIT, LIMIT)
        for layer in writers:
            layer.weight.data = scale_outputs(layer, layer.weight.double(), 1 / scale).float()  # type: ignore[operator, union-attr]
            if layer.bias is not None:
                layer.bias.data = (layer.bias.double() / scale).float()  # type: ignore[operator, union-attr]
        for layer in readers:
            layer.weight.data = scale_inputs(layer, layer.weight.double(), scale).float()  # type: ignore[operator, union-attr]
        done += 1
    return done
