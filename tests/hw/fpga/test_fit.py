"""The exact integer form of a quantized region, against brute force over the whole range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.fpga import ir, reference
from hw.fpga.lower import fit
from hw.fpga.lower.expr import Apply, Const, Expr, evaluate, times
from hw.fpga.lower.grids import Quantizer
from hw.fpga.lower.problems import CannotLower

numbers = st.floats(1e-4, 2.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, st.floats(-20, 20)), min_size=1, max_size=4), st.integers(1, 2000), st.integers(2, 8), st.booleans(),
    st.sampled_from(["Relu", "LeakyRelu", "Sigmoid", "Identity", "Clip"]), st.floats(0.01, 0.5),
)  # fmt: skip
def test_function_is_exact_everywhere(
    rows: list[tuple[float, float]], span: int, bits: int, signed: bool, op: str, unit: float
) -> None:
    slopes, offsets = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    line = Apply("Add", (times("x", slopes), Const(offsets)))
    expr: Expr = Apply(op, (line,), 0.1, 3.0)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    tensor = ir.Tensor((1, 1, len(rows)), -span, span)
    quantize = Quantizer(unit, low, high, 0.0, np.rint)
    made = fit.function(expr, tensor, quantize, low, high)
    v = np.arange(-span, span + 1)[:, None].repeat(len(rows), 1)
    want = quantize(evaluate(expr, {"x": v}))
    assert np.array_equal(reference.apply(made, [v[:, None, None, :]])[:, 0, 0, :], want)


@settings(max_examples=40, deadline=None)
@given(numbers, numbers, st.floats(0.05, 2.0), st.booleans(), st.integers(3, 6), st.integers(3, 6))
def test_addition_is_exact_everywhere(a: float, b: float, unit: float, relu: bool, bits_a: int, bits_b: int) -> None:
    total = Apply("Add", (times("a", a), times("b", b)))
    expr: Expr = Apply("Relu", (total,)) if relu else total
    tensors = {
        "a": ir.Tensor((1, 1, 1), 0, (1 << bits_a) - 1),
        "b": ir.Tensor((1, 1, 1), -(1 << (bits_b - 1)), (1 << (bits_b - 1)) - 1),
    }
    low, high = (0, 15) if relu else (-8, 7)
    quantize = Quantizer(unit, low, high, 0.0, np.rint)
    try:
        names, op = fit.addition(expr, tensors, quantize, low, high)
    except CannotLower:
        return  # ties; sums on a common grid take another way (test_lowering)
    grids = np.meshgrid(*(np.arange(tensors[n].low, tensors[n].high + 1) for n in names))
    values = {n: g.reshape(-1, 1) for n, g in zip(names, grids, strict=True)}
    want = quantize(evaluate(expr, values))
    got = reference.apply(op, [values[n].reshape(-1, 1, 1, 1) for n in names]).reshape(-1, 1)
    assert np.array_equal(got, want)


def test_what_rises_and_falls_is_refused() -> None:
    expr = Apply("HardSwish", (times("x", 0.001),))
    with pytest.raises(CannotLower, match="rises and falls"):
        fit.function(expr, ir.Tensor((1, 1, 4), -5000, 5000), Quantizer(0.1, -8, 7, 0.0, np.rint), -8, 7)
    short = fit.function(
        Apply("HardSwish", (times("x", 0.1),)),
        ir.Tensor((1, 1, 4), -64, 63),
        Quantizer(0.1, -8, 7, 0.0, np.rint),
        -8,
        7,
    )
    assert isinstance(short, ir.Table)


def test_small_ratio() -> None:
    assert fit.small_ratio([0.5, 0.25]) == [2, 1]
    assert fit.small_ratio([0.75, 0.5]) == [3, 2]
    assert fit.small_ratio([0.7311, 0.5]) is None
