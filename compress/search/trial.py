"""One model at many bit widths without building it anew: the activation quantizers are calibrated once, the weights of every
layer at every width computed once, and a trial only copies them in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from compress import recipe as recipes
from compress.config import CompressConfig
from compress.finetune.losses import distill
from compress.quantize import scheme
from compress.quantize.plan import Plan
from compress.quantize.ptq import Chosen, layers, quantize
from compress.quantize.scales import weight_scales
from deploy.checkpoint import flatten

WIDTHS = (2, 4, 8)
Bits = dict[str, int]


class Bench:
    """Losses and sizes of a model by the bits of its layers.

    root: the graph with float layers, as quantize() takes it. batches: unlabelled samples; the loss is the distillation loss
    of the outputs against the float model's on them (see losses.distill), with weights rounded to nearest.
    """

    def __init__(self, root: nn.Module, plan: Plan, config: CompressConfig, batches: list[tuple[Tensor, ...]]) -> None:
        wide = replace(plan, layers={n: replace(row, bits=8) for n, row in plan.layers.items()})
        self.plan, self.batches = plan, batches
        self.module = quantize(root, wide, config, Chosen("nearest", "mse", False, False, False), batches)
        self.layers = {n: m for n, m in layers(self.module, wide).items() if not isinstance(m, nn.Embedding)}
        self.names = list(self.layers)
        with torch.no_grad():
            self.wanted = [flatten(root(*b)) for b in batches]
        self.table: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for name, layer in self.layers.items():
            weight = root.get_submodule(name).weight.data
            axis, channel = scheme.output_axis(layer), scheme.is_per_channel(layer)
            for bits in {*WIDTHS, plan.layers[name].bits}:
                scale = weight_scales(weight, bits, axis, channel, "mse")
                high = (1 << (bits - 1)) - 1
                self.table[name, bits] = torch.clamp(torch.round(weight / scale), -high, high) * scale, scale
        self.state = recipes.state_of(self.module)
        self.elements = {n: int(m.weight.numel()) for n, m in self.layers.items()}  # type: ignore[operator, union-attr]

    def size(self, bits: Bits) -> int:
        """Bytes of the stored file at these bits."""
        state = dict(self.state)
        for name, width in bits.items():
            if (count := recipes.per_byte(width)) > 1:
                inner = f"{name}.layer" if self.plan.layers[name].around else name
                state[f"{inner}.weight"] = torch.empty(-(-self.elements[name] // count), dtype=torch.uint8)
        return recipes.stored_bytes(state)

    @torch.no_grad()
    def loss(self, bits: Bits) -> float:
        """Distillation loss at these bits; layers left out have 8."""
        for name, layer in self.layers.items():
            weight, scale = self.table[name, bits.get(name, 8)]
            layer.weight.data = weight  # type: ignore[union-attr]
            scheme.set_weight_scale(layer, scale)
        total = samples = 0.0
        for batch, wanted in zip(self.batches, self.wanted, strict=True):
            total += float(distill(flatten(self.module(*batch)), wanted)) * len(batch[0])
            samples += len(batch[0])
        return total / samples

    @property
    def classifies(self) -> bool:
        """Whether the first output is class scores [N, C]."""
        return self.wanted[0][0].ndim == 2 and self.wanted[0][0].shape[1] > 1

    def agreement(self) -> float | None:
        """Per cent of the samples whose class is the float model's, at the bits of the last loss(); None without classes."""
        if not self.classifies:
            return None
        same = count = 0
        with torch.no_grad():
            for batch, wanted in zip(self.batches, self.wanted, strict=True):
                out = flatten(self.module(*batch))[0]
                same += int((out.flatten(1).argmax(1) == wanted[0].flatten(1).argmax(1)).sum())
                count += len(out)
        return 100 * same / count

    def sensitivity(self) -> dict[str, dict[int, float]]:
        """Loss with one layer at 2, 4 or 8 bits and all others at 8, by layer."""
        from deploy.progress import track

        return {n: {b: self.loss({n: b}) for b in WIDTHS} for n in track(self.names, "sensitivity")}
