"""BERT and RoBERTa of transformers: post-norm, separate query, key and value."""

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

CLASSES = ("BertModel", "RobertaModel")
PACKAGE = "transformers."
POOLED = ("BertForSequenceClassification", "BertForMultipleChoice", "BertForNextSentencePrediction")


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Heads and neurons of every layer, the hidden dimensions where the model's caller gives a place to restore them."""
    groups, blocks = [], []
    norms = [f"{at}embeddings.LayerNorm"]
    readers, writers = [], []
    for k, layer in enumerate(model.encoder.layer):
        block = f"{at}encoder.layer.{k}"
        core, dense, norm = (
            f"{block}.attention.self",
            f"{block}.attention.output.dense",
            f"{block}.attention.output.LayerNorm",
        )
        attention = layer.attention.self
        projections = [f"{core}.{p}" for p in ("query", "key", "value")]
        groups.append(
            Group(
                f"{block}.heads", HEAD, attention.num_attention_heads,
                linear_cuts(projections, [dense], attention.attention_head_size, attention.attention_head_size),
                (Attribute(core, "num_attention_heads"), Attribute(core, "all_head_size", attention.attention_head_size)),
                output=dense, width=attention.attention_head_size, empty=((core, "input", True), (dense, "bias", False)), sum=norm, block=k,
            )
        )  # fmt: skip
        up, down = f"{block}.intermediate", f"{block}.output.dense"
        groups.append(
            Group(
                f"{block}.neurons", NEURON, layer.intermediate.dense.out_features, linear_cuts([f"{up}.dense"], [down]),
                output=down, empty=((up, "input", False), (down, "bias", False)), sum=f"{block}.output.LayerNorm", before=(f"{block}.attention",), block=k,
            )
        )  # fmt: skip
        blocks.append(block)
        norms += [norm, f"{block}.output.LayerNorm"]
        readers += [*projections, f"{up}.dense"]
        writers += [dense, down]
    restore = restored(root, at)
    prefix, parent = parent_of(root, at)
    heads: list[str] = []
    if type(parent).__name__ in POOLED and model.pooler is not None:
        heads = [f"{at}pooler.dense"]
    elif type(parent).__name__ == "RobertaForSequenceClassification":
        heads = [f"{prefix}classifier.dense"]
    if restore or heads:
        pooler = [f"{at}pooler.dense"] if model.pooler is not None and restore else []
        cuts = [Cut(f"{at}embeddings.{n}_embeddings.weight", 1) for n in ("word", "position", "token_type")]
        cuts += [Cut(f"{n}.{p}", 0) for n in norms for p in ("weight", "bias")]
        cuts += linear_cuts(writers, [*readers, *heads, *pooler])
        width = model.config.hidden_size
        groups.append(
            Group(f"{at}hidden", HIDDEN, width, tuple(cuts), norms=tuple((n, 1) for n in norms), restore=restore)
        )
    return Structure(
        "bert", tuple(groups), tuple(blocks), encoder=at.rstrip("."), vocabulary=f"{at}embeddings.word_embeddings"
    )
