"""ONNX -> Relax: one walk over the nodes, with every tensor's order of axes kept beside it.

Convolutions want their channels last, attention wants heads in front; a Transpose only changes the note of the order, and numbers are moved
where an operator needs another order than the one that they have. Weights are transposed and packed in NumPy. Operators without a
file in `ops/` go through TVM's own importer, in ONNX's order.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploy.errors import ToolError
from hw.runtime.ort import FAILURES
from hw.runtime.tvm import ops
from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.value import Quantized, Value, of_array, same_memory

SPATIAL, HEAVY = 2, 4  # TVM's operator patterns: injective; a reduction that takes element-wise operators behind it


class Node:
    """A node of the file: `inputs` are Values (None where left out), attributes by name."""

    def __init__(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> None:
        self.proto, self.inputs = proto, inputs
        self.op, self.name = proto.op_type, proto.name
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def __getitem__(self, index: int) -> Value:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise ToolError(f"the {self.op} node {self.name!r} has no input {index}")
        return found

    def array(self, index: int) -> np.ndarray | None:
        """A constant input, None where it is left out. Raises ToolError where it is computed."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            return None
        if not isinstance(found.data, np.ndarray):
            raise ToolError(
                f"TVM needs input {index} of the {self.op} node {self.name!r} as a constant; simplify the model (its shapes must be fixed)"
            )
        return found.data


Handler = Callable[["Graph", Node], "Value | list[Value] | None"]


def handlers() -> dict[str, Handler]:
    """Every operator with a file in `ops/`."""
    found: dict[str, Handler] = {}
    for info in pkgutil.iter_modules(ops.__path__):
        found |= getattr(importlib.import_module(f"{ops.__name__}.{info.name}"), "OPS", {})
    return found


