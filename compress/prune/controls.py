"""The same target by plain rules, beside the chosen method: what a method is worth is its distance from these."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from compress.prune.context import Context, Inputs
from compress.prune.methods.activation import norms
from compress.prune.methods.optin import relative_error
from compress.prune.refit import refit
from compress.prune.size import shares
from compress.prune.slim import rounded, slim
from compress.prune.structure import Keep
from deploy.checkpoint import flatten

CONTROLS = ("fisher", "activation", "magnitude", "random")


@torch.no_grad()
def output_error(small: nn.Module, dense: nn.Module, batches: Sequence[Inputs]) -> float:
    """Squared error of the first output over its variance, on all samples."""
    got = torch.cat([flatten(small(*row))[0] for row in batches])
    want = torch.cat([flatten(dense(*row))[0] for row in batches])
    return relative_error(got, want, None)


def to_multiples(context: Context, keep: Keep, round_to: int, macs: float) -> Keep:
    """`keep` with rounded widths within the share `macs`, units ordered by activation norm: first those that stay, then the others."""
    if round_to <= 1:
        return keep
    order = {}
    for name, value in norms(context).items():
        best = value.argsort(descending=True)
        kept = torch.isin(best, keep[name])
        order[name] = torch.cat([best[kept], best[~kept]])
    size, structure = context.size, context.structure
    limit = macs * float(size.macs()) * (1 + 1e-6)
    return rounded(keep, order, structure, round_to, lambda k: float(size.macs(shares(structure, k))) <= limit)


def controls(context: Context, refitted: bool, round_to: int) -> dict[str, float]:
    """Output error of every control at the context's target, rounded and refitted like the method's own result."""
    found = {}
    quiet = replace(context, track=lambda rows, what: iter(rows))
    for name in context.track(CONTROLS, "controls"):
        keep = importlib.import_module(f"compress.prune.methods.{name}").choose(quiet)
        keep = to_multiples(quiet, keep, round_to, context.macs)
        small = slim(context.module, context.structure, keep)
        if refitted:
            refit(small, context.module, context.structure, keep, context.batches)
        found[name] = output_error(small, context.module, context.batches)
    return found
