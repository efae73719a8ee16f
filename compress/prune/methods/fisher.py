"""Control: diagonal of the Fisher information of the masks (Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", section 4.1).

The loss is the cross entropy with the labels where there are any (as in the paper), with classes drawn from the model's own softmax for classifiers
without labels, and a random projection of the output otherwise. The square of the mini-batch's gradient is summed, as the authors do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.finetune.losses import is_embedding
from compress.prune.context import Context
from compress.prune.mask import masked
from compress.prune.search import rank
from compress.prune.structure import Keep
from deploy.checkpoint import flatten

MINI = 8  # samples whose gradients are summed before squaring


def scores(context: Context) -> dict[str, Tensor]:
    """Sum over mini-batches of the squared gradient, by group [units]."""
    generator = torch.Generator().manual_seed(context.seed)
    groups = context.structure.branches()
    total = {g.name: torch.zeros(g.units) for g in groups}
    frozen = [p for p in context.module.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for k, batch in enumerate(context.batches):
            for at in context.track(range(0, len(batch[0]), MINI), "Fisher information"):
                part = tuple(x[at : at + MINI] for x in batch)
                masks = {g.name: torch.ones(g.units, requires_grad=True) for g in groups}
                with masked(context.module, context.structure, masks):
                    out = flatten(context.module(*part))[0]
                labels = context.labels[k][at : at + MINI] if context.labels is not None else None
                if labels is not None and (out.ndim != 2 or int(labels.min()) < 0 or int(labels.max()) >= out.shape[1]):
                    labels = None  # numbers that are no classes of this model
                if out.ndim == 2 and out.shape[1] > 1 and not is_embedding(out):
                    if labels is None:
                        labels = torch.multinomial(out.detach().softmax(1), 1, generator=generator)[:, 0]
                    loss = F.cross_entropy(out, labels)
                else:
                    loss = (out * torch.randn(out.shape, generator=generator)).sum() / len(out)
                for group, gradient in zip(groups, torch.autograd.grad(loss, list(masks.values())), strict=True):
                    total[group.name] += gradient.detach().square()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return total


def choose(context: Context) -> Keep:
    """Importance of a unit: its Fisher information; heads and neurons compete on the one scale that it has."""
    return rank(context, scores(context))
