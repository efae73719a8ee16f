"""The float region between integers: an elementwise expression per channel, evaluated in float64.

Leaves are integer tensors; an expression maps their values [..., C] to floats [..., C]. It is never sampled: where a
function must be monotone for thresholds to exist, that follows from its operators (`direction`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import erf

import numpy as np


@dataclass(frozen=True, eq=False)
class Leaf:
    """The integers of a tensor."""

    tensor: str


@dataclass(frozen=True, eq=False)
class Const:
    """A float64 scalar [] or one value per channel [C]."""

    value: np.ndarray


@dataclass(frozen=True, eq=False)
class Apply:
    """One operator. `low`/`high`/`slope` are attributes of Clip and LeakyRelu."""

    op: str
    args: tuple[Leaf | Const | Apply, ...]
    low: float = 0.0
    high: float = 0.0


Expr = Leaf | Const | Apply


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


_RISING: dict[str, Callable[..., np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Identity": lambda x: x,
    "HardSigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "Exp": np.exp,
    "Floor": np.floor,
    "Round": np.rint,
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Elu": lambda x: np.expm1(np.minimum(x, 0)) + np.maximum(x, 0),
}
_OTHER: dict[str, Callable[..., np.ndarray]] = {
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Abs": np.abs,
    "Gelu": lambda x: x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2))),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
}
UNARY = {*_RISING, *_OTHER, "Neg"}
BINARY: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}


def evaluate(expr: Expr, values: dict[str, np.ndarray]) -> np.ndarray:
    """The expression at integer values [..., C] (or [..., 1]) of its leaves."""
    if isinstance(expr, Leaf):
        return values[expr.tensor].astype(np.float64)
    if isinstance(expr, Const):
        return expr.value
    args = [evaluate(a, values) for a in expr.args]
    if expr.op in BINARY:
        return BINARY[expr.op](*args)
    if expr.op == "Neg":
        return -args[0]
    if expr.op == "Clip":
        return np.clip(args[0], expr.low, expr.high)
    if expr.op == "LeakyRelu":
        return np.where(args[0] < 0, args[0] * expr.low, args[0])
    return (_RISING.get(expr.op) or _OTHER[expr.op])(args[0])


def leaves(expr: Expr) -> list[str]:
    """Names of the integer tensors that an expression reads, in order, each once."""
    if isinstance(expr, Leaf):
        return [expr.tensor]
    if isinstance(expr, Const):
        return []
    return list(dict.fromkeys(name for a in expr.args for name in leaves(a)))


def direction(expr: Expr, tensor: str) -> np.ndarray | None:
    """Per channel ([] or [C]): +1 where the expression never falls as `tensor` rises, -1 where it never rises, 0 where it
    does not depend on it; None where that does not follow from the operators."""
    if isinstance(expr, Leaf):
        return np.array(1 if expr.tensor == tensor else 0)
    if isinstance(expr, Const):
        return np.array(0)
    parts = [direction(a, tensor) for a in expr.args]
    if any(p is None for p in parts):
        return None
    first = parts[0]
    if all(not np.any(p) for p in parts if p is not None):
        return np.array(0)
    if expr.op in ("Add", "Sub"):
        second = parts[1] if expr.op == "Add" else -parts[1]  # type: ignore[operator]
        if np.any(first * second < 0):  # type: ignore[operator]
            return None
        return np.sign(first + second)  # type: ignore[operator]
    if expr.op in ("Mul", "Div"):
        for this, other in ((0, 1), (1, 0)):
            if not leaves(expr.args[other]) and (expr.op == "Mul" or other == 1):
                return parts[this] * np.sign(evaluate(expr.args[other], {}))  # type: ignore[operator]
        return None
    if expr.op == "Neg":
        return -first  # type: ignore[operator]
    if expr.op in _RISING or expr.op == "Clip" or (expr.op == "LeakyRelu" and expr.low >= 0):
        return first
    return None


def linear(expr: Expr) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """({leaf: coefficient}, constant), each [] or [C], where the expression is linear by its operators; else None."""
    if isinstance(expr, Leaf):
        return {expr.tensor: np.array(1.0)}, np.array(0.0)
    if isinstance(expr, Const):
        return {}, expr.value
    if expr.op not in ("Add", "Sub", "Mul", "Div", "Neg", "Identity"):
        return None
    parts = [linear(a) for a in expr.args]
    if any(p is None for p in parts):
        return None
    (terms, constant) = parts[0]  # type: ignore[misc]
    if expr.op == "Identity":
        return terms, constant
    if expr.op == "Neg":
        return {k: -v for k, v in terms.items()}, -constant
    more, other = parts[1]  # type: ignore[misc]
    if expr.op in ("Add", "Sub"):
        sign = 1 if expr.op == "Add" else -1
        names, none = list(dict.fromkeys([*terms, *more])), np.array(0.0)
        return {n: terms.get(n, none) + sign * more.get(n, none) for n in names}, constant + sign * other
    if terms and more:
        return None
    if expr.op == "Div":
        return None if more else ({k: v / other for k, v in terms.items()}, constant / other)
    scaled, factor, base = (terms, other, constant) if not more else (more, constant, other)
    return {k: v * factor for k, v in scaled.items()}, base * factor


def substitute(expr: Expr, names: dict[str, Expr], channels: np.ndarray | None = None) -> Expr:
    """Leaves replaced by expressions, and constants per channel gathered at `channels`."""
    if isinstance(expr, Leaf):
        return names.get(expr.tensor, expr)
    if isinstance(expr, Const):
        return Const(expr.value[channels]) if channels is not None and expr.value.ndim else expr
    return replace(expr, args=tuple(substitute(a, names, channels) for a in expr.args))


def times(leaf: str, scale: np.ndarray | float) -> Expr:
    """The floats of an integer tensor: leaf * scale."""
    return Apply("Mul", (Leaf(leaf), Const(np.asarray(scale, np.float64))))
