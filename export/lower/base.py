"""What a graph pass is, and the runner that checks what a pass claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

QUANT_DOMAIN = "qonnx.custom_op.general"


@dataclass(frozen=True)
class Result:
    """The graph after a pass, whether anything changed, and remarks for the record."""

    model: ir.Model
    changed: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    """A named rewrite with the conditions that must hold before and after it; a condition returns what breaks it, or ''."""

    name: str
    call: Callable[[ir.Model], Result]
    requires: Callable[[ir.Model], str] = lambda model: ""
    ensures: Callable[[ir.Model], str] = lambda model: ""


class PassError(RuntimeError):
    """A pass broke its word: a fault of this project, not of the user's model."""


@dataclass
class Report:
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def run(model: ir.Model, passes: Sequence[Pass]) -> tuple[ir.Model, Report]:
    """Run the passes in order. Raises PassError when a pre- or postcondition fails or a change was not reported."""
    report = Report()
    for item in passes:
        broken = item.requires(model)
        if broken:
            raise PassError(f"pass {item.name}: precondition fails: {broken}")
        before = fingerprint(model)
        result = item.call(model)
        if (fingerprint(result.model) != before) != result.changed:
            raise PassError(f"pass {item.name} says changed={result.changed}, which is not so")
        broken = item.ensures(result.model)
        if broken:
            raise PassError(f"pass {item.name}: postcondition fails: {broken}")
        report.notes += result.notes
        if result.changed:
            report.changed.append(item.name)
        model = result.model
    return model, report


def fingerprint(model: ir.Model) -> tuple[Any, ...]:
    """The structure of a graph: operators, connections, initializer names; equal only where nothing was rewritten."""
    nodes = tuple(
        (
            n.domain,
            n.op_type,
            tuple(v.name if v is not None else "" for v in n.inputs),
            tuple(v.name for v in n.outputs),
        )
        for n in model.graph
    )
    return nodes, tuple(sorted(model.graph.initializers))


def constant(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """Register an initializer under a fresh name near `name`."""
    unique, index = name, 0
    while unique in graph.initializers:
        index += 1
        unique = f"{name}_{index}"
    tensor = ir.Tensor(array, dtype=dtype, name=unique) if dtype is not None else ir.tensor(array, name=unique)
    value = ir.Value(name=unique, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The constant behind a value (initializer or Constant node), or None."""
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return np.asarray(producer.attributes["value"].as_tensor().numpy())
    return None


def attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def of_type(model: ir.Model, *op_types: str) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type in op_types]


def quant_bits(node: ir.Node) -> tuple[int, bool, bool]:
    """(bits, signed, narrow) of a QONNX Quant node. Raises PassError when its bit width is not a constant."""
    bits = array_of(node.inputs[3])
    if bits is None:
        raise PassError(f"Quant node {node.name} has a computed bit width")
    return int(bits.reshape(-1)[0]), bool(attribute(node, "signed", 1)), bool(attribute(node, "narrow", 0))


def is_weight_quant(node: ir.Node) -> bool:
    return node.op_type == "Quant" and node.domain == QUANT_DOMAIN and array_of(node.inputs[0]) is not None


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing uses."""
    graph = model.graph
    removed = True
    while removed:
        removed = False
        for node in list(graph):
            if all(not v.uses() and not v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
                removed = True
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Let `new` take every use of `old`, its shape, and its name where it is a graph output."""
    new.shape = old.shape
    if old.is_graph_output():
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = f"{name}_old", name
    else:
        ir.convenience.replace_all_uses_with(old, new)
