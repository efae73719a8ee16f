"""The exact integer form of a quantized float region.

Given F(v) = clip(round(E(v) / scale)) for every integer v of a range, find what the hardware evaluates:
1. a table, where the range is short and every channel has the same function (any function);
2. thresholds, where E is monotone and the result has few levels (the thresholds are found by bisection on E itself);
3. multiply, add, shift, clip in integers, for monotone E with many levels. With thresholds t[l] (the least v with F(v) >= l)
   a multiplier a and an offset b are right for the whole range if and only if for every level l within it
   a * t[l] + b >= l * 2^s and a * (t[l] - 1) + b < l * 2^s. For a given a that is an interval for b, so the search over a is
   short, and what it returns is proven for every v, not sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from hw.fpga import ir
from hw.fpga.lower.expr import Expr, direction, evaluate, leaves, linear
from hw.fpga.lower.problems import CannotLower

TABLE_BITS = 8
FEW_LEVELS = 15
MOST_LEVELS = 255
MOST_SHIFT = 40
MOST_PAIRS = 1 << 20

Quantize = Callable[[np.ndarray], np.ndarray]


def _levels(expr: Expr, quantize: Quantize, tensor: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: quantize(evaluate(expr, {tensor: v})).astype(np.int64)


def thresholds(
    function: Callable[[np.ndarray], np.ndarray], low: int, high: int, levels: np.ndarray, sign: np.ndarray
) -> np.ndarray:
    """[C, levels]: the least u in low..high+1 with function(sign * u)[c] >= levels[l], by bisection; function is monotone.

    sign [C] is +1 or -1; the range is that of u.
    """
    channels = len(sign)
    lo = np.full((len(levels), channels), low, np.int64)
    hi = np.full((len(levels), channels), high + 1, np.int64)
    while np.any(lo < hi):
        middle = (lo + hi) >> 1
        reached = function(middle * sign) >= levels[:, None]
        hi = np.where(reached, middle, hi)
        lo = np.where(reached | (lo >= hi), lo, middle + 1)
    return lo.T


def _fit_line(
    t: np.ndarray, low: int, high: int, levels: np.ndarray, slope: np.ndarray, shift: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(multiplier [C], offset [C]) that put every threshold t[C, L] exactly where it is, or None."""
    inside = (t > low) & (t <= high)
    always, never = t <= low, t > high
    goal = levels[None, :] << shift
    best_a, best_b = np.zeros(len(t), np.int64), np.zeros(len(t), np.int64)
    done = np.zeros(len(t), bool)
    base = np.rint(slope * 2.0**shift).astype(np.int64)
    for delta in (0, 1, -1, 2, -2, 3, -3):
        a = (base + delta)[:, None]
        least = np.where(inside, goal - a * t, np.iinfo(np.int64).min // 4)
        least = np.maximum(least, np.where(always, goal - a * low, np.iinfo(np.int64).min // 4)).max(
            1, initial=np.iinfo(np.int64).min // 4
        )
        most = np.where(inside, goal - 1 - a * (t - 1), np.iinfo(np.int64).max // 4)
        most = np.minimum(most, np.where(never, goal - 1 - a * high, np.iinfo(np.int64).max // 4)).min(
            1, initial=np.iinfo(np.int64).max // 4
        )
        good = (least <= most) & ~done & (a[:, 0] >= 0)
        best_a[good] = a[good, 0]
        middle = np.where(least < -(1 << 60), most, np.where(most > 1 << 60, least, least + (most - least) // 2))
        best_b[good] = middle[good]
        done |= good
    return (best_a, best_b) if done.all() else None


def fit_scale(
    t: np.ndarray, low: int, high: int, levels: np.ndarray, slope: np.ndarray, sign: np.ndarray
) -> ir.Scale | None:
    """The shortest multiply-add-shift that has thresholds t[C, L] on low..high (of sign * v), or None."""
    first = int(levels[0]) - 1
    for shift in range(MOST_SHIFT):
        if np.max(slope, initial=0.0) * 2.0**shift * max(abs(low), abs(high)) > 2**58:
            break
        found = _fit_line(t, low, high, levels, slope, shift)
        if found is not None:
            a, b = found
            return ir.Scale(a * sign, b, shift, first, int(levels[-1]))
    return None


def function(expr: Expr, tensor: ir.Tensor, quantize: Quantize, low: int, high: int) -> ir.Op:
    """The integer operator that equals quantize(E(v)), with results in low..high, for every v of `tensor`'s range.

    quantize maps floats to integers in low..high and never falls. Raises CannotLower where there is no exact form.
    """
    (name,) = leaves(expr)
    f = _levels(expr, quantize, name)
    probe = f(np.array([[tensor.low], [tensor.high]]))
    channels = max(tensor.channels, 1)
    size = tensor.high - tensor.low + 1
    same = probe.shape[-1] == 1
    if same and size <= 1 << TABLE_BITS:
        return ir.Table(f(np.arange(tensor.low, tensor.high + 1)[:, None]).T, tensor.low)
    way = direction(expr, name)
    if way is None:
        if size <= 1 << TABLE_BITS:
            return ir.Table(f(np.arange(tensor.low, tensor.high + 1)[:, None].repeat(channels, 1)).T, tensor.low)
        raise CannotLower(
            "the function between this layer and its quantizer rises and falls, and hardware thresholds need one that only rises or only falls",
            "quantize the layer's output before the function, or use ReLU",
        )
    rows = 1 if same else channels
    sign = np.where(np.broadcast_to(way, (rows,)) < 0, -1, 1).astype(np.int64)
    ends = (
        (tensor.low, tensor.high)
        if (sign > 0).all()
        else (-max(tensor.high, -tensor.low), max(tensor.high, -tensor.low))
    )
    levels = np.arange(low + 1, high + 1)
    t = thresholds(f, *ends, levels, sign)
    if len(levels) <= FEW_LEVELS and (sign > 0).all():
        return ir.Thresholds(t, low)
    fitted = fit_scale(t, *ends, levels, _slope(expr, quantize, name, t, ends, sign), sign)
    if fitted is not None:
        return fitted
    if (sign > 0).all() and len(levels) <= MOST_LEVELS:
        return ir.Thresholds(t, low)
    raise CannotLower(
        "its requantization has no exact fixed-point form", "report this model (a scale below zero with rounding ties?)"
    )


def _slope(
    expr: Expr, quantize: Quantize, name: str, t: np.ndarray, ends: tuple[int, int], sign: np.ndarray
) -> np.ndarray:
    """[C]: results per unit of input in the middle of the range of levels."""
    inside = (t > ends[0]) & (t <= ends[1])
    count = inside.sum(1)
    first = np.where(inside, t, ends[1]).min(1)
    last = np.where(count > 1, np.where(inside, t, ends[0]).max(1), ends[1])
    e = evaluate(expr, {name: np.stack([first, last]) * sign})
    run, rise = last - first, np.broadcast_to(e[1] - e[0], first.shape) / getattr(quantize, "unit", 1.0)
    return np.where(count == 0, 0.0, np.where(run > 0, rise / np.maximum(run, 1), 1.0))


def small_ratio(values: list[float], most: int = 64) -> list[int] | None:
    """Integers in the exact ratio of `values` (all positive), none above `most`; None where there are none."""
    least = min(values)
    for k in range(1, 17):
        scaled = [v / least * k for v in values]
        rounded = [round(s) for s in scaled]
        if max(rounded) > most:
            return None
        if all(abs(s - r) <= 1e-12 * s for s, r in zip(scaled, rounded, strict=True)):
            return rounded
    return None


def exact_sum(expr: Expr) -> tuple[list[str], list[int], float] | None:
    """(leaves, integer multipliers, unit) where the expression's linear core is unit * sum(m_i * v_i) with small integers."""
    found = linear(expr)
    if found is None:
        return None
    terms, constant = found
    flat = {n: np.unique(v) for n, v in terms.items()}
    if np.any(constant != 0) or any(len(v) != 1 for v in flat.values()):
        return None
    values = [float(v[0]) for v in flat.values()]
    if any(v == 0 or not np.isfinite(v) for v in values):
        return None
    ratio = small_ratio([abs(v) for v in values])
    if ratio is None:
        return None
    unit = min(abs(v) for v in values) / min(ratio)
    return list(flat), [r if v > 0 else -r for r, v in zip(ratio, values, strict=True)], unit


def addition(
    expr: Expr, tensors: dict[str, ir.Tensor], quantize: Quantize, low: int, high: int
) -> tuple[list[str], ir.Add]:
    """(leaves, operator) for a quantized sum of several tensors; proven over every combination of their values.

    Raises CannotLower where the combinations are too many to prove or no integers fit.
    """
    names = leaves(expr)
    ranges = [np.arange(tensors[n].low, tensors[n].high + 1) for n in names]
    count = int(np.prod([len(r) for r in ranges]))
    if count > MOST_PAIRS:
        raise CannotLower(
            "it adds values that are not quantized yet, and their combinations are too many to prove an integer form exact",
            "put an activation quantizer of at most 9 bits on each input of the addition",
        )
    grid = [g.reshape(-1, 1) for g in np.meshgrid(*ranges, indexing="ij")]
    values = dict(zip(names, grid, strict=True))
    floats = evaluate(expr, values)
    want = quantize(floats).astype(np.int64)
    slopes = _partial(expr, values, quantize)
    bottom, top = want <= low, want >= high
    some = np.linspace(0, len(want) - 1, min(len(want), 1024)).astype(int)  # a few rows reject most candidates
    best = None
    for shift in range(31):
        base = [np.rint(s * 2.0**shift).astype(np.int64) for s in slopes]
        for deltas in product((0, 1, -1), repeat=len(names)):
            m = [b + d for b, d in zip(base, deltas, strict=True)]
            few = sum(g[some] * k for g, k in zip(grid, m, strict=True))
            if np.any(
                np.where(bottom[some], -(1 << 60), (want[some] << shift) - few).max(0)
                > np.where(top[some], 1 << 60, ((want[some] + 1) << shift) - 1 - few).min(0)
            ):
                continue
            total = sum(g * k for g, k in zip(grid, m, strict=True))
            least = np.where(bottom, -(1 << 60), (want << shift) - total).max(0)
            most = np.where(top, 1 << 60, ((want + 1) << shift) - 1 - total).min(0)
            if np.all(least <= most):
                best = ir.Add(
                    np.stack([np.broadcast_to(k, least.shape) for k in m]),
                    least + (most - least) // 2,
                    shift,
                    low,
                    high,
                )
                return names, best
    raise CannotLower(
        "the sum has no exact fixed-point form (its inputs' scales make rounding ties)",
        "give both inputs of the addition the same scale",
    )


def _partial(expr: Expr, values: dict[str, np.ndarray], quantize: Quantize) -> list[np.ndarray]:
    """Slope of the sum by each leaf, [C] or [1], where no clamp holds it: the largest one-step difference over a sample."""
    unit = getattr(quantize, "unit", 1.0)
    found = linear(expr)
    if found is not None:
        return [np.atleast_1d(v / unit) for v in found[0].values()]
    core: Expr = expr
    while not isinstance(core, (type(None),)) and linear(core) is None and getattr(core, "args", None):
        core = core.args[0]  # type: ignore[union-attr]
    found = linear(core)
    if found is None or list(found[0]) != leaves(expr):
        raise CannotLower(
            "it combines tensors by something else than a sum", "quantize the inputs and the result of that operator"
        )
    return [np.atleast_1d(v / unit) for v in found[0].values()]
