"""From trained masks to the units that stay: exactly the target, widths rounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.prune.size import shares
from compress.prune.slim import rounded
from compress.prune.structure import HIDDEN, Keep, Structure
from deploy.errors import UserError

STEPS = 60


def _at(structure: Structure, alphas: dict[str, Tensor], threshold: float, round_to: int, fixed: Keep) -> Keep:
    keep: Keep = dict(fixed)
    order = {n: a.argsort() for n, a in alphas.items()}
    for name, alpha in alphas.items():
        if name not in fixed:
            least = structure.by_name[name].least
            count = max(least, int((alpha < threshold).sum()))
            keep[name] = order[name][:count].sort().values
    again = rounded({n: k for n, k in keep.items() if n not in fixed}, order, structure, round_to)
    return {**keep, **again}


def _search(
    structure: Structure,
    alphas: dict[str, Tensor],
    size: Callable[[Keep], float],
    target: float,
    round_to: int,
    fixed: Keep,
) -> Keep:
    low, high = -1e4, 2e3
    if size(_at(structure, alphas, low, round_to, fixed)) > target:
        raise UserError(f"the target {target:.2f} cannot be met: what pruning cannot remove takes more; ask for more")
    for _ in range(STEPS):
        middle = (low + high) / 2
        if size(_at(structure, alphas, middle, round_to, fixed)) <= target:
            low = middle
        else:
            high = middle
    return _at(structure, alphas, low, round_to, fixed)


def choose(
    structure: Structure,
    alphas: dict[str, Tensor],
    share: Callable[[dict[str, float]], float],
    target: float,
    round_to: int,
) -> Keep:
    """Units with the least log alpha, as many as the target share allows.

    Hidden dimensions are decided and rounded first, then heads and neurons fill what is left. Raises UserError for a target below reach.
    """

    def size(keep: Keep) -> float:
        return float(share(shares(structure, keep)))

    hidden = [g.name for g in structure.of(HIDDEN)]
    fixed: Keep = {}
    if hidden:
        whole = _search(structure, alphas, size, target, 1, {})
        order = {n: alphas[n].argsort() for n in hidden}
        fixed = rounded({n: whole[n] for n in hidden}, order, structure, round_to)
    try:
        return _search(structure, alphas, size, target, round_to, fixed)
    except UserError:
        # rounding took the hidden dimensions above the target: one step less
        fixed = {n: alphas[n].argsort()[: max(1, len(i) - round_to)].sort().values for n, i in fixed.items()}
        return _search(structure, alphas, size, target, round_to, fixed)


def fold_means(module: torch.nn.Module, structure: Structure, means: dict[str, Tensor]) -> None:
    """Multiply the units' means into the weights that follow them, in place: the output projections, the norms of hidden dimensions."""
    with torch.no_grad():
        for group in structure.groups:
            mean = means[group.name]
            if group.output:
                layer = module.get_submodule(group.output)
                layer.weight.mul_(mean.repeat_interleave(group.width))  # type: ignore[operator]
            for norm, blocks in group.norms:
                part = module.get_submodule(norm)
                for name in ("weight", "bias"):
                    value = getattr(part, name, None)
                    if isinstance(value, Tensor):
                        value.mul_(mean.repeat(blocks))
