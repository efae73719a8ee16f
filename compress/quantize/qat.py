"""Quantization-aware training from the post-training result: what is trained, and how it goes back.

Weights start on the integers that post-training quantization chose, drawn towards the float weights by less than a quarter of
a step: the first step has exactly its accuracy, and none lies on the edge of the next integer. Rounding passes gradients straight through (Brevitas);
scales of weights and activations are parameters (Esser et al. 2020, "Learned step size quantization") and stay in the optimizer
with everything else. Only the steps that the model fixes and the scales of its inputs stay: those describe the data, which no training changes, and where
the data lies on their grid (8-bit images) their gradient is nothing but rounding noise.

A layer that BatchNorm was folded into trains as in Tune mode (compress/convbn.py): w' = s w with s and w as parameters, the
statistics frozen, so that the step sizes are those of the network before folding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.fold import scale_outputs
from compress.quantize import scheme
from compress.quantize.plan import Plan, tie
from compress.quantize.ptq import layers

NEAR = 0.4  # of its distance from the middle of its integer: where a weight starts, so that the first noisy steps flip nothing
LEAST_SCALE = 1e-3  # of its start value: a trained scale stays above


class ChannelGain(nn.Module):
    """weight = gain * original, one gain per output channel; the inverse divides."""

    def __init__(self, layer: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain.clone())
        self._layer = [layer]  # in a list: no submodule

    def forward(self, original: Tensor) -> Tensor:
        return scale_outputs(self._layer[0], original, self.gain)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return scale_outputs(self._layer[0], weight, 1 / self.gain)


@dataclass(frozen=True)
class Trained:
    """What the optimizer gets, with the unit of each parameter: a weight's is the step of its quantizer (of its layer's median
    channel), any other's its mean size. `scales` are the quantizers' among the others."""

    weights: list[tuple[nn.Parameter, float]]
    others: list[tuple[nn.Parameter, float]]
    scales: list[nn.Parameter]

    def groups(self, lr: float, other_lr: float) -> list[dict[str, Any]]:
        """Parameter groups for Adam: a step moves a weight by about lr quantization steps, another parameter by about other_lr
        of itself. One group per power of two."""
        found: dict[float, list[nn.Parameter]] = {}
        for rows, rate in ((self.weights, lr), (self.others, other_lr)):
            for p, unit in rows:
                found.setdefault(rate * 2.0 ** math.floor(math.log2(max(unit, 1e-6)) + 0.5), []).append(p)
        return [{"params": v, "lr": k} for k, v in sorted(found.items())]


@torch.no_grad()
def start(module: nn.Module, floats: nn.Module, plan: Plan) -> Trained:
    """Make a post-training quantized module trainable, in place. floats: the same graph with its float layers."""
    if isinstance(module, fx.GraphModule):
        tie(module, plan)
    gains: dict[nn.Module, Tensor] = {}
    for name, layer in layers(module, plan).items():
        source: Any = floats.get_submodule(name)
        weight: Tensor = layer.weight.data  # type: ignore[union-attr, assignment]
        step = scheme.weight_scale(layer)
        grid = scheme.integers(layer).to(weight.dtype) * step
        moved = torch.clamp((source.weight.data - grid) * NEAR, -NEAR / 2 * step, NEAR / 2 * step)
        layer.weight.data = grid + moved  # type: ignore[union-attr]
        gain = getattr(source, "folded_scale", None)
        if gain is not None and not isinstance(layer, nn.Embedding):
            gains[layer] = _safe(gain.to(weight.dtype))
    for layer, gain in gains.items():
        parametrize.register_parametrization(layer, "weight", ChannelGain(layer, gain))
    units = {}
    for layer in layers(module, plan).values():
        step = scheme.weight_scale(layer).reshape(-1)
        gain = gains.get(layer)
        key = layer.parametrizations.weight.original if gain is not None else layer.weight  # type: ignore[union-attr]
        size = step / gain.abs() if gain is not None and gain.numel() == step.numel() else step
        units[key] = float(size.median())
    found = Trained([], [], [])
    fixed = [n for n, spec in plan.quantizers.items() if spec.scale is not None]
    inputs = tuple(f"quantizers.{n}." for n in (*(n.name for n in _placeholders(module)), *fixed))
    for name, p in module.named_parameters():
        if not p.dtype.is_floating_point:
            continue
        if name.startswith(inputs):
            p.requires_grad_(False)
            continue
        p.requires_grad_(True)
        if p in units:
            found.weights.append((p, units[p]))
            continue
        found.others.append((p, float(p.detach().abs().mean())))
        if "scaling_impl" in name:
            found.scales.append(p)
    return found


def _placeholders(module: nn.Module) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"] if isinstance(module, fx.GraphModule) else []


def _safe(gain: Tensor) -> Tensor:
    """Gains without zeros, so that they can be divided by: at least a thousandth of the median."""
    least = float(gain.abs().median().clamp(min=1e-6)) * 1e-3
    return torch.where(gain.abs() < least, torch.full_like(gain, least), gain)


@torch.no_grad()
def hold(trained: Trained, least: list[Tensor]) -> None:
    """After a step: no scale below its least value."""
    for p, low in zip(trained.scales, least, strict=True):
        p.copy_(torch.maximum(p, low))


def least_scales(trained: Trained) -> list[Tensor]:
    return [p.detach().abs() * LEAST_SCALE for p in trained.scales]


@torch.no_grad()
def finish(module: nn.Module, plan: Plan) -> None:
    """Back to plain quantized layers whose weights lie on their grids; in place, eval mode, no gradients."""
    for layer in layers(module, plan).values():
        if parametrize.is_parametrized(layer, "weight"):
            step = scheme.weight_scale(layer).clone()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            scheme.set_weight_scale(layer, step)  # Brevitas starts a new quantizer when a weight is assigned
        layer.weight.data = scheme.integers(layer).to(torch.float32) * scheme.weight_scale(layer)  # type: ignore[union-attr]
    for p in module.parameters():
        p.requires_grad_(False)
        p.grad = None
    module.eval()
