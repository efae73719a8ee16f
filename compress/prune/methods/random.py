"""Control: random units, the same share of every group."""

from __future__ import annotations

import torch

from compress.prune.context import Context
from compress.prune.methods.magnitude import per_kind
from compress.prune.search import rank
from compress.prune.structure import Keep


def choose(context: Context) -> Keep:
    """Every unit has a random importance."""
    generator = torch.Generator().manual_seed(context.seed)
    return rank(
        context,
        per_kind(context, {g.name: torch.rand(g.units, generator=generator) for g in context.structure.branches()}),
    )
