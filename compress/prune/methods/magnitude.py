"""Control: squared norm of each unit's columns in the output projection, as a share of its kind's mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.prune.context import Context
from compress.prune.search import rank
from compress.prune.structure import HEAD, NEURON, Keep


def per_kind(context: Context, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores in units of MACs: divided by the mean of their kind and weighed by the cost of a unit, so that heads and neurons, whose scores
    have nothing in common, are removed in equal shares of their MACs on the whole."""
    costs = context.size.per_unit(context.structure)
    found = {}
    for kind in (HEAD, NEURON):
        groups = context.structure.of(kind)
        mean = sum(float(scores[g.name].sum()) for g in groups) / max(1, sum(g.units for g in groups))
        for group in groups:
            found[group.name] = scores[group.name] / max(mean, 1e-30) * costs[group.name]
    return found


def choose(context: Context) -> Keep:
    """Importance of a unit: |W[:, unit]|^2."""
    scores = {}
    for group in context.structure.branches():
        layer: Any = context.module.get_submodule(group.output)
        scores[group.name] = layer.weight.detach().square().sum(0).reshape(group.units, group.width).sum(1)
    return rank(context, per_kind(context, scores))
