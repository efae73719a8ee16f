"""Writes the nodes of a rewritten graph: names, constants, and what is known of the tensors of the old one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploy.errors import ToolError


class Builder:
    """A copy of a model under rewriting. Tensors keep their names; new ones are numbered."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0
        self.constants = {t.name: t for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                tensor = next((a.t for a in node.attribute if a.name == "value"), None)
                if tensor is not None:
                    self.constants[node.output[0]] = tensor
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._types = {v.name: v.type.tensor_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 21)

    def keep(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)

    def add(
        self, op: str, inputs: Sequence[str], out: str = "", domain: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        """A node; returns the name of its first output (`out`, or a new one; more outputs are `NAME_1`...)."""
        name = out or self._name(op)
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=f"{name}/{op}", domain=domain, **attributes))
        return name

    def _name(self, what: str) -> str:
        self._count += 1
        return f"lowered_{what}_{self._count}"

    def constant(self, values: Any, dtype: Any = None) -> str:
        name = self._name("constant")
        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def array(self, name: str) -> np.ndarray | None:
        """A constant, None where the tensor is computed or left out."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def needed(self, node: onnx.NodeProto, index: int) -> np.ndarray:
        """A constant input. Raises ToolError where it is computed."""
        found = self.array(node.input[index]) if index < len(node.input) else None
        if found is None:
            raise ToolError(
                f"input {index} of the {node.op_type} node {node.name!r} must be a constant for this runtime"
            )
        return found

    def shape(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the old graph. Raises ToolError where it is open."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape") or any(d.dim_value < 1 for d in kind.shape.dim):
            raise ToolError(
                f"the {node.op_type} node {node.name!r} needs fixed shapes for this runtime; export with fixed input shapes"
            )
        return tuple(d.dim_value for d in kind.shape.dim)

    def model(self) -> onnx.ModelProto:
        del self._model.graph.node[:]
        self._model.graph.node.extend(self._nodes)
        del self._model.graph.value_info[:]
        return self._model

    # operators written often

    def reshape(self, x: str, shape: Sequence[int], out: str = "") -> str:
        return self.add("Reshape", [x, self.constant(shape, np.int64)], out)

    def transpose(self, x: str, perm: Sequence[int], out: str = "") -> str:
        return self.add("Transpose", [x], out, perm=list(perm))

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        return self.add("Slice", [x, *(self.constant([v], np.int64) for v in (start, end, axis))])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
    return found.decode() if isinstance(found, bytes) else found
