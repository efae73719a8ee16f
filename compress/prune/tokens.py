"""Fewer tokens, layer by layer: how many leave each block is chosen like everything else, what leaves is merged into its likest neighbour.

Merging is bipartite soft matching of keys (Bolya et al. 2023, "Token Merging: Your ViT But Faster", sections 3 and D), with attention in proportion to
the tokens that one stands for. A schedule of counts is what OPTIN's token pruning amounts to at run time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.graph import replace_module
from compress.prune.context import Context, record
from compress.prune.methods import optin
from compress.prune.search import knapsack
from compress.prune.size import Size
from compress.prune.slim import Emptied
from compress.prune.structure import HEAD, Structure
from deploy.checkpoint import flatten
from deploy.errors import UserError

UNIT_SHARES = (0.0, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85)  # of the MACs that go, those of heads and neurons
LEVELS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # share of a block's tokens that leave, at most half


class Merging(nn.Sequential):
    """timm's blocks, each merging some of its tokens away between attention and MLP. Names of parameters stay.

    leave: tokens that leave each block. prefix: class tokens in front, which stay. Input and output [N, T, D], the latter with fewer T.
    """

    def __init__(self, blocks: nn.Sequential, leave: Sequence[int], prefix: int) -> None:
        super().__init__(*blocks)
        self.leave, self.prefix = tuple(leave), prefix

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor | None = None
        for block, count in zip(self, self.leave, strict=True):
            part: Any = block
            normed = part.norm1(x)
            if isinstance(part.attn, Emptied):
                out, keys = part.attn(normed), normed
            else:
                out, keys = attend(part.attn, normed, weight)
            x = x + part.ls1(out)
            if count:
                x, weight = merge(x, keys, weight, count, self.prefix)
            x = x + part.ls2(part.mlp(part.norm2(x)))
        return x


def attend(attention: Any, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """(output [N, T, D], mean key over heads [N, T, K]) of a timm attention; weight [N, T]: how many tokens each one stands for."""
    batch, tokens = x.shape[0], x.shape[1]
    qkv = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    if weight is not None:
        scores = scores + weight.log()[:, None, None, :]
    out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, attention.attn_dim)
    return attention.proj(out), key.mean(1)


def merge(x: Tensor, keys: Tensor, weight: Tensor | None, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merge `count` tokens of x [N, T, D] into others by likeness of keys [N, T, K]; returns (tokens [N, T - count, D], their weights [N, T - count]).

    Tokens at even places may go into ones at odd places. The order within either set changes, class tokens stay first.
    """
    if weight is None:
        weight = torch.ones_like(x[:, :, 0])
    head, body = x[:, :prefix], x[:, prefix:]
    keys = F.normalize(keys[:, prefix:], dim=-1)
    amount = weight[:, prefix:, None]
    source, target = body[:, ::2] * amount[:, ::2], body[:, 1::2] * amount[:, 1::2]
    likeness = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    best, where = likeness.max(-1)
    order = best.topk(best.shape[1], dim=-1)[1]  # all of them, likest first
    go, stay = order[:, :count], order[:, count:]
    onto = F.one_hot(where.gather(1, go), target.shape[1]).to(x.dtype).transpose(1, 2)  # [N, targets, count]
    wide = (-1, -1, x.shape[2])
    moved = source.gather(1, go[:, :, None].expand(wide))
    left = source.gather(1, stay[:, :, None].expand(wide))
    even, odd = amount[:, ::2], amount[:, 1::2]
    target = target + onto @ moved
    odd = odd + onto @ even.gather(1, go[:, :, None])
    sizes = torch.cat([even.gather(1, stay[:, :, None]), odd], 1)
    body = torch.cat([left, target], 1) / sizes
    return torch.cat([head, body], 1), torch.cat([weight[:, :prefix], sizes[:, :, 0]], 1)


def merging(module: nn.Module, structure: Structure, leave: Sequence[int]) -> nn.Module:
    """A copy of a ViT whose blocks merge `leave` tokens away. Raises UserError for models of other families."""
    where = _blocks(structure)
    module = copy.deepcopy(module)
    blocks: Any = module.get_submodule(where)
    owner: Any = module.get_submodule(where.rpartition(".")[0])
    left = int(owner.patch_embed.num_patches)
    for count in leave:
        if count > left // 2:
            raise UserError(
                f"{count} tokens cannot leave a block that has {left}: at most half can; run deploy compress again"
            )
        left -= count
    replace_module(module, where, Merging(blocks, leave, int(owner.num_prefix_tokens)).train(module.training))
    return module


