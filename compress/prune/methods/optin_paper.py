"""OPTIN as published ("The Need for Speed: Pruning Transformers with One Recipe", ICLR 2024): one batch, every unit masked alone, its importance the
manifold distillation loss over all later layers plus the logit distillation loss. No labels, no gradients, no retraining.

Terms as in the authors' code: squared difference of cosine Gram matrices of 768 tokens, KL of logits with T = 4 as a factor T^2, the KL scaled by
powers of ten so that the first is about lambda times the second. Not taken over: their prior by index, the head masks that they do not reset between
layers, the constants for single layers. Neurons are masked in blocks of like activation norm, and whatever runs before a unit is replayed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.prune.context import Context, before, record, replayed
from compress.prune.mask import masked
from compress.prune.methods.activation import norms
from compress.prune.search import rank
from compress.prune.structure import HEAD, Group, Keep
from deploy.checkpoint import flatten

TOKENS = 768  # rows of the Gram matrix
SAMPLES, TEMPERATURE, LAMBDA = 32, 4.0, 10.0
PASSES = 1200  # about how many masked passes the neurons of a model may take


def _gram(features: Tensor, rows: Tensor) -> Tensor:
    """Cosine Gram matrix [K, K] of chosen tokens."""
    flat = F.normalize(features.reshape(-1, features.shape[-1])[rows], dim=-1)
    return flat @ flat.T


def _divergence(student: Tensor, teacher: Tensor) -> float:
    """KL(teacher || student) over the last axis, times T^2 as in the code, where the logits themselves are not softened."""
    value = F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="sum", log_target=True)
    return max(0.0, float(value)) * TEMPERATURE**2


class _Scale:
    """The code's balance of the two terms: a power of ten while the first is larger, its running mean otherwise."""

    def __init__(self) -> None:
        self.factors: list[float] = []

    def __call__(self, manifold: float, logits: float) -> float:
        if logits <= 0 or manifold <= 0:
            return manifold
        if manifold > logits:
            self.factors.append(10.0 ** int(math.log10(manifold / logits) - math.log10(LAMBDA)))
            return manifold + logits * self.factors[-1]
        return manifold + logits * (sum(self.factors) / len(self.factors) if self.factors else 1.0)


def _blocks(group: Group, norm: Tensor, size: int) -> list[Tensor]:
    """Units of one group in blocks of like activation norm; heads one by one."""
    if group.kind == HEAD:
        return list(torch.arange(group.units).split(1))
    return list(norm.argsort(descending=True).split(size))


@torch.no_grad()
def scores(context: Context) -> dict[str, Tensor]:
    """Importance of every unit, by group; units of one block share its loss in proportion to their activation norms."""
    structure, module = context.structure, context.module
    inputs = tuple(x[:SAMPLES] for x in context.batches[0])
    groups = structure.branches()
    outputs = [g.output for g in groups if g.kind != HEAD]
    stored, dense = record(module, [*structure.blocks, *(n for g in groups for n in g.before), *outputs], inputs)
    features: dict[str, Tensor] = {n: flatten(stored[n])[0] for n in outputs}
    generator = torch.Generator().manual_seed(context.seed)
    rows = {n: torch.randperm(v.numel() // v.shape[-1], generator=generator)[:TOKENS] for n, v in features.items()}
    grams = {n: _gram(v, rows[n]) for n, v in features.items()}
    block_of = {g.output: g.block for g in groups}
    norm = norms(context)
    neurons = sum(g.units for g in groups if g.kind != HEAD)
    size = max(1, round(neurons / PASSES))
    found: dict[str, Tensor] = {}
    scale = _Scale()
    work = [(g, b) for g in groups for b in _blocks(g, norm[g.name], size)]
    for group, block in context.track(work, "OPTIN, unit by unit"):
        later = [
            n for n in outputs if block_of[n] > group.block or (group.kind == HEAD and block_of[n] == group.block)
        ] or [outputs[-1]]
        mask = torch.ones(group.units)
        mask[block] = 0
        cached = {n: stored[n] for n in before(structure, group) if n in stored}
        with replayed(module, cached), masked(module, structure, {group.name: mask}):
            seen, out = record(module, later, inputs)
        manifold = sum(float((_gram(flatten(seen[n])[0], rows[n]) - grams[n]).square().sum()) for n in later)
        value = scale(manifold, _divergence(out, dense))
        share = norm[group.name][block]
        found.setdefault(group.name, torch.zeros(group.units))[block] = value * share / share.sum().clamp(min=1e-30)
    context.notes["block"] = size
    return found


def choose(context: Context) -> Keep:
    """The paper's scores and its search (heads and neurons on one scale, no floor per layer)."""
    return rank(context, scores(context))


__all__: list[Any] = ["choose", "scores"]
