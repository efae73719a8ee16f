"""Which layer gets which bits and where quantizers go: a plain value, decided once and stored in the recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.config import CompressConfig
from compress.fold import LAYERS
from compress.graph import calls, submodule
from compress.quantize import scheme
from compress.quantize.place import integer_bits, keeps_grid, layer_ends, points, relu_limit, shared
from compress.quantize.scheme import ActivationSpec
from deploy.errors import UserError

INNER_BITS = 8
_FUNCTIONAL = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    torch.conv2d,
    torch.conv1d,
}
DYNAMIC, STATIC, WEIGHTS = "dynamic", "static", "weights"


@dataclass
class LayerPlan:
    """One quantized layer. `around` layers carry their own quantizers, because the graph does not show them."""

    bits: int
    kind: str  # Linear, Conv2d, ...
    activations: str  # static, dynamic or weights
    bias: bool
    macs: int = 0
    parameters: int = 0
    before: ActivationSpec | None = None
    after: ActivationSpec | None = None
    around: bool = False


@dataclass
class Plan:
    """layers by module name; activation quantizers by the name of the graph node that they follow."""

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    quantizers: dict[str, ActivationSpec] = field(default_factory=dict)
    per_channel: bool = True
    traced: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    shared: list[list[str]] = field(default_factory=list)  # quantizers with one scale
    ends: set[str] = field(default_factory=set)  # first and last layers; not stored

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "ends"}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Plan:
        def spec(value: Any) -> ActivationSpec | None:
            return (
                None
                if value is None
                else ActivationSpec(int(value["bits"]), bool(value["signed"]), value.get("limit"), value.get("scale"))
            )

        layers = {
            str(n): LayerPlan(**{**r, "before": spec(r["before"]), "after": spec(r["after"])})
            for n, r in row["layers"].items()
        }
        quantizers = {str(n): s for n, r in row["quantizers"].items() if (s := spec(r)) is not None}
        return cls(
            layers,
            quantizers,
            bool(row["per_channel"]),
            bool(row["traced"]),
            dict(row["skipped"]),
            [list(map(str, g)) for g in row.get("shared", ())],
        )


def parse_overrides(rows: Sequence[str]) -> list[tuple[str, int | None, int | None]]:
    """`("head=8/8", "stem=float")` -> [(pattern, weight bits or None for float, activation bits or None)]."""
    found: list[tuple[str, int | None, int | None]] = []
    for row in rows:
        pattern, equals, value = row.rpartition("=")
        weight, _, act = value.partition("/")
        if (
            not equals
            or not pattern
            or not (weight == "float" or (weight.isdigit() and 2 <= int(weight) <= 8))
            or (act and not (act.isdigit() and 4 <= int(act) <= 8))
        ):
            raise UserError(
                f"--layer {row!r} is not of the form PATTERN=BITS, PATTERN=BITS/ACTIVATION_BITS or PATTERN=float (2..8 and 4..8)"
            )
        found.append((pattern, None if weight == "float" else int(weight), int(act) if act else None))
    return found


@torch.no_grad()
def count_macs(module: nn.Module, example: Sequence[Tensor]) -> dict[str, int]:
    """Multiply-accumulates of every convolution and linear layer for one run of the example (per sample), by module name.

    Layers that are never called are absent, which is how dead layers are found.
    """
    counts: dict[str, int] = {}
    samples = max(1, example[0].shape[0])
    handles = []

    def hook(name: str) -> Any:
        def count(layer: Any, args: Any, out: Tensor) -> None:
            if isinstance(layer, nn.Embedding):
                counts[name] = counts.get(name, 0)
                return
            if "Transpose" in type(layer).__name__:
                work = args[0].numel() * layer.weight[0].numel()
            else:
                work = out.numel() * layer.weight[0].numel()
            counts[name] = counts.get(name, 0) + work // samples

        return count

    for name, layer in module.named_modules():
        if scheme.supported(layer) or scheme.is_quantized(layer):
            handles.append(layer.register_forward_hook(hook(name)))
    try:
        module(*example)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def make_plan(
    module: nn.Module, gm: fx.GraphModule | None, config: CompressConfig, macs: dict[str, int], static_ok: bool
) -> Plan:
    """Decide bits and placement. `static_ok` is false where there is nothing to calibrate static ranges with."""
    root = gm if gm is not None else module
    plan = Plan(per_channel=config.granularity == "channel", traced=gm is not None)
    linear = sum(m for n, m in macs.items() if isinstance(root.get_submodule(n), nn.Linear))
    mode = config.activations
    if mode == "auto":
        mode = DYNAMIC if linear > 0.5 * max(1, sum(macs.values())) else STATIC
    if config.bits == 32:
        plan.skipped = dict.fromkeys(macs, "kept in float by --bits 32")
        return plan
    overrides = parse_overrides(config.layer)
    count = calls(gm) if gm is not None else {}
    shown = dict(count.items())
    ends = plan.ends = _ends(gm, macs)
    used: set[str] = set()
    act_bits: dict[str, int] = {}
    for name, layer in root.named_modules():
        if isinstance(layer, LAYERS) and not scheme.supported(layer):
            plan.skipped[name] = f"{type(layer).__name__} has no quantized form"
        if not scheme.supported(layer) or name not in macs:
            continue
        bits: int | None = max(config.bits, config.first_last_bits) if name in ends else config.bits
        if isinstance(layer, nn.Embedding):
            bits = 8
        for pattern, weight, act in overrides:
            if fnmatch.fnmatchcase(name, pattern):
                used.add(pattern)
                bits = weight
                if act:
                    act_bits[name] = act
        if bits is None:
            plan.skipped[name] = "kept in float by --layer"
            continue
        if shown.get(name, 0) > 1:
            plan.skipped[name] = "called more than once with one weight"
            continue
        weight_tensor: Any = layer.weight
        row = LayerPlan(
            bits,
            type(layer).__name__,
            _activations(layer, mode, static_ok, name in shown),
            False,
            macs[name],
            weight_tensor.numel(),
        )
        row.around = name not in shown
        row.bias = getattr(layer, "bias", None) is not None or (not row.around and row.activations == STATIC)
        if isinstance(layer, nn.Embedding):
            row.bias = False
        if row.around and row.activations == STATIC:
            row.before, row.after = ActivationSpec(INNER_BITS, True), ActivationSpec(INNER_BITS, True)
        plan.layers[name] = row
    if gm is not None:
        plan.skipped |= {
            n.name: "a functional call with its own weight"
            for n in gm.graph.nodes
            if n.op == "call_function" and n.target in _FUNCTIONAL
        }
    missing = [p for p, _, _ in overrides if p not in used]
    if missing:
        raise UserError(
            f"--layer {missing[0]!r} matches no layer; the layers are for example {', '.join(list(plan.layers)[:4])}"
        )
    if gm is not None and static_ok and mode != "none":
        _place(gm, plan, config.act_bits, act_bits)
    return plan


def _ends(gm: fx.GraphModule | None, macs: dict[str, int]) -> set[str]:
    order = list(macs)
    if gm is None:
        return {order[0], order[-1]} if order else set()
    nodes = {n for n in gm.graph.nodes if n.op == "call_module" and str(n.target) in macs}
    return {str(n.target) for n in layer_ends(gm, nodes)}


def _activations(layer: nn.Module, mode: str, static_ok: bool, shown: bool) -> str:
    if isinstance(layer, nn.Embedding) or mode == "none":
        return WEIGHTS
    if isinstance(layer, nn.Linear):
        if mode == STATIC and shown:
            return STATIC if static_ok else WEIGHTS
        return DYNAMIC
    return STATIC if static_ok else WEIGHTS


def _place(gm: fx.GraphModule, plan: Plan, bits: int, overrides: dict[str, int]) -> None:
    """Fill plan.quantizers; `overrides` gives the activation bits of single layers, by their inputs."""
    static = [
        n
        for n in gm.graph.nodes
        if n.op == "call_module"
        and str(n.target) in plan.layers
        and plan.layers[str(n.target)].activations == STATIC
        and not plan.layers[str(n.target)].around
    ]
    for point in points(gm, set(static)):
        width = max(bits, INNER_BITS) if point.inner or point.node.op == "placeholder" else bits
        fixed = integer_bits(gm, point.node)
        plan.quantizers[point.node.name] = (
            ActivationSpec(fixed, False, point.limit, 1.0)
            if fixed
            else ActivationSpec(width, point.nonnegative is not True, point.limit)
        )
    for layer in static:
        if str(layer.target) not in overrides:
            continue
        source = layer.args[0]
        while isinstance(source, fx.Node) and source.name not in plan.quantizers and source.all_input_nodes:
            source = source.all_input_nodes[0] if keeps_grid(gm, source) or relu_limit(gm, source)[0] else None
        if not isinstance(source, fx.Node) or source.name not in plan.quantizers:
            raise UserError(
                f"--layer {layer.target}: its input is on no activation range of its own; leave out the activation bits"
            )
        old = plan.quantizers[source.name]
        plan.quantizers[source.name] = ActivationSpec(overrides[str(layer.target)], old.signed, old.limit)
    for group, joints in shared(gm, set(plan.quantizers)):
        # of different bits or signs only those go together that stand with most behind the concatenations
        parts = [sorted(n for n in group if plan.quantizers[n] == plan.quantizers[joint]) for joint in sorted(joints)]
        best = max(parts, key=len)
        if len(best) > 1:
            plan.shared.append(best)


def apply_plan(root: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """Put the quantized layers and the quantizers of a plan into a module (a GraphModule where plan.traced), in place.

    Returns the replaced float layers by name.
    """
    from compress.graph import replace_module

    floats: dict[str, nn.Module] = {}
    for name, row in plan.layers.items():
        layer = root.get_submodule(name)
        floats[name] = layer
        if row.bias and getattr(layer, "bias", None) is None:
            layer.bias = nn.Parameter(torch.zeros(_out_channels(layer)), requires_grad=False)
        new = scheme.quantized_layer(layer, row.bits, plan.per_channel)
        if row.around and row.activations == DYNAMIC:
            new = scheme.Around(new, scheme.DynamicActivation())
        elif row.around and row.before is not None:
            new = scheme.Around(new, scheme.Quantizer(row.before), scheme.Quantizer(row.after) if row.after else None)
        replace_module(root, name, new)
    if isinstance(root, fx.GraphModule):
        _insert(root, plan)
    return floats


def _out_channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _insert(gm: fx.GraphModule, plan: Plan) -> None:
    by_name = {n.name: n for n in gm.graph.nodes}
    for name, spec in plan.quantizers.items():
        if name not in by_name:
            raise UserError(
                f"the recipe places a quantizer after {name!r}, which this architecture does not have; it was made with another version"
            )
        node = by_name[name]
        gm.add_submodule(f"quantizers.{name}", scheme.Quantizer(spec))
        users = list(node.users)
        with gm.graph.inserting_after(node):
            quantized = gm.graph.call_module(f"quantizers.{name}", (node,))
        for user in users:
            user.replace_input_with(node, quantized)
    for node in list(gm.graph.nodes):
        if node.op == "call_module" and str(node.target) in plan.layers:
            row = plan.layers[str(node.target)]
            if row.activations == DYNAMIC and not row.around:
                key = "dynamic." + str(node.target).replace(".", "_")
                gm.add_submodule(key, scheme.DynamicActivation())
                with gm.graph.inserting_before(node):
                    quantized = gm.graph.call_module(key, (node.args[0],))
                node.replace_input_with(node.args[0], quantized)  # type: ignore[arg-type]
    gm.graph.lint()
    gm.recompile()
    tie(gm, plan)


def tie(gm: fx.GraphModule, plan: Plan) -> None:
    """Let the quantizers of a shared group hold one scale parameter."""
    for group in plan.shared:
        first, *rest = (gm.get_submodule(f"quantizers.{name}") for name in group)
        for other in rest:
            other.share(first)  # type: ignore[operator]


def input_scale(gm: fx.GraphModule, node: Any) -> float | None:
    """The scale of the grid that a value lies on, found back through operators that keep it; None for floats."""
    while isinstance(node, fx.Node) and node.op != "placeholder":
        module = submodule(gm, node)
        if isinstance(module, scheme.Quantizer):
            return module.scale
        if not (keeps_grid(gm, node) or relu_limit(gm, node)[0]) or not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
    return None
