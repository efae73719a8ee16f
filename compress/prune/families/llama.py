"""LLaMA-like models of transformers: pre-norm with RMSNorm, gated FFN, grouped key-value heads (a removed key-value head takes its
query heads along), embedding tied with the head or not."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.prune.structure import HEAD, HIDDEN, NEURON, Cut, Group, Structure, linear_cuts, parent_of

CLASSES = ("LlamaModel", "MistralModel")
PACKAGE = "transformers."


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Key-value heads and neurons of every layer; hidden dimensions where a language head reads them."""
    groups, blocks, norms = [], [], [f"{at}norm"]
    readers, writers = [], []
    for k, layer in enumerate(model.layers):
        block = f"{at}layers.{k}"
        core, size = f"{block}.self_attn", layer.self_attn.head_dim
        grouped = layer.self_attn.num_key_value_groups
        heads = layer.self_attn.k_proj.out_features // size
        cuts = linear_cuts([f"{core}.q_proj"], [f"{core}.o_proj"], grouped * size, grouped * size) + linear_cuts(
            [f"{core}.k_proj", f"{core}.v_proj"], [], size
        )
        groups.append(
            Group(
                f"{block}.heads", HEAD, heads, cuts, output=f"{core}.o_proj", width=grouped * size,
                empty=((core, "bias", True),), sum=f"{block}.post_attention_layernorm", block=k,
            )
        )  # fmt: skip
        after = f"{at}layers.{k + 1}.input_layernorm" if k + 1 < len(model.layers) else f"{at}norm"
        mlp = f"{block}.mlp"
        groups.append(
            Group(
                f"{block}.neurons", NEURON, layer.mlp.gate_proj.out_features,
                linear_cuts([f"{mlp}.gate_proj", f"{mlp}.up_proj"], [f"{mlp}.down_proj"]),
                output=f"{mlp}.down_proj", empty=((mlp, "bias", False),), sum=after, before=(core,), block=k,
            )
        )  # fmt: skip
        blocks.append(block)
        norms += [f"{block}.input_layernorm", f"{block}.post_attention_layernorm"]
        readers += [*(f"{core}.{p}_proj" for p in "qkv"), f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        writers += [f"{core}.o_proj", f"{mlp}.down_proj"]
    prefix, parent = parent_of(root, at)
    if type(parent).__name__ in ("LlamaForCausalLM", "MistralForCausalLM"):
        cuts = (
            Cut(f"{at}embed_tokens.weight", 1),
            Cut(f"{prefix}lm_head.weight", 1),
            *(Cut(f"{n}.weight", 0) for n in norms),
        )
        cuts += linear_cuts(writers, readers)
        groups.append(Group(f"{at}hidden", HIDDEN, model.config.hidden_size, cuts, norms=tuple((n, 1) for n in norms)))
    return Structure("llama", tuple(groups), tuple(blocks), encoder=at.rstrip("."))
