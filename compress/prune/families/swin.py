"""Swin of timm: windows, relative position biases that follow the heads, one residual stream per stage."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.prune.families.vit import branches
from compress.prune.structure import HIDDEN, Cut, Group, Structure, linear_cuts

CLASSES = ("SwinTransformer",)
PACKAGE = "timm."


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Heads and neurons of every block, hidden dimensions of every stage (a merging layer reads four pixels of the stage before)."""
    groups: list[Group] = []
    hidden: list[Group] = []
    blocks: list[str] = []
    for s, stage in enumerate(model.layers):
        norms: list[tuple[str, int]] = []
        readers, writers = [], []
        for b, layer in enumerate(stage.blocks):
            block = f"{at}layers.{s}.blocks.{b}"
            groups += branches(block, layer, len(blocks), "", sums=False)
            blocks.append(block)
            norms += [(f"{block}.norm1", 1), (f"{block}.norm2", 1)]
            readers += [f"{block}.attn.qkv", f"{block}.mlp.fc1"]
            writers += [f"{block}.attn.proj", f"{block}.mlp.fc2"]
        width = stage.blocks[0].norm1.normalized_shape[0]
        if s == 0:
            writers.append(f"{at}patch_embed.proj")
            norms.append((f"{at}patch_embed.norm", 1))
        else:
            writers.append(f"{at}layers.{s}.downsample.reduction")
        cuts: list[Cut] = []
        given_out = False
        if s + 1 < len(model.layers):
            merge = f"{at}layers.{s + 1}.downsample"
            norms.append((f"{merge}.norm", 4))
            cuts.append(Cut(f"{merge}.reduction.weight", 1, blocks=4))
        else:
            norms.append((f"{at}norm", 1))
            readers.append(f"{at}head.fc")
            given_out = not isinstance(model.head.fc, nn.Linear)
        cuts += [Cut(f"{n}.{p}", 0, blocks=k) for n, k in norms for p in ("weight", "bias")]
        if given_out:
            continue  # the features are the output
        hidden.append(
            Group(f"{at}layers.{s}.hidden", HIDDEN, width, (*cuts, *linear_cuts(writers, readers)), norms=tuple(norms))
        )
    return Structure("swin", (*groups, *hidden), tuple(blocks))
