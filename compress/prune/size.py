"""Parameters and multiply-accumulates as functions of the share that every group keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.structure import HEAD, Keep, Structure

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Term:
    """`amount` of parameters or MACs that shrinks with the product of the shares of `groups`."""

    amount: float
    groups: tuple[str, ...]
    pairs: bool = False  # of attention: grows with the square of the tokens


def _sum(terms: Sequence[Term], share: Mapping[str, Any]) -> Any:
    total: Any = 0.0
    for term in terms:
        value: Any = term.amount
        for group in term.groups:
            value = value * share.get(group, 1.0)
        total = total + value
    return total


@dataclass(frozen=True)
class Size:
    """MACs per sample and parameters of one module with its structure, each a sum of terms."""

    macs_terms: tuple[Term, ...]
    parameter_terms: tuple[Term, ...]

    def macs(self, share: Mapping[str, Any] | None = None) -> Any:
        """Multiply-accumulates of one sample for shares (0 to 1, numbers or tensors) by group."""
        return _sum(self.macs_terms, share or {})

    def parameters(self, share: Mapping[str, Any] | None = None) -> Any:
        """Parameters for shares by group."""
        return _sum(self.parameter_terms, share or {})

    def per_unit(self, structure: Structure) -> dict[str, float]:
        """MACs of one unit of each branch group while everything else is whole (branches do not share terms)."""
        return {
            g.name: sum(t.amount for t in self.macs_terms if g.name in t.groups) / g.units for g in structure.groups
        }


def shares(structure: Structure, keep: Keep) -> dict[str, float]:
    """Share of units kept, by group."""
    return {n: len(i) / structure.by_name[n].units for n, i in keep.items()}


@torch.no_grad()
def measure(module: nn.Module, structure: Structure, example: Sequence[Tensor]) -> Size:
    """Count one pass of `example`: linear and convolution layers by their weights, attention by queries x keys x width x 2.

    Softmax, norms and activations are not counted (as is usual). Tied parameters count once.
    """
    samples = max(1, example[0].shape[0])
    groups_of: dict[str, list[tuple[int, str]]] = {}  # (axis, group): a weight may follow one group along both axes
    for group in structure.groups:
        for cut in group.cuts:
            groups_of.setdefault(cut.parameter, []).append((cut.axis, group.name))
    positions: dict[str, int] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    macs: list[Term] = []

    def hook(name: str) -> Any:
        def count(layer: Any, args: Any, out: Tensor) -> None:
            rows = out.numel() // layer.weight.shape[0]
            positions[name] = positions.get(name, 0) + rows
            tokens[name] = tuple(args[0].shape)

        return count

    layers = {n: m for n, m in module.named_modules() if isinstance(m, LAYERS)}
    handles = [m.register_forward_hook(hook(n)) for n, m in layers.items()]
    try:
        module(*example)
    finally:
        for handle in handles:
            handle.remove()
    for name, rows in positions.items():
        weight: Any = layers[name].weight
        macs.append(Term(rows * weight.numel() / samples, tuple(g for _, g in groups_of.get(f"{name}.weight", ()))))
    for group in structure.of(HEAD):
        shape = tokens[group.output]
        keys = tokens[group.key or group.output][-2]
        macs.append(Term(2 * math.prod(shape[:-1]) * keys * shape[-1] / samples, (group.name,), True))
    seen: set[int] = set()
    parameters = []
    for _, value in module.named_parameters(remove_duplicate=False):
        if id(value) in seen:
            continue
        seen.add(id(value))
        names = [n for n, v in module.named_parameters(remove_duplicate=False) if v is value]
        rows_cut = dict.fromkeys(row for n in names for row in groups_of.get(n, ()))
        parameters.append(Term(value.numel(), tuple(g for _, g in rows_cut)))
    return Size(tuple(macs), tuple(parameters))
