"""A tensor of the graph under import: where its numbers are, and in which order its axes lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Quantized:
    """Integers behind a float value: value = (expr - zero) * scale, both per tensor (floats) or along `axis` of the ONNX order."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int = -1


@dataclass(frozen=True)
class Value:
    """data: a NumPy array (constant) or a Relax expression. shape: in ONNX's order. perm: the axis of ONNX that lies at each place of the
    memory, so stored = transpose(onnx, perm). quantized: set where `data` holds integers that stand for a float value."""

    data: Any
    shape: tuple[int, ...]
    perm: tuple[int, ...]
    dtype: str
    quantized: Quantized | None = None

    @property
    def constant(self) -> bool:
        return isinstance(self.data, np.ndarray)

    @property
    def plain(self) -> bool:
        return self.perm == tuple(range(len(self.shape)))

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in memory."""
        return tuple(self.shape[a] for a in self.perm)


def of_array(array: np.ndarray) -> Value:
    return Value(array, tuple(array.shape), tuple(range(array.ndim)), str(array.dtype))


def settle(shape: tuple[int, ...], perm: tuple[int, ...]) -> tuple[int, ...]:
    """The perm with axes of size 1 moved where they cost nothing: identity if the order of all other axes is that of ONNX."""
    real = [a for a in perm if shape[a] != 1]
    return tuple(range(len(shape))) if real == sorted(real) else perm


def same_memory(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two orders lay the numbers out alike (axes of size 1 do not count)."""
    return [i for i in a if shape[i] != 1] == [i for i in b if shape[i] != 1]


NHWC = (0, 2, 3, 1)


def reshaped(shape: tuple[int, ...], perm: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """The perm of the reshaped tensor where the reshape moves nothing in memory, else None.

    Both shapes are cut into the smallest groups of axes with equal products; a group must lie together and in order in memory.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(shape) or j < len(new):
        left, right = [], []
        a = b = 1
        if i < len(shape):
            left.append(i)
            a *= shape[i]
            i += 1
        if j < len(new):
            right.append(j)
            b *= new[j]
            j += 1
        while a != b:
            if a < b and i < len(shape):
                left.append(i)
                a *= shape[i]
                i += 1
            elif b < a and j < len(new):
                right.append(j)
                b *= new[j]
                j += 1
            else:
                return None
        groups.append((left, right))
    order = [a for a in perm if shape[a] != 1]
    place = {a: p for p, a in enumerate(order)}
    keyed: list[tuple[float, list[int]]] = []
    for left, right in groups:
        real = [a for a in left if shape[a] != 1]
        at = [place[a] for a in real]
        if at != list(range(at[0], at[0] + len(at))) if at else False:
            return None
        keyed.append((at[0] if at else -1.0, right))
    ones = [r for k, r in keyed if k < 0]
    rest = [r for k, r in sorted((x for x in keyed if x[0] >= 0), key=lambda x: x[0])]
    return settle(new, tuple(a for r in ones + rest for a in r))
