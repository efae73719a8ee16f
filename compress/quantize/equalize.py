"""Cross-layer weight equalization (Nagel et al. 2019, section 4.1) by Brevitas, kept only where the function stays the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from compress.graph import relative_error
from deploy.checkpoint import flatten

TOLERANCE = 1e-4


@torch.no_grad()
def equalize(gm: fx.GraphModule, example: Sequence[Tensor]) -> tuple[fx.GraphModule, str]:
    """The equalized graph, or the given one where equalization changes the output; and a sentence saying which."""
    from brevitas.graph.equalize import EqualizeGraph

    trial = copy.deepcopy(gm)
    before = flatten(gm(*example))
    try:
        trial = EqualizeGraph(merge_bias=True).apply(trial)
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError, AssertionError, ValueError) as error:
        return gm, f"weight equalization is not possible on this graph ({str(error).splitlines()[0][:80]})"
    worst = max(relative_error(a, b) for a, b in zip(flatten(trial(*example)), before, strict=True))
    if not worst <= TOLERANCE:
        return gm, f"weight equalization was taken back: it changes the output by {worst:.1e}"
    return trial, f"weights equalized across layers (output differs by {worst:.1e})"
