"""Post-training quantization of one model: ranges, weight integers, biases on the accumulator's grid."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.config import CompressConfig
from compress.quantize import scheme
from compress.quantize.plan import STATIC, Plan, apply_plan, input_scale
from compress.quantize.scales import Histogram, weight_scales
from compress.quantize.walk import MEMORY, WalkOptions, apply_range, prepare, walk
from deploy.progress import track


@dataclass(frozen=True)
class Chosen:
    """The methods that `auto` stands for, for one config."""

    rounding: str
    weight_scale: str
    equalize: bool
    smooth: bool
    bias_correction: bool


def choose(config: CompressConfig, traced: bool, has_data: bool) -> Chosen:
    """Resolve every `auto`. Second-order rounding needs a graph and data; without them least-squares scales and rounding."""
    low = config.bits < 8
    walkable = traced and has_data
    rounding = config.rounding if config.rounding != "auto" else "gptq" if low and walkable else "nearest"
    if rounding == "gptq" and not walkable:
        rounding = "nearest"
    scale = config.weight_scale if config.weight_scale != "auto" else "mse" if low else "max"
    per_tensor = config.granularity == "tensor"
    equalize = config.equalize != "off" and per_tensor
    smooth = (
        walkable and not per_tensor and (config.equalize == "on" or (config.equalize == "auto" and config.bits >= 6))
    )
    correction = config.bias_correction == "on" or (config.bias_correction == "auto" and low)
    return Chosen(rounding, scale, equalize and traced, smooth, correction and walkable)


def quantize(
    root: nn.Module, plan: Plan, config: CompressConfig, chosen: Chosen, batches: list[tuple[Tensor, ...]]
) -> nn.Module:
    """Quantize a copy of `root` by `plan` and calibrate it with `batches` (may be empty: weights only)."""
    module = copy.deepcopy(root)
    if isinstance(module, fx.GraphModule):
        prepare(module)
    if batches:
        _signs(module, plan, batches[0])
    floats = apply_plan(module, plan)
    options = WalkOptions(config.ranges, chosen.weight_scale, chosen.rounding, chosen.bias_correction, config.seed)
    if isinstance(module, fx.GraphModule) and batches and (chosen.rounding == "gptq" or chosen.bias_correction):
        seen = {n: f for n, f in floats.items() if not plan.layers[n].around}
        _nearest({n: m for n, m in layers(module, plan).items() if n not in seen}, plan, chosen)
        visible = [q for q in module.modules() if isinstance(q, scheme.Quantizer)]
        for quantizer in visible:
            quantizer.ready = False
        _observe(_inner(module, plan), module, batches, config.ranges)
        _observe_shared(module, root, plan, batches, config.ranges)
        walk(module, root, seen, fit_memory(module, batches), options)
    else:
        _nearest(layers(module, plan), plan, chosen)
        _observe([q for q in module.modules() if isinstance(q, scheme.Quantizer)], module, batches, config.ranges)
        _observe_shared(module, root, plan, batches, config.ranges)
    settle_biases(module, plan)
    return module.eval()


def layers(module: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """The quantized layers of a plan by name, without what is around them."""
    found = {}
    for name in plan.layers:
        layer = module.get_submodule(name)
        found[name] = layer.layer if isinstance(layer, scheme.Around) else layer
    return found


def _inner(module: nn.Module, plan: Plan) -> list[scheme.Quantizer]:
    """Quantizers inside opaque modules, which the walk does not see."""
    return [
        q
        for n, row in plan.layers.items()
        if row.around
        for q in module.get_submodule(n).modules()
        if isinstance(q, scheme.Quantizer)
    ]


@torch.no_grad()
def _nearest(layers: dict[str, nn.Module], plan: Plan, chosen: Chosen) -> None:
    for layer in layers.values():
        weight: Tensor = layer.weight.data  # type: ignore[union-attr, assignment]
        scheme.set_weight_scale(
            layer,
            weight_scales(
                weight,
                scheme.bits_of(layer),
                scheme.output_axis(layer),
                scheme.is_per_channel(layer),
                chosen.weight_scale,
            ),
        )
        layer.weight.data = scheme.integers(layer).to(torch.float32) * scheme.weight_scale(layer)  # type: ignore[union-attr]


@torch.no_grad()
def _observe(
    quantizers: list[scheme.Quantizer], module: nn.Module, batches: list[tuple[Tensor, ...]], method: str
) -> None:
    if not quantizers:
        return
    for quantizer in quantizers:
        quantizer.ready, quantizer.observer = False, Histogram()
    for batch in track(batches, "calibrating"):
        module(*batch)
    for quantizer in quantizers:
        apply_range(quantizer, quantizer.observer, method)
        quantizer.observer = None


@torch.no_grad()
def _observe_shared(
    module: nn.Module, root: nn.Module, plan: Plan, batches: list[tuple[Tensor, ...]], method: str
) -> None:
    """Set the scales of the plan's shared groups, each from all the values that it stands for in the float graph `root`."""
    if not (plan.shared and batches and isinstance(root, fx.GraphModule)):
        return
    seen = [Histogram() for _ in plan.shared]
    of = {name: seen[k] for k, group in enumerate(plan.shared) for name in group}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            out = super().run_node(n)
            if n.name in of and isinstance(out, Tensor):
                of[n.name](out)
            return out

    for batch in batches:
        Watch(root).run(*batch)
    for name, histogram in of.items():
        apply_range(module.get_submodule(f"quantizers.{name}"), histogram, method)  # type: ignore[arg-type]


