"""OPTIN's recipe with a trajectory per sublayer instead of per unit: the default.

As in the paper ("The Need for Speed: Pruning Transformers with One Recipe", ICLR 2024) one batch without labels, no gradients, no retraining, and
importance is what a removal does to all later layers and to the output. Different: (1) within a sublayer the order of removal is that of the least
error after refitting the output projection (optimal brain surgeon on the Gram matrix of its inputs, as in ZipLM), since a refit follows anyway;
(2) the trajectory is measured for whole levels of removal, refitted, so that units that stand in for each other are not counted twice; (3) its terms
are relative errors, averaged over depth, so that early layers are not favoured for having more layers behind them; (4) levels are chosen by dynamic
programming under the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.prune.context import Context, Inputs, before, capture, record, replayed, run, valid_tokens
from compress.prune.refit import limited, rows_of
from compress.prune.search import check, knapsack
from compress.prune.structure import Group, Keep
from deploy.checkpoint import flatten

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RIDGE = 1e-2
SAMPLES = 64
FINE = 64  # levels per sublayer for the search, interpolated


@dataclass(frozen=True)
class Path:
    """Order in which units of one group leave (last first), and refitted weights [D, F] and bias [D] at some counts of units kept."""

    order: Tensor
    weights: dict[int, tuple[Tensor, Tensor | None]]


def removal_path(gram: Tensor, weight: Tensor, bias: Tensor | None, width: int, counts: Sequence[int]) -> Path:
    """Backward elimination with optimal compensation.

    gram [F + 1, F + 1]: X'X of the projection's inputs and a constant 1. weight [D, F], bias [D] or None. width: columns per unit.
    A unit's cost is the squared error of the outputs after its removal and the best change of everything that stays.
    """
    columns = weight.shape[1]
    units = columns // width
    if bias is None:
        gram = gram[:columns, :columns]
    ridge = RIDGE * float(gram.diagonal()[:columns].mean()) + 1e-12
    inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    now = torch.cat([weight.double(), bias.double()[:, None]], 1) if bias is not None else weight.double().clone()
    alive = torch.arange(units)
    gone: list[Tensor] = []
    wanted = set(counts)
    found: dict[int, tuple[Tensor, Tensor | None]] = {}

    def keep_state() -> None:
        found[len(alive)] = (
            now[:, :columns].float().clone(),
            now[:, columns].float().clone() if bias is not None else None,
        )

    if units in wanted:
        keep_state()
    while len(alive):
        at = (alive[:, None] * width + torch.arange(width)).reshape(-1)
        if width == 1:
            cost = now[:, at].square().sum(0) / inverse.diagonal()[at]
        else:
            cost = torch.stack([_cost(now, inverse, at[k * width : (k + 1) * width]) for k in range(len(alive))])
        floor = max((c for c in wanted if c < len(alive)), default=0)
        step = min(max(1, len(alive) // 64) if width == 1 else 1, len(alive) - floor)
        worst = cost.argsort()[:step]
        out = at.reshape(len(alive), width)[worst].reshape(-1)
        inner = torch.linalg.solve(inverse[out][:, out], inverse[out])
        now = now - now[:, out] @ inner
        inverse = inverse - inverse[:, out] @ inner
        now[:, out] = 0
        gone.append(alive[worst])
        stay = torch.ones(len(alive), dtype=torch.bool)
        stay[worst] = False
        alive = alive[stay]
        if len(alive) in wanted:
            keep_state()
    return Path(torch.cat(gone).flip(0), found)


def _cost(weight: Tensor, inverse: Tensor, at: Tensor) -> Tensor:
    part = weight[:, at]
    return (torch.linalg.solve(inverse[at][:, at], part.T) * part.T).sum()


@torch.no_grad()
def grams(context: Context) -> dict[str, Tensor]:
    """X'X [F + 1, F + 1] in double of every output projection's inputs and a constant 1, padding left out."""
    groups = context.structure.branches()
    found: dict[str, Any] = {}
    batches = limited(context.batches, context.structure, groups[0].output, context.module)
    with capture(context.module, {g.output: "in" for g in groups}) as seen:
        for batch in batches:
            run(context.module, batch)
            valid = valid_tokens(context.structure, batch)
            for group in groups:
                x = rows_of(seen[group.output], valid)
                x = torch.cat([x, x.new_ones(len(x), 1)], 1)
                found[group.name] = found.get(group.name, 0.0) + (x.T @ x).double()
    return found


def relative_error(a: Tensor, b: Tensor, valid: Tensor | None) -> float:
    """|a - b|^2 over the variance of b; padding left out."""
    a, b = rows_of(a, valid), rows_of(b, valid)
    return float((a - b).square().sum() / (b - b.mean(0)).square().sum().clamp(min=1e-30))


@torch.no_grad()
def trajectory(
    context: Context, group: Group, path: Path, stored: dict[str, Any], dense: Tensor, inputs: Inputs
) -> dict[int, float]:
    """Loss by units kept: relative error of the output plus that of the later blocks' outputs, averaged over depth."""
    module, structure = context.module, context.structure
    layer: Any = module.get_submodule(group.output)
    later = list(structure.blocks[group.block :])
    cached = {n: stored[n] for n in before(structure, group) if n in stored}
    valid = valid_tokens(structure, inputs)
    keep = layer.weight.data, None if layer.bias is None else layer.bias.data
    losses = {}
    try:
        for count, (weight, bias) in path.weights.items():
            layer.weight.data = weight.to(keep[0].dtype)
            if keep[1] is not None and bias is not None:
                layer.bias.data = bias.to(keep[1].dtype)
            with replayed(module, cached):
                seen, out = record(module, later, inputs)
            inner = [relative_error(flatten(seen[n])[0], flatten(stored[n])[0], valid) for n in later]
            mean = sum(inner) / len(inner)
            losses[count] = relative_error(out, dense, None) + mean
    finally:
        layer.weight.data = keep[0]
        if keep[1] is not None:
            layer.bias.data = keep[1]
    return losses


