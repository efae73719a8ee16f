"""DistilBERT of transformers: post-norm, separate query, key and value."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.prune.structure import (
    HEAD,
    HIDDEN,
    NEURON,
    Attribute,
    Cut,
    Group,
    Structure,
    linear_cuts,
    parent_of,
    restored,
)

CLASSES = ("DistilBertModel",)
PACKAGE = "transformers."


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Heads and neurons of every layer, the hidden dimensions where the model's caller gives a place to restore them."""
    groups, blocks, norms = [], [], [f"{at}embeddings.LayerNorm"]
    readers, writers = [], []
    for k, layer in enumerate(model.transformer.layer):
        block = f"{at}transformer.layer.{k}"
        core, size = f"{block}.attention", layer.attention.attention_head_size
        projections = [f"{core}.{p}" for p in ("q_lin", "k_lin", "v_lin")]
        groups.append(
            Group(
                f"{block}.heads", HEAD, layer.attention.n_heads, linear_cuts(projections, [f"{core}.out_lin"], size, size),
                (Attribute(core, "n_heads"),), output=f"{core}.out_lin", width=size,
                empty=((core, "bias", True),), sum=f"{block}.sa_layer_norm", block=k,
            )
        )  # fmt: skip
        groups.append(
            Group(
                f"{block}.neurons", NEURON, layer.ffn.lin1.out_features, linear_cuts([f"{block}.ffn.lin1"], [f"{block}.ffn.lin2"]),
                output=f"{block}.ffn.lin2", empty=((f"{block}.ffn", "bias", False),), sum=f"{block}.output_layer_norm", before=(core,), block=k,
            )
        )  # fmt: skip
        blocks.append(block)
        norms += [f"{block}.sa_layer_norm", f"{block}.output_layer_norm"]
        readers += [*projections, f"{block}.ffn.lin1"]
        writers += [f"{core}.out_lin", f"{block}.ffn.lin2"]
    restore = restored(root, at)
    prefix, parent = parent_of(root, at)
    heads = [f"{prefix}pre_classifier"] if type(parent).__name__ == "DistilBertForSequenceClassification" else []
    if restore or heads:
        cuts = [Cut(f"{at}embeddings.{n}.weight", 1) for n in ("word_embeddings", "position_embeddings")]
        cuts += [Cut(f"{n}.{p}", 0) for n in norms for p in ("weight", "bias")]
        cuts += linear_cuts(writers, [*readers, *heads])
        groups.append(
            Group(
                f"{at}hidden",
                HIDDEN,
                model.config.dim,
                tuple(cuts),
                norms=tuple((n, 1) for n in norms),
                restore=restore,
            )
        )
    return Structure(
        "distilbert", tuple(groups), tuple(blocks), encoder=at.rstrip("."), vocabulary=f"{at}embeddings.word_embeddings"
    )
