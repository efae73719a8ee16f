"""How much of every layer is computed at once: the cheapest folds that reach a frame rate, or the fastest that fit the part.

The interval between frames of a dataflow design is that of its slowest layer, and every layer's cycles follow exactly from its
fold. So for a given interval each layer takes the cheapest fold that is fast enough, cost being the share of the scarcest
resources; and the least interval that fits is found by bisection over the intervals that folds can have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from boards.board import Board
from hw.fpga import ir
from hw.fpga.assemble import layer_of
from hw.fpga.blocks import blocks
from hw.fpga.blocks.base import Fold, Target

# of LUT, DSP, block RAM, and of the bits a cycle of one memory port (by weights that are not on the chip)
USABLE, FULL = (0.70, 0.95, 0.90, 0.75), (0.92, 0.97, 0.84, 0.75)
TURNS = 300  # of the prices
LUT4_PER_LUT6 = 1.7  # cells of the smaller kind for the same logic (the MVU at 4x8 bit: 3,379 and 2,094)


@dataclass(frozen=True)
class Budget:
    """What a part offers, in the units of Fold's estimates."""

    lut: float
    dsp: float
    bram18: float
    stream: float = 0

    @classmethod
    def of(cls, board: Board, full: bool = False) -> Budget:
        """What may be used of a part: shares that leave room to route, or (full) all but what FIFOs and joints need."""
        lut = board.lut / (LUT4_PER_LUT6 if board.family == "ecp5" else 1)
        port = board.port_bits if board.ps else 0
        shares = FULL if full else USABLE
        return cls(*(whole * share for whole, share in zip((lut, board.dsp, board.bram18, port), shares, strict=True)))


@dataclass(frozen=True)
class Folding:
    """The folds by layer, the predicted interval in cycles and the estimated cost. share: of the budget of what is scarcest.
    stream: bits a cycle from memory off the chip. budget: what it was chosen for."""

    folds: dict[str, Fold]
    interval: int
    lut: float
    dsp: int
    bram18: float
    stream: float
    share: float
    budget: Budget

    @property
    def fits(self) -> bool:
        return self.share <= 1


def target_of(board: Board) -> Target:
    """The multiplier of a part, and its port to memory."""
    wide, narrow = {"7-series": (25, 18), "ultrascale+": (27, 18)}.get(board.family, (18, 18))
    return Target(wide, narrow, board.port_bits if board.ps else 0)


def options(graph: ir.Graph, target: Target) -> dict[str, list[Fold]]:
    """Every fold of every layer, those dropped that another one beats in all respects."""
    found = {}
    for node in graph.nodes:
        rows = sorted(
            blocks()[node.kind].folds(layer_of(graph, node), target),
            key=lambda f: (f.cycles, f.lut, f.dsps, f.bram18, f.stream),
        )
        kept: list[Fold] = []
        for row in rows:
            if not any(
                k.lut <= row.lut and k.dsps <= row.dsps and k.bram18 <= row.bram18 and k.stream <= row.stream
                for k in kept
            ):
                kept.append(row)
        found[node.name] = kept
    return found


def _shares(fold: Fold, budget: Budget) -> tuple[float, float, float, float]:
    whole = (budget.lut, budget.dsp, budget.bram18, budget.stream)
    used = (fold.lut, fold.dsps, fold.bram18, fold.stream)
    return tuple(u / max(w, 1e-9) for u, w in zip(used, whole, strict=True))  # type: ignore[return-value]


def choose(table: dict[str, list[Fold]], interval: int, budget: Budget) -> Folding | None:
    """Folds of at most `interval` cycles: the cheapest by the sum of the shares of all resources; where these do not fit, those
    that need the least share of the scarcest resource. None where a layer cannot be that fast.

    The second is a knapsack of one choice per layer: prices of the resources rise with what is used beyond the budget, every layer
    takes what is cheapest at these prices (Lagrangian relaxation, prices by multiplicative weights), and single exchanges
    finish the best choice that was seen.
    """
    able = {name: [f for f in rows if f.cycles <= interval] for name, rows in table.items()}
    if not all(able.values()):
        return None
    names = list(able)
    shares = [np.array([_shares(f, budget) for f in able[n]]) for n in names]
    order = [sorted(range(len(able[n])), key=lambda k, n=n: (able[n][k].pe, able[n][k].simd)) for n in names]  # type: ignore[misc]
    prices = np.ones(4)
    best: list[int] = []
    least = np.inf
    for turn in range(TURNS):
        picked = [ranks[int(np.argmin((share @ prices)[ranks]))] for share, ranks in zip(shares, order, strict=True)]
        total = sum(share[k] for share, k in zip(shares, picked, strict=True))
        if total.max() < least:
            best, least = picked, total.max()
        if least <= 1:
            break
        prices = prices * np.exp((2.0 / (1 + turn / 10)) * (total - total.max()))
        prices = np.maximum(prices / prices.max(), 1e-4)
    while least > 1:
        total = sum(share[k] for share, k in zip(shares, best, strict=True))
        then = [total - share[k] + share for share, k in zip(shares, best, strict=True)]
        worst = [t.max(1) for t in then]
        layer = min(range(len(names)), key=lambda i: (round(worst[i].min(), 9), i))
        if worst[layer].min() >= least - 1e-9:
            break
        best[layer] = int(worst[layer].argmin())
        least = worst[layer].min()
    folds = {name: able[name][k] for name, k in zip(names, best, strict=True)}
    lut, dsp, bram, stream = (sum(getattr(f, k) for f in folds.values()) for k in ("lut", "dsps", "bram18", "stream"))
    return Folding(folds, max(f.cycles for f in folds.values()), lut, int(dsp), bram, stream, float(least), budget)


def search(graph: ir.Graph, board: Board, interval: int | None, budget: Budget | None = None) -> Folding:
    """Folds for at most `interval` cycles per frame, or (None) the least interval that fits the board.

    budget: what may be used, by default of the whole board. Weights come from memory off the chip only where nothing else fits,
    and only where that does not fit either is the part filled. The result says with `fits` whether the estimate is within the
    budget; deterministic.
    """
    target = target_of(board)
    first = budget or Budget.of(board)
    found = _search(options(graph, replace(target, memory=0)), interval, first)
    if found.fits or not target.memory:
        return found
    table = options(graph, target)
    other = _search(table, interval, first)
    if not other.fits and budget is None and interval is not None:
        return _search(table, interval, Budget.of(board, full=True))
    return min(found, other, key=lambda f: f.share)


def _search(table: dict[str, list[Fold]], interval: int | None, budget: Budget) -> Folding:
    reachable = max(min(f.cycles for f in rows) for rows in table.values())
    if interval is not None:
        found = choose(table, max(interval, reachable), budget)
        assert found is not None
        return found
    steps = sorted({f.cycles for rows in table.values() for f in rows if f.cycles >= reachable})
    low, high = 0, len(steps) - 1
    best = choose(table, steps[high], budget)
    while low <= high:
        middle = (low + high) // 2
        found = choose(table, steps[middle], budget)
        if found is not None and found.fits:
            best, high = found, middle - 1
        else:
            low = middle + 1
    assert best is not None
    return best