@dataclass(frozen=True)
class Curve:
    """Of one group: units, last to leave first; levels (units kept), their MACs and their trajectory losses."""

    order: Tensor
    levels: np.ndarray
    costs: np.ndarray
    losses: np.ndarray


@torch.no_grad()
def scores(context: Context) -> dict[str, Curve]:
    """Trajectory loss against units kept, by group. It does not depend on the target."""
    structure, module = context.structure, context.module
    groups = structure.branches()
    inputs = tuple(x[:SAMPLES] for x in context.batches[0])
    stored, dense = record(module, [*structure.blocks, *(n for g in groups for n in g.before)], inputs)
    gram = grams(context)
    costs_of = context.size.per_unit(structure)
    found = {}
    for group in context.track(groups, "OPTIN, sublayer by sublayer"):
        layer: Any = module.get_submodule(group.output)
        counts = (
            sorted({round(s * group.units) for s in SHARES} | {group.units})
            if group.width == 1
            else list(range(group.units + 1))
        )
        bias = None if layer.bias is None else layer.bias.detach()
        path = removal_path(gram.pop(group.name), layer.weight.detach(), bias, group.width, counts)
        loss = trajectory(context, group, path, stored, dense, inputs)
        known = np.array(sorted(loss))
        curve = np.minimum.accumulate([loss[int(c)] for c in known])
        fine = np.unique(np.linspace(0, group.units, min(group.units, FINE) + 1).round().astype(int))
        found[group.name] = Curve(path.order, fine, fine * costs_of[group.name], np.interp(fine, known, curve))
        context.notes.setdefault("curves", {})[group.name] = {
            str(int(c)): float(v) for c, v in zip(known, curve, strict=True)
        }
    return found


def pick(context: Context, curves: dict[str, Curve]) -> Keep:
    """Levels by dynamic programming under the budget, units by the order of removal."""
    rows = list(curves.values())
    picked = knapsack(check(context), [c.costs for c in rows], [c.losses for c in rows])
    return {n: c.order[: int(c.levels[k])].sort().values for (n, c), k in zip(curves.items(), picked, strict=True)}


def choose(context: Context) -> Keep:
    """Measure the trajectories, then pick."""
    check(context)
    return pick(context, scores(context))
