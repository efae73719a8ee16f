"""Rewrites that leave the function as it is and make layers of one kind: done before masking, and again by every reload."""

from __future__ import annotations

import torch
from torch import nn

from compress.graph import replace_module


@torch.no_grad()
def prepare(module: nn.Module) -> nn.Module:
    """In place: GPT-2's Conv1D (weights [in, out]) become linear layers, timm's LayerScale goes into the projection before it. Returns it."""
    for name, layer in list(module.named_modules()):
        if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
            linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1])
            linear.weight.copy_(layer.weight.T)
            linear.bias.copy_(layer.bias)
            replace_module(module, name, linear.train(layer.training))
        for scale, projection in (("ls1", ("attn", "proj")), ("ls2", ("mlp", "fc2"))):
            gamma = getattr(getattr(layer, scale, None), "gamma", None)
            if gamma is None:
                continue
            dense = getattr(getattr(layer, projection[0], None), projection[1], None)
            if type(layer).__name__ != "Block" or not isinstance(dense, nn.Linear):
                continue
            dense.weight.mul_(gamma[:, None])
            if dense.bias is not None:
                dense.bias.mul_(gamma)
            setattr(layer, scale, nn.Identity())
    return module
