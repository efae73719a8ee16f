"""One walk over the graph that calibrates and rounds everything in order.

Node by node, all calibration batches are carried through twice: as the float model computes them and as the model quantized
so far computes them. A quantizer's range is set from what reaches it; a layer's weights are rounded for the inputs that it
really gets; its bias takes up the mean error that is left. Values are dropped after their last use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.graph import submodule
from compress.quantize import scheme
from compress.quantize.rounding import gptq, moments, refit, supports
from compress.quantize.scales import Histogram, weight_scales
from deploy.progress import track

log = logging.getLogger(__name__)
MEMORY = 4 << 30


@dataclass(frozen=True)
class WalkOptions:
    ranges: str = "mse"
    weight_scale: str = "mse"
    rounding: str = "gptq"
    bias_correction: bool = True
    seed: int = 0


@dataclass
class _Pair:
    """The values of one node for every batch, exact and quantized (the same object while nothing differs)."""

    exact: list[Any]
    quantized: list[Any]


def _run(gm: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any], module: nn.Module | None) -> Any:
    args = fx.node.map_arg(node.args, lambda n: env[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
    if node.op == "call_module":
        return module(*args, **kwargs)  # type: ignore[misc]
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        value: Any = gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value
    raise ValueError(f"node {node} of kind {node.op} has no value")


def prepare(gm: fx.GraphModule) -> None:
    """Make every activation out of place: the walk keeps values that an in-place operator would overwrite."""
    import operator

    for module in gm.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    plain = {
        operator.iadd: operator.add,
        operator.imul: operator.mul,
        operator.isub: operator.sub,
        operator.itruediv: operator.truediv,
    }
    methods = {
        "add_": "add",
        "mul_": "mul",
        "relu_": "relu",
        "sub_": "sub",
        "div_": "div",
        "sigmoid_": "sigmoid",
        "clamp_": "clamp",
    }
    functions = {torch.relu_: torch.relu, torch.nn.functional.relu_: torch.nn.functional.relu}
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.target = functions.get(node.target, plain.get(node.target, node.target))
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_method":
            node.target = methods.get(node.target, node.target)
    gm.recompile()


@torch.no_grad()
def walk(
    gm: fx.GraphModule,
    original: nn.Module,
    floats: dict[str, nn.Module],
    batches: list[tuple[Tensor, ...]],
    options: WalkOptions,
) -> None:
    """Calibrate the Quantizers that are not ready and round the quantized layers of `gm` in place.

    original: the float graph. floats: name -> the float layer that each quantized layer replaces. batches: model inputs.
    """
    nodes = [n for n in gm.graph.nodes if n.op != "output"]
    last_use = {source: node for node in gm.graph.nodes for source in node.all_input_nodes}
    rng = torch.Generator().manual_seed(options.seed)
    values: dict[fx.Node, _Pair] = {}
    position = 0
    for node in track(nodes, "quantizing layer by layer"):
        if node.op == "placeholder":
            rows = [b[position] for b in batches]
            values[node] = _Pair(rows, rows)
            position += 1
            continue
        module = submodule(gm, node)
        sources = node.all_input_nodes
        same = all(values[s].quantized is values[s].exact for s in sources)
        name = str(node.target)
        if isinstance(module, scheme.Quantizer):
            source = values[sources[0]]
            if module.ready:  # one scale for several places, set before
                values[node] = _Pair(source.exact, [module(x) for x in source.quantized])
            else:
                values[node] = _Pair(source.exact, _quantize(module, source.quantized, options))
        elif name in floats and node.op == "call_module" and module is not None:
            source = values[sources[0]]
            exact = [floats[name](x) for x in source.exact]
            round_layer(module, floats[name], source.quantized, source.exact, exact, options, rng)
            values[node] = _Pair(exact, [module(x) for x in source.quantized])
        else:
            changed = module is not None and any(scheme.is_leaf(m) for m in module.modules())
            plain = module
            if isinstance(module, scheme.DynamicActivation):
                plain = nn.Identity()
            elif changed:
                plain = original.get_submodule(name)
            exact = [_run(gm, node, {s: values[s].exact[i] for s in sources}, plain) for i in range(len(batches))]
            quantized = exact
            if changed or not same:
                quantized = [
                    _run(gm, node, {s: values[s].quantized[i] for s in sources}, module) for i in range(len(batches))
                ]
            values[node] = _Pair(exact, quantized)
        for source in sources:
            if last_use.get(source) is node:
                values[source] = _Pair([], [])
                values.pop(source)


def _quantize(quantizer: scheme.Quantizer, rows: list[Tensor], options: WalkOptions) -> list[Tensor]:
    histogram = Histogram()
    for row in rows:
        histogram(row)
    apply_range(quantizer, histogram, options.ranges)
    return [quantizer(row) for row in rows]


def apply_range(quantizer: scheme.Quantizer, histogram: Histogram, method: str) -> None:
    """Set a quantizer's scale from what was seen; a clamp before it bounds the range, so that the clamp can be absorbed."""
    spec = quantizer.spec
    if spec.scale is not None:
        quantizer.set_scale(spec.scale)
        return
    scale = histogram.scale(spec.bits, spec.signed, method)
    if spec.limit is not None:
        scale = min(scale, spec.limit / spec.high)
    quantizer.set_scale(scale)


def _grouped(layer: Any, weight: Tensor) -> Tensor:
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


@torch.no_grad()
def round_layer(
    layer: Any,
    float_layer: Any,
    xq: list[Tensor],
    x: list[Tensor],
    y: list[Tensor],
    options: WalkOptions,
    rng: torch.Generator,
) -> None:
    """Choose the scales and the integers of one layer's weight, then correct its bias. In place.

    xq, x: the layer's inputs in the quantized and in the float model; y: the float layer's outputs.
    """
    bits = scheme.bits_of(layer)
    axis = scheme.output_axis(float_layer)
    weight = float_layer.weight.detach()
    second_order = options.rounding == "gptq" and supports(float_layer)
    if second_order:
        h, g = moments(float_layer, xq, x, y, rng)
        weight = refit(_grouped(float_layer, weight), h, g).reshape(weight.shape)
    scale = weight_scales(weight, bits, axis, scheme.is_per_channel(layer), options.weight_scale)
    scheme.set_weight_scale(layer, scale)
    if second_order:
        full = scale.reshape(-1).expand(weight.shape[0])
        grouped = _grouped(float_layer, weight)
        layer.weight.data = gptq(grouped, h, full.reshape(grouped.shape[0], -1), bits).reshape(weight.shape)
    else:
        layer.weight.data = weight.clone()
    layer.weight.data = scheme.integers(layer).to(torch.float32) * scheme.weight_scale(layer)
    if options.bias_correction and layer.bias is not None:
        channel = y[0].ndim - 1 if isinstance(float_layer, nn.Linear) else 1
        dims = [d for d in range(y[0].ndim) if d != channel]
        count = sum(t.numel() // t.shape[channel] for t in y)
        difference = sum(
            ((a - layer(b)).sum(dims) for a, b in zip(y, xq, strict=True)), torch.zeros(y[0].shape[channel])
        )
        layer.bias.data = layer.bias.data + difference / count
