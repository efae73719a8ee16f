"""Masks as hooks on the inputs of the output projections, and layer norms over the kept dimensions only. No model code is changed,
so this works wherever an adapter names the projections (transformers 5 has no head_mask)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.structure import Group, Structure


def _spread(mask: Tensor, width: int) -> Tensor:
    """[..., units] -> [..., units * width]"""
    return mask if width == 1 else mask.repeat_interleave(width, -1)


def kept_norm(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """LayerNorm or RMSNorm of x [..., D] over the dimensions whose mask [D] is not 0, scaled by the mask; 0 elsewhere: what a layer of the
    kept width computes."""
    kept = (mask != 0).to(x.dtype)
    count = kept.sum().clamp(min=1)
    weight: Any = getattr(layer, "weight", None)
    bias: Any = getattr(layer, "bias", None)
    if isinstance(layer, nn.LayerNorm):
        centred = (x - (x * kept).sum(-1, keepdim=True) / count) * kept
        eps = layer.eps
    else:
        centred = x * kept
        eps = float(getattr(layer, "variance_epsilon", getattr(layer, "eps", 1e-6)) or 1e-6)
    out = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + eps)
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out * mask


def _hook_output(module: nn.Module, group: Group, masks: Mapping[str, Tensor], stack: ExitStack) -> None:
    def before(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        mask = _spread(masks[group.name], group.width)
        if mask.ndim == 2:  # one mask per sample, whose windows stand together
            mask = mask.repeat_interleave(args[0].shape[0] // mask.shape[0], 0)
            mask = mask.reshape(mask.shape[0], *(1,) * (args[0].ndim - 2), mask.shape[1])
        return (args[0] * mask, *args[1:])

    stack.callback(module.get_submodule(group.output).register_forward_pre_hook(before).remove)


def _hook_norm(
    module: nn.Module, name: str, blocks: int, group: Group, masks: Mapping[str, Tensor], stack: ExitStack
) -> None:
    def after(layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return kept_norm(layer, args[0], masks[group.name].repeat(blocks))

    stack.callback(module.get_submodule(name).register_forward_hook(after).remove)


@contextmanager
def masked(module: nn.Module, structure: Structure, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """`module` computes with masks [units] (or [samples, units] for heads and neurons) by group name while the context is open.

    The mapping is read at every forward pass, so that its values may change meanwhile; the groups may not.
    """
    with ExitStack() as stack:
        for name in masks:
            group = structure.by_name[name]
            if group.output:
                _hook_output(module, group, masks, stack)
            for norm, blocks in group.norms:
                _hook_norm(module, norm, blocks, group, masks, stack)
        yield module
