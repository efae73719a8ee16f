"""ViT and DeiT of timm: pre-norm, fused query, key and value; tokens can be merged (tokens.py)."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress.prune.structure import HEAD, HIDDEN, NEURON, Attribute, Cut, Group, Structure, linear_cuts
from deploy.errors import UserError

CLASSES = ("VisionTransformer", "VisionTransformerDistilled")
PACKAGE = "timm."


def branches(block: str, layer: Any, k: int, after: str, sums: bool = True) -> list[Group]:
    """Heads and neurons of one timm block (`attn` with fused qkv, `mlp` with fc1 and fc2). Adapters of other timm models share it."""
    core, heads = f"{block}.attn", layer.attn.num_heads
    size = layer.attn.qkv.out_features // (3 * heads)
    attributes = [Attribute(core, "num_heads")]
    if hasattr(layer.attn, "attn_dim"):
        attributes.append(Attribute(core, "attn_dim", size))
    cuts = [*(Cut(f"{core}.qkv.{p}", 0, size, 3) for p in ("weight", "bias")), Cut(f"{core}.proj.weight", 1, size)]
    if hasattr(layer.attn, "relative_position_bias_table"):
        cuts.append(Cut(f"{core}.relative_position_bias_table", 1))
    down = f"{block}.mlp.fc2"
    return [
        Group(
            f"{block}.heads", HEAD, heads, tuple(cuts), tuple(attributes), output=f"{core}.proj", width=size,
            empty=((core, "bias", False),), sum=f"{block}.norm2" if sums else "", block=k,
        ),
        Group(
            f"{block}.neurons", NEURON, layer.mlp.fc1.out_features, linear_cuts([f"{block}.mlp.fc1"], [down]),
            output=down, empty=((f"{block}.mlp", "bias", False),), sum=after if sums else "", before=(core,), block=k,
        ),
    ]  # fmt: skip


def describe(root: nn.Module, at: str, model: Any) -> Structure:
    """Heads, neurons and hidden dimensions. Raises UserError for variants whose attention or residual has further parts."""
    for layer in model.blocks:
        parts = (
            type(layer).__name__,
            type(layer.attn).__name__ if hasattr(layer, "attn") else "",
            type(getattr(layer, "mlp", None)).__name__,
        )
        inner = [getattr(layer.attn, p, nn.Identity()) for p in ("q_norm", "k_norm", "norm")] if parts[1] else []
        plain_parts = parts == ("Block", "Attention", "Mlp") and isinstance(layer.mlp.norm, nn.Identity)
        if not plain_parts or layer.attn.gate is not None or any(not isinstance(n, nn.Identity) for n in inner):
            raise UserError(
                f"this ViT has blocks of {', '.join(p for p in parts if p)} with further parts inside, which pruning does not know; prune a plain ViT or DeiT"
            )
    final = next((n for n in ("norm", "fc_norm") if not isinstance(getattr(model, n), nn.Identity)), "")
    groups: list[Group] = []
    norms: list[str] = [f"{at}{final}"] if final else []
    readers: list[str] = []
    writers: list[str] = []
    for k, layer in enumerate(model.blocks):
        block = f"{at}blocks.{k}"
        after = f"{at}blocks.{k + 1}.norm1" if k + 1 < len(model.blocks) else f"{at}norm" if final == "norm" else ""
        groups += branches(block, layer, k, after)
        norms += [f"{block}.norm1", f"{block}.norm2"]
        readers += [f"{block}.attn.qkv", f"{block}.mlp.fc1"]
        writers += [f"{block}.attn.proj", f"{block}.mlp.fc2"]
    plain = isinstance(model.norm_pre, nn.Identity) and isinstance(
        getattr(model.patch_embed, "norm", nn.Identity()), nn.Identity
    )
    if final and plain and isinstance(model.head, nn.Linear) and getattr(model, "attn_pool", None) is None:
        cuts = [Cut(f"{at}{n}", 2) for n in ("cls_token", "pos_embed", "dist_token", "reg_token")]
        cuts += [Cut(f"{n}.{p}", 0) for n in norms for p in ("weight", "bias")]
        heads = [n for n in ("head", "head_dist") if isinstance(getattr(model, n, None), nn.Linear)]
        cuts += linear_cuts([f"{at}patch_embed.proj", *writers], [*readers, *(f"{at}{n}" for n in heads)])
        groups.append(
            Group(
                f"{at}hidden",
                HIDDEN,
                model.embed_dim,
                tuple(cuts),
                (Attribute(at.rstrip("."), "embed_dim"),),
                norms=tuple((n, 1) for n in norms),
            )
        )
    return Structure("vit", tuple(groups), tuple(f"{at}blocks.{k}" for k in range(len(model.blocks))))