@torch.no_grad()
def _signs(module: nn.Module, plan: Plan, batch: tuple[Tensor, ...]) -> None:
    """Model inputs that are never negative are quantized unsigned."""
    if not isinstance(module, fx.GraphModule):
        return
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node, value in zip(placeholders, batch, strict=False):
        spec = plan.quantizers.get(node.name)
        if spec is not None and float(value.min()) >= 0:
            plan.quantizers[node.name] = scheme.ActivationSpec(spec.bits, False, spec.limit)
            # its sign is no longer that of the others
            plan.shared = [g for group in plan.shared if len(g := [n for n in group if n != node.name]) > 1]


def fit_memory(module: nn.Module, batches: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """As many batches as the walk can hold: it keeps both values of every live node for all of them."""
    largest = 0

    def hook(_: nn.Module, __: object, out: object) -> None:
        nonlocal largest
        if isinstance(out, Tensor):
            largest = max(largest, out.numel() * out.element_size())

    handles = [m.register_forward_hook(hook) for m in module.modules()]
    ready = {q: q.ready for q in module.modules() if isinstance(q, scheme.Quantizer)}
    try:
        for quantizer in ready:
            quantizer.ready = False
        with torch.no_grad():
            module(*batches[0])
    finally:
        for handle in handles:
            handle.remove()
        for quantizer, value in ready.items():
            quantizer.ready = value
    return batches[: max(1, MEMORY // max(1, 6 * largest))]


@torch.no_grad()
def settle_biases(module: nn.Module, plan: Plan) -> None:
    """Round each bias to a multiple of input scale times weight scale, the unit of the integer accumulator."""
    for name, row in plan.layers.items():
        if row.activations != STATIC or not row.bias:
            continue
        layer = module.get_submodule(name)
        scale: float | None = None
        if isinstance(layer, scheme.Around):
            scale, layer = (layer.before.scale if isinstance(layer.before, scheme.Quantizer) else None), layer.layer
        elif isinstance(module, fx.GraphModule):
            node = next(n for n in module.graph.nodes if n.op == "call_module" and str(n.target) == name)
            scale = input_scale(module, node.args[0])
        if scale is None:
            continue
        unit = scheme.weight_scale(layer).reshape(-1).double() * scale
        bias: Tensor = layer.bias.data  # type: ignore[union-attr, assignment]
        unit = unit if unit.numel() in (1, bias.numel()) else unit.repeat(bias.numel() // unit.numel())
        steps = torch.round(bias.double() / unit)
        if bool((steps.abs() < 2**31).all()):
            bias.copy_((steps * unit).float())
