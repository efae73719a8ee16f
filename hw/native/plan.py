"""From a scheduled Relax module to a list of kernel calls over an arena: what a runner needs to know, as lines of text.

s WEIGHTS INPUTS OUTPUTS ARENA TENSORS CALLS   bytes of the files and of the arena, and how many lines of each kind follow
t KIND BITS PLACE OFFSET DIM...   a tensor; PLACE is w (weights file), i (inputs file), o (outputs file) or a (arena)
c KERNEL TENSOR...                a call, results last
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.errors import ToolError

ALIGN = 64
KINDS = {
    **{f"int{b}": (0, b) for b in (8, 16, 32, 64)},
    **{f"uint{b}": (1, b) for b in (8, 16, 32, 64)},
    **{f"float{b}": (2, b) for b in (16, 32, 64)},
    "bool": (6, 8),
}  # fmt: skip - DLPack's code and bits of a type


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _up(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


@dataclass
class Tensor:
    shape: tuple[int, ...]
    dtype: str
    place: str
    offset: int = 0
    first: int = 0  # calls between which the numbers are needed
    last: int = -1

    @property
    def size(self) -> int:
        return _bytes(self.shape, self.dtype)

    def line(self) -> str:
        if self.dtype not in KINDS:
            raise ToolError(f"the runner takes no numbers of type {self.dtype}; convert the model")
        code, bits = KINDS[self.dtype]
        return f"t {code} {bits} {self.place} {self.offset} {' '.join(map(str, self.shape))}".rstrip()


@dataclass
class Plan:
    """tensors and calls in order; weights: the bytes of the weights file; sizes of the other places in bytes."""

    tensors: list[Tensor] = field(default_factory=list)
    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)
    arena: int = 0
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def text(self) -> str:
        end = {p: max((t.offset + t.size for t in self.tensors if t.place == p), default=0) for p in "wio"}
        head = f"s {end['w']} {end['i']} {end['o']} {self.arena} {len(self.tensors)} {len(self.calls)}"
        return (
            "\n".join(
                [head, *(t.line() for t in self.tensors), *(f"c {n} {' '.join(map(str, a))}" for n, a in self.calls)]
            )
            + "\n"
        )

    def pack(self, values: list[np.ndarray]) -> bytes:
        """The inputs file."""
        rows = [self.tensors[i] for i in self.inputs]
        out = bytearray(max((t.offset + t.size for t in rows), default=0))
        for tensor, value in zip(rows, values, strict=True):
            raw = np.ascontiguousarray(value, dtype=tensor.dtype)
            if raw.shape != tensor.shape:
                raise ToolError(f"an input has shape {raw.shape}, the compiled model takes {tensor.shape}")
            out[tensor.offset : tensor.offset + tensor.size] = raw.tobytes()
        return bytes(out)

    def unpack(self, raw: bytes) -> list[np.ndarray]:
        """The arrays of an outputs file."""
        rows = [self.tensors[i] for i in self.outputs]
        return [np.frombuffer(raw, t.dtype, int(np.prod(t.shape)), t.offset).reshape(t.shape) for t in rows]


def make(module: Any) -> Plan:
    """The plan of a module whose `main` is a row of kernel calls. Raises ToolError for anything else in it."""
    from tvm import relax

    main = module["main"]
    plan = Plan()
    ids: dict[Any, int] = {}
    alias: dict[Any, Any] = {}

    def kind(expr: Any) -> tuple[tuple[int, ...], str]:
        return tuple(int(s) for s in expr.ty.shape), str(expr.ty.dtype)

    def add(key: Any, tensor: Tensor) -> int:
        plan.tensors.append(tensor)
        ids[key] = len(plan.tensors) - 1
        return ids[key]

    def number(expr: Any) -> int:
        while expr in alias:
            expr = alias[expr]
        if expr in ids:
            return ids[expr]
        if hasattr(expr, "value"):  # a constant
            array = np.ascontiguousarray(expr.value.numpy())
            offset = len(plan.weights)
            plan.weights += array.tobytes()
            plan.weights += bytes(_up(len(plan.weights)) - len(plan.weights))
            return add(expr, Tensor(array.shape, str(array.dtype), "w", offset))
        raise ToolError(f"the compiled model has a part that the runner cannot execute: {type(expr).__name__}")

    at = 0
    for parameter in main.params:
        shape, dtype = kind(parameter)
        plan.inputs.append(add(parameter, Tensor(shape, dtype, "i", at)))
        at += _up(_bytes(shape, dtype))
    result: Any = main.body.body
    for block in main.body.blocks:
        for binding in block.bindings:
            value, var = binding.value, binding.var
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                uses = [number(a) for a in value.args[1]]
                shape, dtype = kind(var)
                step = len(plan.calls)
                for use in uses:
                    plan.tensors[use].last = max(plan.tensors[use].last, step)
                out = add(var, Tensor(shape, dtype, "a", 0, step, step))
                plan.calls.append((value.args[0].name_hint, [*uses, out]))
            elif isinstance(value, (relax.Var, relax.Tuple)):
                alias[var] = value
            else:
                raise ToolError(f"the compiled model has a part that the runner cannot execute: {value}"[:200])
    while result in alias:
        result = alias[result]
    at = 0
    for row in result.fields if isinstance(result, relax.Tuple) else [result]:
        index = number(row)
        tensor = plan.tensors[index]
        if tensor.place != "a" or index in plan.outputs:
            raise ToolError(
                "an output of the model is an input, a constant or another output; add an operator behind it"
            )
        tensor.place, tensor.offset = "o", at
        plan.outputs.append(index)
        at += _up(tensor.size)
    _place(plan)
    return plan


def _place(plan: Plan) -> None:
    """Offsets in the arena: largest first, at the lowest place that is free for as long as the numbers live."""
    placed: list[Tensor] = []
    for tensor in sorted((t for t in plan.tensors if t.place == "a"), key=lambda t: -t.size):
        busy = sorted(
            (o.offset, o.offset + _up(o.size)) for o in placed if o.first <= tensor.last and tensor.first <= o.last
        )
        at = 0
        for low, high in busy:
            if at + _up(tensor.size) <= low:
                break
            at = max(at, high)
        tensor.offset = at
        placed.append(tensor)
    plan.arena = max((t.offset + _up(t.size) for t in placed), default=0)
