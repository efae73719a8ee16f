"""ConvBN folding: BatchNorm with running statistics becomes part of the layer before it, where that is exact.

Rules (w' = s w, b' = s (b - mean) + beta, s = gamma / sqrt(var + eps); Jacob et al. 2018, section 3.2):
1. BN after Conv1d/2d/3d, ConvTranspose1d/2d/3d (any groups) or Linear folds when the layer's output goes nowhere else and
   both modules are called once.
2. A transposed weight [Cin, Cout/g, ...] is scaled through the view [g, Cin/g, Cout/g, ...].
3. BN before a layer folds only when the layer has no zero padding: padded borders would otherwise miss the shift.
4. BN without running statistics, or in training mode, is never folded.
Everything refused is recorded with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.graph import calls, submodule, trace

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, *TRANSPOSED, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FoldRecord:
    """What became of one BatchNorm."""

    norm: str
    layer: str
    folded: bool
    reason: str = ""


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Per-channel (scale, shift) of an eval-mode BatchNorm, in float64. Raises ValueError without running statistics."""
    if not isinstance(norm, NORMS) or norm.running_mean is None or norm.running_var is None:
        raise ValueError("BatchNorm has no running statistics")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift


def scale_outputs(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply every output channel of `weight` (of `layer`'s kind) by scale [Cout]."""
    if isinstance(layer, TRANSPOSED):
        g = layer.groups
        view = weight.reshape(g, weight.shape[0] // g, weight.shape[1], -1)
        return (view * scale.reshape(g, 1, -1, 1)).reshape(weight.shape)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def scale_inputs(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply every input channel of `weight` by scale [Cin]."""
    if isinstance(layer, TRANSPOSED):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if isinstance(layer, nn.Linear) or layer.groups == 1:
        return weight * scale.reshape(1, -1, *[1] * (weight.ndim - 2))
    g = layer.groups
    view = weight.reshape(g, weight.shape[0] // g, weight.shape[1], -1)
    return (view * scale.reshape(g, 1, -1, 1)).reshape(weight.shape)


@torch.no_grad()
def fold_after(layer: nn.Module, norm: nn.Module) -> None:
    """Fold `norm`, which follows `layer`, into it in place (rules 1, 2)."""
    scale, shift = affine(norm)
    weight: Any = layer.weight
    bias: Any = layer.bias
    dtype = weight.dtype
    old = bias.double() if bias is not None else torch.zeros_like(shift)
    weight.data = scale_outputs(layer, weight.double(), scale).to(dtype)
    layer.folded_scale = scale.clone()  # what fine-tuning takes out of the weight again (compress/quantize/qat.py)
    layer.bias = nn.Parameter((old * scale + shift).to(dtype), requires_grad=weight.requires_grad)


@torch.no_grad()
def fold_before(norm: nn.Module, layer: nn.Module) -> None:
    """Fold `norm`, which precedes the unpadded `layer`, into it in place (rule 3)."""
    scale, shift = affine(norm)
    weight: Any = layer.weight
    dtype = weight.dtype
    w = weight.double()
    if isinstance(layer, nn.Linear):
        extra = w @ shift
    else:
        taps = w.reshape(*w.shape[:2], -1).sum(2)
        g = layer.groups
        extra = torch.einsum("goi,gi->go", taps.reshape(g, -1, taps.shape[1]), shift.reshape(g, -1)).reshape(-1)
    weight.data = scale_inputs(layer, w, scale).to(dtype)
    bias: Any = layer.bias
    layer.bias = nn.Parameter(
        (extra + (bias.double() if bias is not None else 0)).to(dtype), requires_grad=weight.requires_grad
    )


def _refusal_after(norm: nn.Module, layer: nn.Module | None, node: fx.Node, source: Any, count: dict[str, int]) -> str:
    if not isinstance(layer, LAYERS):
        return "no convolution or linear layer before it"
    if len(source.users) > 1:
        return "the layer's output is used elsewhere too"
    if count[str(source.target)] > 1 or count[str(node.target)] > 1:
        return "the layer or its BatchNorm is shared"
    if norm.num_features != (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels):
        return "it normalises another axis than the layer's output channels"
    return _refusal_norm(norm)


def _refusal_norm(norm: nn.Module) -> str:
    if norm.training:
        return "BatchNorm is in training mode"
    return "" if getattr(norm, "running_mean", None) is not None else "BatchNorm has no running statistics"


def _refusal_before(norm: nn.Module, layer: nn.Module | None, node: fx.Node, count: dict[str, int]) -> str:
    if not isinstance(layer, (*CONVS, nn.Linear)):
        return "no foldable layer after it"
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) is False:
        return "channels are not the last axis"
    if len(node.users) > 1:
        return "its output is used elsewhere too"
    user = next(iter(node.users))
    if count[str(user.target)] > 1 or count[str(node.target)] > 1:
        return "the layer or its BatchNorm is shared"
    if not isinstance(layer, nn.Linear) and (
        layer.padding == "same" or any(p != 0 for p in layer.padding)
        if not isinstance(layer.padding, str)
        else layer.padding == "same"
    ):
        return "the convolution after it is padded, so folding is not exact at the borders"
    return _refusal_norm(norm)


def fold(gm: fx.GraphModule) -> list[FoldRecord]:
    """Fold every BatchNorm of the graph that can be folded exactly; returns one record per BatchNorm. Works in place."""
    records: list[FoldRecord] = []
    count = calls(gm)
    for node in list(gm.graph.nodes):
        norm = submodule(gm, node)
        if not isinstance(norm, NORMS):
            continue
        source = node.args[0]
        layer = submodule(gm, source)
        reason = _refusal_after(norm, layer, node, source, count)
        if not reason:
            fold_after(layer, norm)  # type: ignore[arg-type]
            records.append(FoldRecord(str(node.target), str(source.target), True))
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
            continue
        user = next(iter(node.users), None)
        after = submodule(gm, user) if user is not None else None
        second = _refusal_before(norm, after, node, count)
        if not second:
            fold_before(norm, after)  # type: ignore[arg-type]
            records.append(
                FoldRecord(str(node.target), str(user and user.target), True, "folded into the layer after it")
            )
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
            continue
        records.append(
            FoldRecord(
                str(node.target),
                str(getattr(source, "target", "")),
                False,
                reason if isinstance(after, LAYERS) is False else f"{reason}; {second}",
            )
        )
    gm.graph.lint()
    gm.recompile()
    gm.delete_all_unused_submodules()
    return records


def fold_opaque(gm: fx.GraphModule) -> list[FoldRecord]:
    """Fold inside the modules that the graph keeps as single nodes, child by child, where a child can be traced."""
    records = []
    for node in gm.graph.nodes:
        module = submodule(gm, node)
        if (
            module is not None
            and not isinstance(module, (*LAYERS, *NORMS))
            and any(isinstance(m, NORMS) for m in module.modules())
        ):
            records += _fold_children(module, str(node.target))
    return records


def _fold_children(module: nn.Module, name: str) -> list[FoldRecord]:
    records: list[FoldRecord] = []
    for key, child in list(module.named_children()):
        if not any(isinstance(m, NORMS) for m in child.modules()) or isinstance(child, NORMS):
            continue
        graph = trace(child) if not isinstance(child, (nn.ModuleList, nn.ModuleDict)) else None
        if graph is None:
            records += _fold_children(child, f"{name}.{key}")
            continue
        found = fold(graph)
        if any(r.folded for r in found):
            setattr(module, key, graph)
        records += [FoldRecord(f"{name}.{key}.{r.norm}", f"{name}.{key}.{r.layer}", r.folded, r.reason) for r in found]
    return records