class Graph:
    """The import of one file for one machine."""

    def __init__(self, model: onnx.ModelProto, machine: Machine, fast: bool = True) -> None:
        from tvm import relax
        from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

        self.model, self.machine, self.fast = model, machine, fast
        self.relax: Any = relax
        self.builder: Any = relax.BlockBuilder()
        self.values: dict[str, Value] = {}
        self.uses: dict[str, list[onnx.NodeProto]] = {}
        self.fallbacks: dict[str, int] = {}
        self._importer: Any = ONNXGraphImporter({}, "float32")
        self._importer.bb = self.builder
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 21)
        self._importer.opset = self.opset
        for node in model.graph.node:
            for name in node.input:
                self.uses.setdefault(name, []).append(node)
        self.outputs = {o.name for o in model.graph.output}

    # building blocks for the operators

    def const(self, array: Any) -> Any:
        """A constant of the array's own type (Relax would make 64-bit integers 32-bit ones)."""
        return self.relax.const(array, str(np.asarray(array).dtype))

    def emit(self, expr: Any, shape: Sequence[int], perm: Sequence[int], dtype: str | None = None) -> Value:
        """A Value from a Relax expression whose memory has `perm`."""
        variable = self.builder.emit(expr)
        return Value(variable, tuple(int(s) for s in shape), tuple(perm), dtype or str(variable.ty.dtype))

    def kernel(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        shape: Sequence[int],
        perm: Sequence[int],
        name: str,
        pattern: int = HEAVY,
    ) -> Value:
        """A Value computed by a tensor expression over stored inputs (Relax expressions or arrays)."""
        arguments = [self.const(i) if isinstance(i, np.ndarray) else i for i in inputs]
        call = self.builder.call_te(
            function, *arguments, primfunc_name_hint=name, primfunc_attrs={"op_pattern": pattern}
        )
        return self.emit(call, shape, perm)

    def expr(self, value: Value) -> Any:
        """The value's memory as a Relax expression, integers as they are."""
        return self.const(value.data) if isinstance(value.data, np.ndarray) else value.data

    def float(self, value: Value) -> Value:
        """The value itself, dequantized where it stands for integers."""
        if value.quantized is None:
            return value
        q = value.quantized
        if isinstance(value.data, np.ndarray):
            shape = [1] * value.data.ndim
            if q.axis >= 0 and q.scale.size > 1:
                shape[value.perm.index(q.axis)] = -1
            scale, zero = (x.reshape(shape) if x.size > 1 else x.reshape(()) for x in (q.scale, q.zero))
            array = (value.data.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
            return Value(np.ascontiguousarray(array.astype(np.float32)), value.shape, value.perm, "float32")
        if q.scale.size > 1:
            raise ToolError("TVM: activations quantized per channel are not taken; quantize them per tensor")
        op = self.relax.op
        number = op.astype(value.data, "float32")
        offset = float(q.zero.reshape(-1)[0])
        if offset:
            number = op.subtract(number, self.const(np.float32(offset)))
        return self.emit(op.multiply(number, self.const(np.float32(q.scale.reshape(-1)[0]))), value.shape, value.perm)

    def ordered(self, value: Value, perm: Sequence[int], keep: bool = False) -> Value:
        """The value with its memory in the order `perm`; dequantized unless `keep`."""
        perm = tuple(perm)
        if not keep:
            value = self.float(value)
        if value.perm == perm:
            return value
        shape = tuple(value.shape[a] for a in perm)
        if isinstance(value.data, np.ndarray):
            onnx_order = value.data.transpose(np.argsort(value.perm)) if value.perm else value.data
            return Value(
                np.ascontiguousarray(onnx_order.transpose(perm)), value.shape, perm, value.dtype, value.quantized
            )
        if same_memory(value.shape, value.perm, perm):
            data = self.builder.emit(self.relax.op.reshape(value.data, shape))
        else:
            axes = [value.perm.index(a) for a in perm]
            data = self.builder.emit(self.relax.op.permute_dims(value.data, axes))
        return Value(data, value.shape, perm, value.dtype, value.quantized)

    def plain(self, value: Value) -> Value:
        return self.ordered(value, range(len(value.shape)))

    def constant(self, array: np.ndarray) -> Value:
        return of_array(np.asarray(array))

    def read(self, name: str) -> bool:
        """Whether anything reads a tensor."""
        return bool(name) and (name in self.outputs or name in self.uses)

    def sole_user(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor which is no output of the model."""
        users = self.uses.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def convert(self, op: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        """TVM's own converter of an operator, on Relax expressions."""
        from tvm.relax.frontend.onnx.onnx_frontend import onnx_input

        listed = onnx_input()
        listed.extend(inputs)
        attributes = {**attributes, "tvm_custom": {"name": op, "num_outputs": 1}}
        return self._importer._convert_operator(op, listed, attributes, self.opset)

    # the walk

    def _fallback(self, node: Node) -> list[Value]:
        """An operator by TVM's importer, in ONNX's order."""
        import tvm

        if "Sequence" in node.op:  # TVM's importer does not end on some of them
            raise ToolError(f"TVM takes no sequences of tensors ({node.op}, node {node.name!r}); use onnxruntime")
        inputs = [None if v is None else self.expr(self.plain(v)) for v in node.inputs]
        try:
            attributes = self._importer._parse_attr(node.proto.attribute)
            attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.proto.output)}
            from tvm.relax.frontend.onnx.onnx_frontend import onnx_input

            listed = onnx_input()
            listed.extend(inputs)
            result = self._importer._convert_operator(node.op, listed, attributes, self.opset)
        except (NotImplementedError, tvm.error.OpNotImplemented) as error:
            raise ToolError(
                f"TVM has no operator {node.op} (node {node.name!r}); run this model on onnxruntime"
            ) from error
        except (ValueError, TypeError, AttributeError, KeyError, AssertionError, RuntimeError) as error:
            raise ToolError(
                f"TVM cannot import the {node.op} node {node.name!r}: {str(error).strip()[:200]}"
            ) from error
        self.fallbacks[node.op] = self.fallbacks.get(node.op, 0) + 1
        if isinstance(result, (list, tuple)):
            results = list(result)
        elif hasattr(result, "ty") and hasattr(result.ty, "fields"):
            whole = self.builder.emit(result)
            results = [self.relax.TupleGetItem(whole, i) for i in range(len(whole.ty.fields))]
        else:
            results = [result]
        return [self._of_expr(r, node) for r in results]

    def _folded(self, node: Node) -> bool:
        """Evaluate a node of constants here, by ONNX Runtime; what it refuses stays in the graph."""
        if node.op in ("QuantizeLinear", "DequantizeLinear") or node.proto.domain not in ("", "ai.onnx"):
            return False
        if not all(v is None or (v.constant and v.quantized is None) for v in node.inputs) or (
            not node.inputs and node.op != "Constant"
        ):
            return False
        known = {i: self.plain(self.values[i]).data for i in dict.fromkeys(node.proto.input) if i}
        outputs = [o for o in node.proto.output if o]
        if node.op == "Constant" and "value" in node.attributes:
            found: list[Any] = [numpy_helper.to_array(node.attributes["value"])]
        else:
            found = evaluate(node.proto, known, outputs, self.opset)
        if len(found) != len(outputs) or not all(isinstance(array, np.ndarray) for array in found):
            return False
        self.values |= {name: of_array(array) for name, array in zip(outputs, found, strict=True)}
        return True

    def _of_expr(self, expr: Any, node: Node) -> Value:
        variable = self.builder.emit(expr)
        kind = variable.ty
        if not hasattr(kind, "dtype") or getattr(kind, "shape", None) is None:
            raise ToolError(
                f"TVM: the {node.op} node {node.name!r} has no fixed shape; give the model fixed input shapes"
            )
        try:
            shape = tuple(int(s) for s in kind.shape)
        except TypeError as error:
            raise ToolError(
                f"TVM: the {node.op} node {node.name!r} has an open shape; give the model fixed input shapes"
            ) from error
        return Value(variable, shape, tuple(range(len(shape))), str(kind.dtype))

    def module(self) -> Any:
        """The Relax module with `main`: inputs in the file's order, a tuple of its outputs."""
        relax, graph = self.relax, self.model.graph
        known = handlers()
        for tensor in graph.initializer:
            self.values[tensor.name] = of_array(numpy_helper.to_array(tensor))
        parameters: list[Any] = []
        for value in graph.input:
            if value.name in self.values:
                continue
            kind = value.type.tensor_type
            shape = tuple(d.dim_value for d in kind.shape.dim)
            if any(s < 1 for s in shape):
                raise ToolError(f"TVM needs fixed input shapes, and {value.name!r} has open dimensions")
            dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
            variable = relax.Var(f"in{len(parameters)}", relax.TensorType(shape, dtype))
            parameters.append(variable)
            self.values[value.name] = Value(variable, shape, tuple(range(len(shape))), dtype)
        with self.builder.function("main", parameters):
            with self.builder.dataflow():
                for proto in graph.node:
                    if all(o in self.values for o in proto.output if o):
                        continue  # taken in by an operator before it
                    node = Node(proto, [self.values[i] if i else None for i in proto.input])
                    if self._folded(node):
                        continue
                    handler = known.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
                    result = handler(self, node) if handler is not None else None
                    if result is None:
                        result = self._fallback(node)
                    found = result if isinstance(result, list) else [result]
                    if any(self.read(o) for o in proto.output[len(found) :]):
                        raise ToolError(
                            f"TVM gives no second output of {node.op} (node {node.name!r}); use onnxruntime"
                        )
                    for name, value in zip(proto.output, found, strict=False):
                        if name:
                            self.values[name] = value
                rows = [self.expr(self.plain(self.values[o.name])) for o in graph.output]
                rows = [self.builder.emit(r) if not isinstance(r, relax.Var) or r in parameters else r for r in rows]
                out = self.builder.emit_output(relax.Tuple(rows))
            self.builder.emit_func_output(out)
        return self.builder.get()


def evaluate(node: onnx.NodeProto, known: dict[str, np.ndarray], outputs: list[str], opset: int) -> list[Any]:
    """The outputs of one node, [] where ONNX Runtime cannot run it. (ONNX's reference fails on some: GatherElements of one row.)"""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    small = {
        i: a for i, a in known.items() if a.dtype.kind not in "fiub" or a.dtype.num > 23
    }  # types that NumPy borrows: as initializers
    inputs = [
        helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for i, a in known.items()
        if i not in small
    ]
    stored = [numpy_helper.from_array(a, i) for i, a in small.items()]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=o) for o in outputs], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(outputs, {i: a for i, a in known.items() if i not in small}))
    except (*FAILURES, RuntimeError, TypeError, ValueError):
        return []


def quantized(value: Value, scale: np.ndarray, zero: np.ndarray, axis: int) -> Value:
    """The same integers, read as floats."""
    return Value(value.data, value.shape, value.perm, value.dtype, Quantized(np.asarray(scale), np.asarray(zero), axis))


def product(values: Iterable[int]) -> int:
    out = 1
    for v in values:
        out *= int(v)
    return out
