"""Control: mean squared activation of each unit times the squared norm of its columns, one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.prune.context import Context, capture, run, valid_tokens
from compress.prune.methods.magnitude import per_kind
from compress.prune.refit import rows_of
from compress.prune.search import rank
from compress.prune.structure import Keep


@torch.no_grad()
def norms(context: Context) -> dict[str, Tensor]:
    """Per group [units]: sum over its columns of mean x^2 times |W column|^2."""
    found: dict[str, Any] = {}
    count = 0
    groups = context.structure.branches()
    with capture(context.module, {g.output: "in" for g in groups}) as seen:
        for batch in context.batches:
            run(context.module, batch)
            valid = valid_tokens(context.structure, batch)
            for group in groups:
                x = rows_of(seen[group.output], valid)
                found[group.name] = found.get(group.name, 0) + x.square().sum(0)
            count += len(batch[0])
    for group in groups:
        layer: Any = context.module.get_submodule(group.output)
        total = found[group.name] / count * layer.weight.detach().square().sum(0)
        found[group.name] = total.reshape(group.units, group.width).sum(1)
    return found


def choose(context: Context) -> Keep:
    """Importance of a unit: the squared length of what it adds to the residual stream, if units were independent."""
    return rank(context, per_kind(context, norms(context)))
