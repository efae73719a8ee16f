"""Choosing how much of every group stays, under a budget of multiply-accumulates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compress.prune.context import Context
from compress.prune.structure import HEAD, NEURON, Keep
from deploy.errors import UserError

BINS = 4000


def check(context: Context) -> float:
    """The budget. Raises UserError where even empty branches would not meet it."""
    budget = context.budget
    if budget <= 0:
        fixed = context.macs - budget / float(context.size.macs())
        raise UserError(
            f"--macs {context.macs:g} cannot be met by removing heads and neurons: everything else takes {fixed:.2f} of the MACs; ask for more"
        )
    return budget


def rank(context: Context, scores: dict[str, Tensor]) -> Keep:
    """Heads and neurons by importance (Kwon et al. 2022, algorithm 1, as OPTIN uses it): for every number of heads the best ones, the rest of the
    budget filled with the best neurons; the split with the highest total importance wins.

    scores [units] by group, higher is more important. Units are ranked by score per MAC, which is their score where layers are equal.
    """
    budget = check(context)
    costs = context.size.per_unit(context.structure)
    tables = {}
    for kind in (HEAD, NEURON):
        groups = context.structure.of(kind)
        names = np.repeat([g.name for g in groups], [g.units for g in groups])
        units = np.concatenate([np.arange(g.units) for g in groups])
        value = np.concatenate([scores[g.name].double().numpy() for g in groups])
        cost = np.concatenate([np.full(g.units, costs[g.name]) for g in groups])
        order = np.argsort(-value / cost, kind="stable")
        tables[kind] = (names[order], units[order], value[order], cost[order])
    heads, neurons = tables[HEAD], tables[NEURON]
    worth = [np.concatenate([[0], np.cumsum(t[2] - min(0.0, float(t[2].min(initial=0.0))))]) for t in (heads, neurons)]
    spent = [np.concatenate([[0], np.cumsum(t[3])]) for t in (heads, neurons)]
    best, choice = -np.inf, (0, 0)
    for k in range(len(spent[0])):
        rest = budget - spent[0][k]
        if rest < 0:
            break
        n = int(np.searchsorted(spent[1], rest * (1 + 1e-9), side="right")) - 1
        if worth[0][k] + worth[1][n] > best:
            best, choice = worth[0][k] + worth[1][n], (k, n)
    keep: Keep = {}
    for (names, units, _, _), count in zip((heads, neurons), choice, strict=True):
        for name in dict.fromkeys(names):
            keep[str(name)] = torch.as_tensor(np.sort(units[:count][names[:count] == name]))
    return keep


def knapsack(budget: float, costs: list[np.ndarray], losses: list[np.ndarray]) -> list[int]:
    """One level per group, least total loss within the budget: dynamic programming over BINS steps of the budget, costs rounded up.

    costs, losses: per group, one value per level. Raises UserError when not even the cheapest levels fit.
    """
    step = budget / BINS
    best = np.zeros(BINS + 1)
    chosen = []
    for cost, loss in zip(costs, losses, strict=True):
        need = np.ceil(cost / step - 1e-9).astype(int)
        table = np.full((len(cost), BINS + 1), np.inf)
        for level, (n, value) in enumerate(zip(need, loss, strict=True)):
            if n <= BINS:
                table[level, n:] = best[: BINS + 1 - n] + value
        pick = table.argmin(0)
        best = table[pick, np.arange(BINS + 1)]
        chosen.append((pick, need))
    if not np.isfinite(best[BINS]):
        raise UserError("the target cannot be met: even the least that every group must keep takes more; ask for more")
    left, found = BINS, []
    for pick, need in reversed(chosen):
        level = int(pick[left])
        found.append(level)
        left -= int(need[level])
    return found[::-1]
