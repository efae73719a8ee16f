"""Masks with a variational information bottleneck.

"VTrans: Accelerating Transformer Compression with Variational Information Bottleneck based Pruning" (2024), after Dai et al. 2018, "Compressing
Neural Networks using the Variational Information Bottleneck": z = mu + eps * sigma multiplies a unit; the bottleneck costs
1/2 log(1 + mu^2 / sigma^2); a unit with mu^2 < sigma^2 carries noise and is removed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.prune.size import Size
from compress.prune.structure import Structure

SLOPE = 1.0  # of the sigmoid whose gradient stands in for that of the decision
MEAN, LOG_VARIANCE = 1.0, -6.0


class Vib(nn.Module):
    """One mask over `units` units. threshold: the log alpha above which a unit is removed, 0 in the paper, moved by the size's target here."""

    def __init__(self, units: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mean = nn.Parameter(MEAN + 0.01 * torch.randn(units, generator=generator))
        self.log_variance = nn.Parameter(LOG_VARIANCE + 0.01 * torch.randn(units, generator=generator))
        self.threshold = 0.0

    def log_alpha(self) -> Tensor:
        """log(sigma^2 / mu^2) [units]."""
        return self.log_variance - (self.mean.square() + 1e-8).log()

    def kept(self) -> Tensor:
        """1 for units that stay, 0 for others [units]; its gradient is that of a sigmoid (straight through)."""
        distance = self.threshold - self.log_alpha()
        soft = torch.sigmoid(SLOPE * distance)
        return (distance > 0).to(soft.dtype) + soft - soft.detach()

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """One noisy mask per row [rows, units], exactly 0 for removed units."""
        noise = torch.randn(rows, len(self.mean), generator=generator)
        return (self.mean + noise * (0.5 * self.log_variance).exp()) * self.kept()

    def divergence(self) -> Tensor:
        """KL to the prior, summed over units (VIBNet, equation 8)."""
        return 0.5 * (self.mean.square() * (-self.log_variance).exp()).log1p().sum()


class Masks(nn.Module):
    """One Vib per group, and one number per branch (attention or FFN) that can remove it whole."""

    def __init__(self, structure: Structure, seed: int) -> None:
        super().__init__()
        self.structure = structure
        generator = torch.Generator().manual_seed(seed)
        self.units = nn.ModuleList(Vib(g.units, generator) for g in structure.groups)
        self.layers = nn.ModuleList(Vib(1, generator) if g.output else nn.Identity() for g in structure.groups)

    def sample(self, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Masks for one forward pass: [rows, units] for branches, [units] for hidden dimensions (all rows share them)."""
        found = {}
        for group, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True):
            if group.output:
                found[group.name] = unit.sample(rows, generator) * layer.sample(rows, generator)
            else:
                found[group.name] = unit.sample(1, generator)[0]
        return found

    def divergence(self, size: Size) -> Tensor:
        """Sum of the KL terms, each unit's weighed by its parameters as a share of all."""
        total = torch.zeros(())
        whole = float(size.parameters())
        for group, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True):
            amount = sum(t.amount for t in size.parameter_terms if group.name in t.groups) / whole
            total = total + unit.divergence() * (amount / group.units)
            if group.output:
                total = total + layer.divergence() * (amount / group.units)
        return total

    @torch.no_grad()
    def means(self) -> dict[str, Tensor]:
        """What kept units are multiplied by at inference [units]."""
        return {
            g.name: unit.mean * (layer.mean if g.output else 1.0)
            for g, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True)
        }

    @torch.no_grad()
    def log_alphas(self) -> dict[str, Tensor]:
        """What decides, by group [units]: a unit's log alpha, or its branch's where that is larger (such a branch goes whole)."""
        found = {}
        for group, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True):
            alpha = unit.log_alpha()
            found[group.name] = alpha.maximum(layer.log_alpha()) if group.output else alpha
        return found

    @torch.no_grad()
    def shares(self) -> dict[str, Tensor]:
        """Share of units under the threshold, by group."""
        return {n: (a < self.threshold).float().mean() for n, a in self.log_alphas().items()}

    @property
    def threshold(self) -> float:
        """The log alpha above which units are removed, the same everywhere."""
        return next(p.threshold for p in self.modules() if isinstance(p, Vib))

    def project(self, share: Callable[[dict[str, Tensor]], float], aim: float) -> None:
        """Move the threshold to where the size is `aim`: at most the paper's 0 while that already meets it."""
        alphas = self.log_alphas()

        def size(threshold: float) -> float:
            return share({n: (a < threshold).float().mean() for n, a in alphas.items()})

        low, high = -30.0, 0.0
        if size(high) <= aim:
            low = high
        while high - low > 1e-3:
            middle = (low + high) / 2
            low, high = (low, middle) if size(middle) > aim else (middle, high)
        for part in self.modules():
            if isinstance(part, Vib):
                part.threshold = low
