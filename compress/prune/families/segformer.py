"""SegFormer of transformers: four stages, attention over reduced keys, depthwise convolution among the neurons."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.prune.structure import HEAD, HIDDEN, NEURON, Attribute, Cut, Group, Structure, linear_cuts, parent_of

CLASSES = ("SegformerModel",)
PACKAGE = "transformers."


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Heads and neurons of every block, hidden dimensions of every stage where a decode head reads them."""
    groups: list[Group] = []
    hidden: list[Group] = []
    blocks: list[str] = []
    prefix, parent = parent_of(root, at)
    decoder = f"{prefix}decode_head.linear_projections"
    decoded = type(parent).__name__ == "SegformerForSemanticSegmentation"
    for s, stage in enumerate(model.stages):
        name = f"{at}stages.{s}"
        norms = [f"{name}.patch_embeddings.layer_norm", f"{name}.layer_norm"]
        readers, writers = [], [f"{name}.patch_embeddings.proj"]
        for b, layer in enumerate(stage.blocks):
            block = f"{name}.blocks.{b}"
            core, size = f"{block}.attention", layer.attention.head_dim
            projections = [f"{core}.{p}_proj" for p in "qkv"]
            groups.append(
                Group(
                    f"{block}.heads", HEAD, layer.attention.num_attention_heads, linear_cuts(projections, [f"{core}.o_proj"], size, size),
                    (Attribute(core, "num_attention_heads"),), output=f"{core}.o_proj", width=size, key=f"{core}.k_proj",
                    empty=((core, "bias", True),), sum=f"{block}.layernorm_after", block=len(blocks),
                )
            )  # fmt: skip
            after = f"{name}.blocks.{b + 1}.layernorm_before" if b + 1 < len(stage.blocks) else f"{name}.layer_norm"
            mlp = f"{block}.mlp"
            groups.append(
                Group(
                    f"{block}.neurons", NEURON, layer.mlp.fc1.out_features,
                    linear_cuts([f"{mlp}.fc1", f"{mlp}.dwconv.dwconv"], [f"{mlp}.fc2"]),
                    output=f"{mlp}.fc2", empty=((mlp, "bias", False),), sum=after, before=(core,), block=len(blocks),
                )
            )  # fmt: skip
            blocks.append(block)
            norms += [f"{block}.layernorm_before", f"{block}.layernorm_after"]
            readers += [*projections, f"{mlp}.fc1"]
            writers += [f"{core}.o_proj", f"{mlp}.fc2"]
            if layer.attention.sequence_reduction_ratio > 1:  # its result is reshaped to the width of its input
                readers.append(f"{core}.sequence_reduction.sequence_reduction")
                writers.append(f"{core}.sequence_reduction.sequence_reduction")
                norms.append(f"{core}.sequence_reduction.layer_norm")
        if s + 1 < len(model.stages):
            readers.append(f"{at}stages.{s + 1}.patch_embeddings.proj")
        if decoded:
            readers.append(f"{decoder}.{s}.proj")
            cuts = (*(Cut(f"{n}.{p}", 0) for n in norms for p in ("weight", "bias")), *linear_cuts(writers, readers))
            width = stage.layer_norm.normalized_shape[0]
            hidden.append(Group(f"{name}.hidden", HIDDEN, width, cuts, norms=tuple((n, 1) for n in norms)))
    return Structure("segformer", (*groups, *hidden), tuple(blocks))
