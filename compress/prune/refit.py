"""Closed-form refit of the output projections after pruning, without labels.

Branch by branch in the order of execution, the kept columns and the bias solve a ridge regression onto what the dense model has at the residual
sum behind the branch, with the inputs that the pruned model really gets there, so that later branches make up for earlier losses.
Source of the idea: least-squares mask tuning of Kwon et al. 2022 (section 4.3), here for whole weights; the ridge pulls to the weights that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.context import Inputs, capture, record, replayed, run, valid_tokens
from compress.prune.structure import Group, Keep, Structure

RIDGE = 1e-2
TOKENS = 16_384  # at most, over all calibration samples


def rows_of(x: Tensor, valid: Tensor | None) -> Tensor:
    """[N, T, ..., D] -> [rows, D], padding left out."""
    if valid is not None and x.shape[: valid.ndim] == valid.shape:
        return x[valid]
    return x.reshape(-1, x.shape[-1])


def _place(group: Group) -> dict[str, str]:
    """What to capture: the residual sum, or the branch's own output where there is none."""
    return {f"{group.sum}@sum": "in"} if group.sum else {f"{group.output}@out": "out"}


def limited(
    batches: Sequence[Inputs], structure: Structure, tokens_of: str, module: nn.Module, most: int = TOKENS
) -> list[Inputs]:
    """As many batches as give `most` tokens at the module `tokens_of` (at least one)."""
    used: list[Inputs] = []
    count = 0
    with torch.no_grad(), capture(module, {tokens_of: "in"}, stop=tokens_of) as seen:
        for row in batches:
            run(module, row)
            count += seen[tokens_of].numel() // seen[tokens_of].shape[-1]
            used.append(row)
            if count >= most:
                break
    return used


@torch.no_grad()
def dense_targets(module: nn.Module, structure: Structure, batches: Sequence[Inputs]) -> dict[str, list[Tensor]]:
    """What the dense model has behind every branch: [rows, D] per batch, by group."""
    wanted: dict[str, str] = {}
    for group in structure.branches():
        wanted |= _place(group)
    found: dict[str, list[Tensor]] = {g.name: [] for g in structure.branches()}
    with capture(module, wanted) as seen:
        for row in batches:
            run(module, row)
            valid = valid_tokens(structure, row)
            for group in structure.branches():
                found[group.name].append(rows_of(seen[next(iter(_place(group)))], valid).clone())
    return found


def solve(gram: Tensor, cross: Tensor, start: Tensor, ridge: float = RIDGE) -> Tensor:
    """Weights [D, F] that minimise |X w' - T|^2 + ridge * mean diag * |w - start|^2, from gram X'X [F, F] and cross X'(T - X start') [F, D]."""
    strength = ridge * float(gram.diagonal().mean()) + 1e-12
    left = gram + strength * torch.eye(len(gram), dtype=gram.dtype)
    return start + torch.linalg.solve(left, cross).T


@torch.no_grad()
def refit(
    small: nn.Module,
    dense: nn.Module,
    structure: Structure,
    keep: Keep,
    batches: Sequence[Inputs],
    ridge: float = RIDGE,
) -> dict[str, float]:
    """Refit every branch of the slim model `small` in place; returns the share of the squared error that is left, by group.

    keep: what `small` was cut to. Hidden dimensions that were removed are left out of the targets.
    """
    hidden = next((keep[g.name] for g in structure.of("hidden") if g.name in keep), None)
    first = structure.branches()[0]
    batches = limited(batches, structure, first.output, dense)
    targets = dense_targets(dense, structure, batches)
    left: dict[str, float] = {}
    pruned = False
    cached: list[dict[str, Any]] = [{} for _ in batches]  # outputs of the blocks that are done, by batch
    for group in structure.branches():
        _replay_until(small, structure, group.block, batches, cached)
        pruned = pruned or len(keep.get(group.name, torch.arange(group.units))) < group.units or hidden is not None
        if not pruned:
            targets.pop(group.name)
            continue
        left[group.name] = _refit_branch(
            small, structure, group, batches, targets.pop(group.name), hidden, ridge, cached
        )
    return left


def _replay_until(
    small: nn.Module, structure: Structure, block: int, batches: Sequence[Inputs], cached: list[dict[str, Any]]
) -> None:
    """Store the outputs of every block before `block`, whose weights change no more (prefix caching)."""
    names = [n for n in structure.blocks[:block] if n not in cached[0]]
    if not names:
        return
    for row, done in zip(batches, cached, strict=True):
        with replayed(small, done):
            done |= record(small, names, row, stop=True)[0]


def _projection(small: nn.Module, group: Group) -> tuple[str, Any]:
    """The output projection of a slim branch, or the bias module that replaced it."""
    for name, form, _ in group.empty:
        part = small.get_submodule(name)
        if form == "bias" and type(part).__name__ == "Emptied":
            return name, part
    return group.output, small.get_submodule(group.output)


def _refit_branch(
    small: nn.Module,
    structure: Structure,
    group: Group,
    batches: Sequence[Inputs],
    targets: list[Tensor],
    hidden: Tensor | None,
    ridge: float,
    cached: list[dict[str, Any]],
) -> float:
    name, layer = _projection(small, group)
    emptied = type(layer).__name__ == "Emptied"
    bias = layer.bias
    wanted = (
        {f"{name}@out": "out"}
        | ({} if emptied else {f"{name}@in": "in"})
        | ({f"{group.sum}@sum": "in"} if group.sum else {})
    )
    gram: Any = 0.0
    cross: Any = 0.0
    before = 0.0
    with capture(small, wanted, stop=f"{group.sum}@sum" if group.sum else f"{name}@out") as seen:
        for row, want, done in zip(batches, targets, cached, strict=True):
            with replayed(small, done):
                run(small, row)
            valid = valid_tokens(structure, row)
            out = rows_of(seen[f"{name}@out"], valid)
            total = rows_of(seen[f"{group.sum}@sum"], valid) if group.sum else out
            want = want if hidden is None or want.shape[1] == total.shape[1] else want[:, hidden]
            error = want - total  # what the branch should add to its output
            x = out.new_zeros(len(out), 0) if emptied else rows_of(seen[f"{name}@in"], valid)
            if bias is not None:
                x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            gram = gram + (x.T @ x).double()
            cross = cross + (x.T @ error).double()
            before += float(error.double().square().sum())
    start = torch.zeros(cross.shape[1], cross.shape[0], dtype=cross.dtype)
    change = solve(gram, cross, start, ridge)
    after = before - float((2 * change.T * cross).sum() - (change @ gram * change).sum())
    if not emptied:
        layer.weight.add_(change[:, : layer.weight.shape[1]].to(layer.weight.dtype))
    if bias is not None:
        bias.add_(change[:, -1].to(bias.dtype))
    return after / max(before, 1e-30)