def _blocks(structure: Structure) -> str:
    if structure.family != "vit":
        raise UserError(f"--prune-tokens merges tokens of ViT and DeiT; this is a {structure.family}")
    return structure.blocks[0].rpartition(".")[0]


def token_macs(size: Size, structure: Structure, tokens: int) -> list[tuple[float, float, float]]:
    """Per block: MACs per token before merging, after merging, and per pair of tokens (attention)."""
    found = []
    for k in range(len(structure.blocks)):
        head = next(g for g in structure.of(HEAD) if g.block == k)
        neuron = next(g for g in structure.branches() if g.block == k and g.kind != HEAD)
        terms = [t for t in size.macs_terms if head.name in t.groups]
        pair = next(t.amount for t in terms if t.pairs)
        found.append(
            (
                (sum(t.amount for t in terms) - pair) / tokens,
                sum(t.amount for t in size.macs_terms if neuron.name in t.groups) / tokens,
                pair / tokens**2,
            )
        )
    return found


def merge_macs(count: int, leave: int, prefix: int, key: int, width: int) -> float:
    """MACs of one merging itself: likeness of all even with all odd tokens, and adding up the ones that leave."""
    if not leave:
        return 0.0
    even, odd = -(-(count - prefix) // 2), (count - prefix) // 2
    return even * odd * key + odd * leave * (width + 1)


@dataclass(frozen=True)
class Merges:
    """What a merging costs in a model: class tokens, width of keys and of tokens."""

    prefix: int
    key: int
    width: int

    @classmethod
    def of(cls, module: nn.Module, structure: Structure) -> Merges:
        owner: Any = module.get_submodule(_blocks(structure).rpartition(".")[0])
        return cls(int(owner.num_prefix_tokens), int(owner.blocks[0].attn.head_dim), int(owner.embed_dim))

    def macs(self, count: int, leave: int) -> float:
        return merge_macs(count, leave, self.prefix, self.key, self.width)


def merged_macs(
    size: Size, structure: Structure, share: dict[str, float], tokens: int, leave: Sequence[int], merges: Merges
) -> float:
    """MACs per sample with shares of units kept and tokens merged away."""
    rest = float(size.macs({g.name: 0.0 for g in structure.branches()}))
    count = tokens
    for k, (before, after, pair) in enumerate(token_macs(size, structure, tokens)):
        head = next(g.name for g in structure.of(HEAD) if g.block == k)
        neuron = next(g.name for g in structure.branches() if g.block == k and g.kind != HEAD)
        rest += share.get(head, 1.0) * (before * count + pair * count**2)
        rest += merges.macs(count, leave[k])
        count -= leave[k]
        rest += share.get(neuron, 1.0) * after * count
    return rest


@torch.no_grad()
def losses(context: Context) -> tuple[int, list[dict[int, float]]]:
    """(tokens per image, per block: loss by tokens that leave there alone). The loss is the output's relative error, twice, to stand beside the units'
    trajectories, which have the features' error as their second term: tokens that are gone have no features to compare."""
    structure = context.structure
    inputs = tuple(x[: optin.SAMPLES] for x in context.batches[0])
    stored, dense = record(context.module, structure.blocks, inputs)
    tokens = flatten(stored[structure.blocks[0]])[0].shape[1]
    owner: Any = context.module.get_submodule(_blocks(structure).rpartition(".")[0])
    prefix = int(owner.num_prefix_tokens)

    found: list[dict[int, float]] = []
    for k in context.track(range(len(structure.blocks)), "OPTIN, tokens"):
        row = {0: 0.0}
        for share in LEVELS[1:]:
            count = min(round(share * tokens), (tokens - prefix) // 2)
            leave = [count if i == k else 0 for i in range(len(structure.blocks))]
            merged = merging(context.module, structure, leave)
            out = flatten(merged(*inputs))[0]
            row[count] = 2 * optin.relative_error(out, dense, None)
        found.append(dict(sorted(row.items())))
    return tokens, found


def schedule(
    macs: list[tuple[float, float, float]],
    tokens: int,
    curves: list[dict[int, float]],
    saving: float,
    merges: Merges,
) -> tuple[list[int], float] | None:
    """(tokens that leave each block, summed loss) of least loss that saves `saving` MACs; None where merging cannot save as much.

    Dynamic programming from block to block over the number of tokens, at a price per MAC that is found by bisection.
    """
    whole = sum(before * tokens + after * tokens + pair * tokens**2 for before, after, pair in macs)

    def solve(price: float) -> tuple[list[int], float, float]:
        best: dict[int, tuple[float, float, float, list[int]]] = {tokens: (0.0, 0.0, 0.0, [])}
        for (before, after, pair), curve in zip(macs, curves, strict=True):
            known, values = np.array(list(curve)), np.array(list(curve.values()))
            then: dict[int, tuple[float, float, float, list[int]]] = {}
            for count, (total, loss, cost, path) in best.items():
                for leave in range(min(int(known[-1]), (count - merges.prefix) // 2) + 1):
                    # a token of fewer stands for more of the image
                    extra = float(np.interp(leave * tokens / count, known, values))
                    spent = before * count + pair * count**2 + after * (count - leave) + merges.macs(count, leave)
                    value = total + extra + price * spent
                    if count - leave not in then or value < then[count - leave][0]:
                        then[count - leave] = (value, loss + extra, cost + spent, [*path, leave])
            best = then
        _, loss, cost, path = min(best.values())
        return path, loss, cost

    low, high = 0.0, 1.0
    scale = 1.0 / whole
    while solve(high * scale)[2] > whole - saving:
        high *= 4
        if high > 1e9:
            return None
    for _ in range(30):
        middle = (low + high) / 2
        if solve(middle * scale)[2] > whole - saving:
            low = middle
        else:
            high = middle
    path, loss, _ = solve(high * scale)
    return path, loss


def exact(context: Context, share: dict[str, float], tokens: int, curves: list[dict[int, float]]) -> list[int]:
    """Tokens that leave each block so that the units that really stay, and merging, meet the target. Raises UserError where that is out of reach."""
    size, structure = context.size, context.structure
    table = []
    for k, (before, after, pair) in enumerate(token_macs(size, structure, tokens)):
        head = next(g.name for g in structure.of(HEAD) if g.block == k)
        neuron = next(g.name for g in structure.branches() if g.block == k and g.kind != HEAD)
        table.append((before * share.get(head, 1.0), after * share.get(neuron, 1.0), pair * share.get(head, 1.0)))
    found = schedule(
        table,
        tokens,
        curves,
        float(size.macs(share)) - context.macs * float(size.macs()),
        Merges.of(context.module, structure),
    )
    if found is None:
        raise UserError(f"--macs {context.macs:g} is out of reach even with merged tokens; ask for more")
    return found[0]


def split(context: Context) -> tuple[float, int, list[dict[int, float]]]:
    """(share of MACs left for heads and neurons, tokens of an image, loss by tokens that leave each block): the split of least predicted loss.

    Raises UserError where the target is out of reach.
    """
    whole = float(context.size.macs())
    merges = Merges.of(context.module, context.structure)
    tokens, curves = losses(context)
    units = optin.scores(context)
    best: tuple[float, float] | None = None
    rows = []
    for share in UNIT_SHARES:
        macs = 1 - (1 - context.macs) * share
        loss, scale = 0.0, 1.0
        if share:
            budget = context.budget + (macs - context.macs) * whole
            try:
                levels = knapsack(budget, [c.costs for c in units.values()], [c.losses for c in units.values()])
            except UserError:
                continue
            loss = sum(float(c.losses[k]) for c, k in zip(units.values(), levels, strict=True))
            scale = macs
        table = token_macs(context.size, context.structure, tokens)
        table = [(a * scale, b * scale, c * scale) for a, b, c in table]
        found = schedule(table, tokens, curves, (macs - context.macs) * whole, merges)
        if found is None:
            continue
        rows.append({"units": round(macs, 4), "tokens": found[0], "loss": loss + found[1]})
        if best is None or loss + found[1] < best[0]:
            best = (loss + found[1], macs)
    if best is None:
        raise UserError(f"--macs {context.macs:g} is out of reach even with merged tokens; ask for more")
    context.notes["splits"] = rows
    return best[1], tokens, curves
