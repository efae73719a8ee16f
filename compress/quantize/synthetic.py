"""Calibration without data: inputs optimised until their batch statistics match those stored in the BatchNorm layers
(Cai et al., ZeroQ, 2020, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploy.inputs import InputSpec
from deploy.progress import track

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_statistics(module: nn.Module) -> bool:
    """Whether there is a BatchNorm whose running statistics inputs can be matched to."""
    return any(isinstance(m, NORMS) and m.running_mean is not None for m in module.modules())


def synthesize(
    module: nn.Module,
    specs: Sequence[InputSpec],
    *,
    samples: int = 32,
    steps: int = 120,
    batch: int = 16,
    seed: int = 0,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> list[tuple[Tensor, ...]]:
    """Batches of synthetic inputs for a model with BatchNorm, whose only input is float.

    bounds: least and largest value of an input, broadcastable to it. The loss is the squared distance of the mean and of the
    standard deviation before each BatchNorm to the stored ones, each relative to the stored deviation; Adam with a cosine rate.
    """
    rng = torch.Generator().manual_seed(seed)
    norms = [m for m in module.modules() if isinstance(m, NORMS) and m.running_mean is not None]
    losses: list[Tensor] = []

    def hook(norm: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        dims = [d for d in range(x.ndim) if d != 1]
        var, mean = torch.var_mean(x, dims, unbiased=False)
        target = (norm.running_var + norm.eps).sqrt()
        losses.append(
            (((mean - norm.running_mean) / target) ** 2).mean() + (((var + norm.eps).sqrt() / target - 1) ** 2).mean()
        )

    handles = [n.register_forward_pre_hook(hook) for n in norms]
    flags = [p.requires_grad for p in module.parameters()]
    for p in module.parameters():
        p.requires_grad_(False)
    out: list[tuple[Tensor, ...]] = []
    count = max(1, samples // batch)
    try:
        for step in track(range(count * steps), "synthesizing calibration inputs"):
            at = step % steps
            if at == 0:
                x = torch.randn(batch, *specs[0].shape[1:], generator=rng)
                if bounds is not None:
                    x = bounds[0] + (bounds[1] - bounds[0]) * torch.rand(x.shape, generator=rng)
                x.requires_grad_(True)
                optimizer = torch.optim.Adam([x], lr=0.1)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            losses.clear()
            module(x)
            loss = torch.stack(losses).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if bounds is not None:
                with torch.no_grad():
                    x.copy_(torch.minimum(torch.maximum(x, bounds[0]), bounds[1]))
            if at == steps - 1:
                out.append((x.detach().clone(),))
    finally:
        for handle in handles:
            handle.remove()
        for p, flag in zip(module.parameters(), flags, strict=True):
            p.requires_grad_(flag)
    return out
