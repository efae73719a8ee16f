"""How much of every layer is computed at once: the cheapest folds that reach a frame rate, or the fastest that fit the part.

The interval between frames of a dataflow design is that of its slowest layer, and every layer's cycles follow exactly from its
fold. So for a given interval each layer takes the cheapest fold that is fast enough, cost being the share of the scarcest
resources; and the least interval that fits is found by bisection over the intervals that folds can have.
"""

from __future__ import annotations

from dataclasses import dataclass

from boards.board import Board
from hw.fpga import ir
from hw.fpga.assemble import layer_of
from hw.fpga.blocks import blocks
from hw.fpga.blocks.base import Fold, Target

USABLE_LUT, USABLE_DSP, USABLE_BRAM = 0.70, 0.95, 0.90
LUT4_PER_LUT6 = 1.7  # cells of the smaller kind for the same logic (the MVU at 4x8 bit: 3,379 and 2,094)


@dataclass(frozen=True)
class Budget:
    """What a part offers, in the units of Fold's estimates."""

    lut: float
    dsp: float
    bram18: float

    @classmethod
    def of(cls, board: Board) -> Budget:
        lut = board.lut / (LUT4_PER_LUT6 if board.family == "ecp5" else 1)
        return cls(lut * USABLE_LUT, board.dsp * USABLE_DSP, board.bram18 * USABLE_BRAM)


@dataclass(frozen=True)
class Folding:
    """The folds by layer, the predicted interval in cycles and the estimated cost. `fits` against the budget."""

    folds: dict[str, Fold]
    interval: int
    lut: float
    dsp: int
    bram18: float
    fits: bool


def target_of(board: Board) -> Target:
    """The multiplier of a part."""
    wide, narrow = {"7-series": (25, 18), "ultrascale+": (27, 18)}.get(board.family, (18, 18))
    return Target(wide, narrow)


def options(graph: ir.Graph, target: Target) -> dict[str, list[Fold]]:
    """Every fold of every layer, those dropped that another one beats in all respects."""
    found = {}
    for node in graph.nodes:
        rows = sorted(
            blocks()[node.kind].folds(layer_of(graph, node), target), key=lambda f: (f.cycles, f.lut, f.dsps, f.bram18)
        )
        kept: list[Fold] = []
        for row in rows:
            if not any(k.lut <= row.lut and k.dsps <= row.dsps and k.bram18 <= row.bram18 for k in kept):
                kept.append(row)
        found[node.name] = kept
    return found


def _shares(fold: Fold, budget: Budget) -> tuple[float, float, float]:
    return fold.lut / budget.lut, fold.dsps / max(budget.dsp, 1e-9), fold.bram18 / max(budget.bram18, 1e-9)


def choose(table: dict[str, list[Fold]], interval: int, budget: Budget) -> Folding | None:
    """The cheapest folds of at most `interval` cycles that fit: cheapest by the sum of the shares of all resources first, then
    layer after layer exchanged where that lowers the share of the scarcest one. None where a layer cannot be that fast."""
    able = {name: [f for f in rows if f.cycles <= interval] for name, rows in table.items()}
    if not all(able.values()):
        return None
    folds = {name: min(rows, key=lambda f: (sum(_shares(f, budget)), f.pe, f.simd)) for name, rows in able.items()}
    shares = {name: {f: _shares(f, budget) for f in rows} for name, rows in able.items()}
    total = [sum(shares[n][f][k] for n, f in folds.items()) for k in range(3)]
    while max(total) > 1:
        best, move = (max(total), sum(total)), None
        for name, rows in able.items():
            now = shares[name][folds[name]]
            for row in rows:
                then = [t - a + b for t, a, b in zip(total, now, shares[name][row], strict=True)]
                if (round(max(then), 9), sum(then)) < (round(best[0], 9), best[1]):
                    best, move = (max(then), sum(then)), (name, row, then)
        if move is None:
            break
        folds[move[0]], total = move[1], move[2]
    lut, dsp, bram = (sum(getattr(f, k) for f in folds.values()) for k in ("lut", "dsps", "bram18"))
    return Folding(folds, max(f.cycles for f in folds.values()), lut, int(dsp), bram, max(total) <= 1)


def search(graph: ir.Graph, board: Board, interval: int | None, budget: Budget | None = None) -> Folding:
    """Folds for at most `interval` cycles per frame, or (None) the least interval that fits the board.

    budget: what may be used, by default of the whole board. The result says with `fits` whether the estimate is within the part; deterministic.
    """
    target = target_of(board)
    budget = budget or Budget.of(board)
    table = options(graph, target)
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
