"""ONNX operators that a runtime lacks, or computes wrongly, written in operators that every runtime has. One file per operator, found by itself:
a dict `OPS` from the operator's name to a function that writes its nodes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable

import onnx

from hw.runtime.lower.builder import Builder

Rewrite = Callable[[Builder, onnx.NodeProto], bool]


def rewrites() -> dict[str, Rewrite]:
    """Every operator with a file here."""
    found: dict[str, Rewrite] = {}
    for info in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{info.name}"), "OPS", {})
    return found


def lower(model: onnx.ModelProto, lacking: Iterable[str]) -> onnx.ModelProto:
    """The model, or a copy without the `lacking` operators. A node in a form that its rewrite does not cover stays.

    Raises ToolError where a rewrite needs a constant or a fixed shape that the node does not have.
    """
    wanted = {name: rewrite for name, rewrite in rewrites().items() if name in set(lacking)}
    if not any(n.op_type in wanted for n in model.graph.node):
        return model
    builder = Builder(model)
    for node in model.graph.node:
        if node.op_type not in wanted or not wanted[node.op_type](builder, node):
            builder.keep(node)
    return builder.model()
