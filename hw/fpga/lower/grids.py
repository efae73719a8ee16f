"""Making integers of expressions: exact sums, grids without a quantizer, concatenation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hw.fpga import ir
from hw.fpga.lower import fit
from hw.fpga.lower.convert import Context
from hw.fpga.lower.expr import Apply, Expr, Leaf, leaves, linear, substitute, times
from hw.fpga.lower.problems import CannotLower
from hw.fpga.lower.state import Piece, State

MOST_ENUMERATED = 1 << 16


class Quantizer:
    """Floats to integers low..high on a grid of `unit`, then minus the zero point."""

    def __init__(
        self, unit: float, low: int, high: int, zero: float, rounding: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.unit, self.zero, self.rounding = unit, zero, rounding
        self.low, self.high = low, high

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.rounding(np.clip(x / self.unit + self.zero, self.low, self.high)) - self.zero


def join(context: Context, tensors: list[str]) -> str:
    """Several tensors as one, their channels side by side."""
    if len(tensors) == 1:
        return tensors[0]
    key = ("join", *tensors)
    if key not in context.made:
        context.made[key] = context.emit(ir.Concat(), tensors)
    return context.made[key]


def summed(context: Context, expr: Expr) -> Expr:
    """The expression with every exact sum of several tensors (same grid, or grids in a small integer ratio) made one tensor."""
    if len(leaves(expr)) < 2 or not isinstance(expr, Apply):
        return expr
    _no_floats(leaves(expr))
    found = fit.exact_sum(expr)
    if found is None:
        return Apply(expr.op, tuple(summed(context, a) for a in expr.args), expr.low, expr.high)
    names, multipliers, unit = found
    key = ("sum", *names, *multipliers)
    if key not in context.made:
        bounds = [
            sorted((context.graph.tensors[n].low * m, context.graph.tensors[n].high * m))
            for n, m in zip(names, multipliers, strict=True)
        ]
        low, high = sum(b[0] for b in bounds), sum(b[1] for b in bounds)
        op = ir.Add(np.array(multipliers, np.int64)[:, None], np.zeros(1, np.int64), 0, low, high)
        context.made[key] = context.emit(op, names)
    return times(context.made[key], unit)


def on_grid(context: Context, expr: Expr) -> tuple[str, float]:
    """(integer tensor, scale) of an expression that lies on a grid by construction.

    Raises CannotLower when it is float (no quantizer in front).
    """
    expr = summed(context, expr)
    names = leaves(expr)
    if len(names) == 1 and not names[0].startswith("@"):
        found = linear(expr)
        if found is not None and not np.any(found[1]):
            units = np.unique(found[0][names[0]])
            if len(units) == 1 and units[0] > 0:
                return names[0], float(units[0])
        made = _regrid(context, expr, names[0])
        if made is not None:
            return made
    raise CannotLower(
        "its input is not on one integer grid (no activation quantizer in front of it, or one scale per channel)",
        "calibrate with static activation ranges (--calib DATA, and --activations static for linear layers)",
    )


def _core(expr: Expr) -> tuple[float, Expr] | None:
    """The scalar unit of the innermost grid of an expression over one tensor."""
    found = linear(expr)
    if found is not None:
        units = np.unique(next(iter(found[0].values()))) if found[0] else np.array([])
        return (abs(float(units[0])), expr) if len(units) == 1 and units[0] != 0 and not np.any(found[1]) else None
    if isinstance(expr, Apply):
        for arg in expr.args:
            if leaves(arg) and (inner := _core(arg)) is not None:
                return inner
    return None


def _regrid(context: Context, expr: Expr, name: str) -> tuple[str, float] | None:
    """ReLU and the like of a grid: still on it, by enumeration."""
    tensor = context.graph.tensors[name]
    core = _core(expr)
    if core is None or tensor.high - tensor.low >= MOST_ENUMERATED:
        return None
    unit = core[0]
    from hw.fpga.lower.expr import evaluate

    values = evaluate(expr, {name: np.arange(tensor.low, tensor.high + 1)[:, None]}) / unit
    whole = np.rint(values)
    if not np.allclose(values, whole, rtol=0, atol=1e-9):
        return None
    low, high = int(whole.min()), int(whole.max())
    op = fit.function(expr, tensor, Quantizer(unit, low, high, 0.0, np.rint), low, high)
    return context.emit(op, [name]), unit


def as_vector(context: Context, state: State) -> State:
    """A flattened image as a vector in stream order (its view remembers which element is which); other states as they are."""
    if state.rank != 2 or state.spatial == (1, 1):
        return state
    positions = state.stream_positions()
    pieces = state.pieces
    if len(pieces) > 1:
        tensor, unit, _, plain = as_grid(context, State.of(pieces, state.spatial, 4))
        pieces = (Piece(times(tensor, unit), plain.channels),)
    names: dict[str, Expr] = {}
    for leaf in leaves(pieces[0].expr):
        _no_floats([leaf])
        key = ("flatten", leaf)
        if key not in context.made:
            context.made[key] = context.emit(ir.Flatten(), [leaf])
        names[leaf] = Leaf(context.made[key])
    size = state.channels * state.spatial[0] * state.spatial[1]
    expr = substitute(pieces[0].expr, names, np.arange(size) % state.channels)
    return State((Piece(expr, size),), (1, 1), positions.reshape(state.view.shape))


def _no_floats(names: list[str]) -> None:
    if any(n.startswith("@") for n in names):
        raise CannotLower("it works on the model's float input", "put a quantizer on the model's input")


def materialize(context: Context, state: State, permutation_ok: bool = False) -> tuple[State, np.ndarray | None]:
    """A state whose view is plain: pending slices and shuffles become Gather nodes on every tensor read.

    With `permutation_ok` a view that only reorders all channels is left to the caller, as an index (seen -> base channel).
    Raises CannotLower for views that move pixels.
    """
    state = as_vector(context, state)
    if state.is_plain():
        return state, None
    index = state.channel_index()
    if index is None:
        raise CannotLower(
            "the reshapes and transposes in front of it move pixels",
            "keep images as [N, C, H, W] and flatten only before linear layers",
        )
    if permutation_ok and sorted(index) == list(range(state.channels)):
        return State.of(state.pieces, state.spatial, state.rank), np.array(index)
    pieces = []
    for (a, b), group in _runs(index, state.bounds):
        piece = state.pieces[state.bounds.index((a, b))]
        local = np.array(group) - a
        if np.array_equal(local, np.arange(b - a)):
            pieces.append((piece.expr, len(group)))
            continue
        names: dict[str, Expr] = {}
        for leaf in leaves(piece.expr):
            _no_floats([leaf])
            key = ("gather", leaf, *local.tolist())
            if key not in context.made:
                context.made[key] = context.emit(ir.Gather(tuple(int(i) for i in local)), [leaf])
            names[leaf] = Leaf(context.made[key])
        pieces.append((substitute(piece.expr, names, local), len(group)))
    rank = state.rank if state.rank != 3 or state.spatial[0] == 1 else 4
    return State.of(tuple(Piece(e, c) for e, c in pieces), state.spatial, rank), None


def _runs(index: list[int], bounds: list[tuple[int, int]]) -> list[tuple[tuple[int, int], list[int]]]:
    """Consecutive entries of an index that fall into the same piece."""
    runs: list[tuple[tuple[int, int], list[int]]] = []
    for i in index:
        owner = next(b for b in bounds if b[0] <= i < b[1])
        if runs and runs[-1][0] == owner:
            runs[-1][1].append(i)
        else:
            runs.append((owner, [i]))
    return runs


def as_grid(
    context: Context, state: State, permutation_ok: bool = False
) -> tuple[str, float, np.ndarray | None, State]:
    """(tensor, scale, channel index or None, state) of a whole state on one grid. Raises CannotLower where scales differ."""
    plain, index = materialize(context, state, permutation_ok)
    found = [on_grid(context, p.expr) for p in plain.pieces]
    if any(s != found[0][1] for _, s in found):
        raise CannotLower("it joins tensors whose scales differ", "put an activation quantizer after the concatenation")
    return join(context, [t for t, _ in found]), found[0][1], index, plain
