"""Branch merging: training-time parallel branches (RepVGG, MobileOne, FastViT, RepViT, ...) become the one convolution that
they compute, before anything is quantized; merging after quantization is not possible.

timm's blocks carry their own exact merge (`reparameterize`, `fuse`); what is checked here is that the outputs agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.graph import relative_error
from deploy.errors import BoundError

TOLERANCE = 1e-4


@dataclass(frozen=True)
class MergeRecord:
    """Names of the merged blocks and the largest relative output difference after merging."""

    blocks: tuple[str, ...]
    error: float


def mergeable(module: nn.Module) -> tuple[str, ...]:
    """Names of the sub-modules that offer a branch merge of their own."""
    return tuple(
        n
        for n, m in module.named_modules()
        if any(callable(getattr(m, a, None)) for a in ("reparameterize", "switch_to_deploy", "fuse"))
        and list(m.children())
        and type(m).__module__.startswith("timm.")
    )


@torch.no_grad()
def merge_branches(module: nn.Module, example: Sequence[Tensor]) -> tuple[nn.Module, MergeRecord]:
    """Merge in place and return the module. Raises BoundError when the merged model computes something else (over 1e-4
    relative to the largest output): that would be a fault of the block's own merge, and continuing would hide it."""
    blocks = mergeable(module)
    if not blocks:
        return module, MergeRecord((), 0.0)
    from timm.utils.model import reparameterize_model

    from deploy.checkpoint import flatten

    before = flatten(module(*example))
    merged = reparameterize_model(module, inplace=True).eval()
    after = flatten(merged(*example))
    errors = [relative_error(a, b) for a, b in zip(after, before, strict=True)]
    finite = [e for e in errors if e != float("inf")]
    worst = max(finite, default=0.0)
    if worst > TOLERANCE:
        raise BoundError(
            f"merging the branches of {blocks[0]!r} and {len(blocks) - 1} more changes the output by {worst:.1e} relative; report this model"
        )
    return merged, MergeRecord(blocks, worst)
