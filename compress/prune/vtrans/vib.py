"""Masks with a variational information bottleneck.

"VTrans: Accelerating Transformer Compression with Variational Information Bottleneck based Pruning" (2024), after Dai et al. 2018, "Compressing
Neural Networks using the Variational Information Bottleneck": z = mu + eps * sigma multiplies a unit; the bottleneck costs
1/2 log(1 + mu^2 / sigma^2); a unit with mu^2 < sigma^2 carries noise and is removed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.prune.size import Size
from compress.prune.structure import Structure

SLOPE = 1.0  # of the soft decision whose gradient stands in for the hard one's
MEAN, LOG_VARIANCE = 1.0, -6.0


class Vib(nn.Module):
    """One mask over `units` units."""

    def __init__(self, units: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mean = nn.Parameter(MEAN + 0.01 * torch.randn(units, generator=generator))
        self.log_variance = nn.Parameter(LOG_VARIANCE + 0.01 * torch.randn(units, generator=generator))

    def log_alpha(self) -> Tensor:
        """log(sigma^2 / mu^2) [units]; below 0 the unit stays."""
        return self.log_variance - (self.mean.square() + 1e-8).log()

    def kept(self) -> Tensor:
        """1 for units that stay, 0 for others [units]; its gradient is that of a sigmoid (straight through)."""
        alpha = self.log_alpha()
        soft = torch.sigmoid(-SLOPE * alpha)
        return (alpha < 0).to(soft.dtype) + soft - soft.detach()

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

    def shares(self) -> dict[str, Tensor]:
        """Share of units kept, by group, exact in value and with a gradient."""
        return {
            g.name: unit.kept().mean() * (layer.kept()[0] if g.output else 1.0)
            for g, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True)
        }

    def divergence(self, size: Size) -> Tensor:
        """Sum of the KL terms, each unit's weighed by its parameters as a share of all."""
        total = torch.zeros(())
        whole = float(size.parameters())
        for group, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True):
            amount = sum(t.amount for t in size.parameter_terms if group.name in t.groups) / whole
            total = total + unit.divergence() * (amount / group.units)
            if group.output:
                total = total + layer.divergence() * amount
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
        """log alpha by group [units]; a branch that is removed whole has all of its units above every other."""
        found = {}
        for group, unit, layer in zip(self.structure.groups, self.units, self.layers, strict=True):
            alpha = unit.log_alpha()
            gone = bool(group.output) and bool(layer.log_alpha()[0] >= 0)
            found[group.name] = alpha + 1e3 if gone else alpha
        return found
