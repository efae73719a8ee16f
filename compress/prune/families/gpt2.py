"""GPT-2 of transformers: pre-norm, fused query, key and value, embedding tied with the head."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.prune.structure import HEAD, HIDDEN, NEURON, Attribute, Cut, Group, Structure, linear_cuts, parent_of

CLASSES = ("GPT2Model",)
PACKAGE = "transformers."


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Heads and neurons of every layer; hidden dimensions where a language head reads them. Its Conv1D are linear layers by now
    (prepare.py)."""
    groups, blocks, norms = [], [], [f"{at}ln_f"]
    readers, writers = [], []
    for k, layer in enumerate(model.h):
        block = f"{at}h.{k}"
        core, size, heads = f"{block}.attn", layer.attn.head_dim, layer.attn.num_heads
        groups.append(
            Group(
                f"{block}.heads", HEAD, heads,
                (*(Cut(f"{core}.c_attn.{p}", 0, size, 3) for p in ("weight", "bias")), Cut(f"{core}.c_proj.weight", 1, size)),
                (Attribute(core, "num_heads"), Attribute(core, "split_size", size)),
                output=f"{core}.c_proj", width=size, empty=((core, "bias", True),), sum=f"{block}.ln_2", block=k,
            )
        )  # fmt: skip
        after = f"{at}h.{k + 1}.ln_1" if k + 1 < len(model.h) else f"{at}ln_f"
        groups.append(
            Group(
                f"{block}.neurons", NEURON, layer.mlp.c_fc.out_features, linear_cuts([f"{block}.mlp.c_fc"], [f"{block}.mlp.c_proj"]),
                output=f"{block}.mlp.c_proj", empty=((f"{block}.mlp", "bias", False),), sum=after, before=(core,), block=k,
            )
        )  # fmt: skip
        blocks.append(block)
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        readers += [f"{core}.c_attn", f"{block}.mlp.c_fc"]
        writers += [f"{core}.c_proj", f"{block}.mlp.c_proj"]
    prefix, parent = parent_of(root, at)
    if type(parent).__name__ == "GPT2LMHeadModel":
        cuts = [Cut(f"{at}wte.weight", 1), Cut(f"{at}wpe.weight", 1), Cut(f"{prefix}lm_head.weight", 1)]
        cuts += [Cut(f"{n}.{p}", 0) for n in norms for p in ("weight", "bias")]
        cuts += linear_cuts(writers, readers)
        groups.append(
            Group(f"{at}hidden", HIDDEN, model.config.n_embd, tuple(cuts), norms=tuple((n, 1) for n in norms))
        )
    return Structure("gpt2", tuple(groups), tuple(blocks), encoder=at.rstrip("."))
