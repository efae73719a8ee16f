"""The pass over a QONNX graph: constants are folded, every operator is handed to its rule, refusals are collected."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from hw.fpga import ir
from hw.fpga.lower.expr import times
from hw.fpga.lower.problems import CannotLower, Problem
from hw.fpga.lower.state import State
from hw.fpga.reference import result

QUANT_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


@dataclass(frozen=True)
class Grid:
    """A quantized constant: integers and their scale, broadcastable against them."""

    integers: np.ndarray
    scale: np.ndarray
    bits: int


@dataclass
class Lowered:
    """The integer graph, or what stands in its way."""

    graph: ir.Graph
    problems: list[Problem]


@dataclass
class Context:
    """Everything that a rule reads and writes."""

    constants: dict[str, np.ndarray]
    grids: dict[str, Grid] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    graph: ir.Graph = field(default_factory=ir.Graph)
    label: str = ""
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)
    samples: dict[str, tuple[str, str, int]] = field(
        default_factory=dict
    )  # (image, distance, kernel) of deformable samples

    def emit(self, op: ir.Op, inputs: list[str], stem: str = "") -> str:
        """Append a node; returns the name of its result."""
        name = f"{stem or type(op).__name__.lower()}{len(self.graph.nodes)}"
        self.graph.tensors[name] = result(op, [self.graph.tensors[t] for t in inputs])
        self.graph.nodes.append(ir.Node(name, op, tuple(inputs), name, self.label))
        return name

    def constant(self, name: str) -> np.ndarray:
        """A constant input. Raises CannotLower when it is computed at run time."""
        if name not in self.constants:
            raise CannotLower(
                "one of its parameters is computed at run time",
                "export with constant parameters and a fixed input shape",
            )
        return self.constants[name]

    def state(self, name: str) -> State:
        return self.states[name]


Rule = Callable[[Context, onnx.NodeProto, dict[str, Any]], None]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Announce the rule of some ONNX operators."""

    def add(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return add


def round_by(mode: str) -> Callable[[np.ndarray], np.ndarray]:
    """The rounding of a QONNX Quant node."""
    modes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ROUND": np.rint,
        "HALF_EVEN": np.rint,
        "CEIL": np.ceil,
        "FLOOR": np.floor,
        "ROUND_TO_ZERO": np.trunc,
        "DOWN": np.trunc,
        "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
        "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
        "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
    }
    if mode.upper() not in modes:
        raise CannotLower(f"its rounding mode {mode} is not known", "use ROUND")
    return modes[mode.upper()]


def quant_range(attributes: dict[str, Any], bits: float, most: int = 16) -> tuple[int, int]:
    """Least and largest integer of a Quant node of at most `most` bits."""
    if bits != int(bits) or not 1 <= bits <= most:
        raise CannotLower(f"its bit width {bits:g} is no integer from 1 to {most}", "use 2 to 8 bits")
    signed, narrow, n = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0)), int(bits)
    if signed:
        return -(1 << (n - 1)) + narrow, (1 << (n - 1)) - 1
    return 0, (1 << n) - 1 - narrow


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values, strings decoded."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def _fold(context: Context, node: onnx.NodeProto) -> None:
    """Compute a node whose inputs are all constants."""
    values = [context.constants[n] if n else None for n in node.input]
    attributes = attributes_of(node)
    if node.op_type == "Quant" and node.domain in QUANT_DOMAINS:
        x, scale, zero, bits = (np.asarray(v, np.float64) for v in values)
        low, high = quant_range(attributes, float(bits.reshape(-1)[0]), 32)
        if np.any(zero != np.rint(zero)):
            raise CannotLower("its zero point is no integer", "use zero point 0 for weights")
        integers = round_by(attributes.get("rounding_mode", "ROUND"))(np.clip(x / scale + zero, low, high)) - zero
        context.grids[node.output[0]] = Grid(integers.astype(np.int64), scale, int(bits.reshape(-1)[0]))
        context.constants[node.output[0]] = integers * scale
        return
    if node.op_type == "Transpose" and node.input[0] in context.grids:
        grid, order = context.grids[node.input[0]], attributes.get("perm")
        scale = grid.scale.transpose(order) if grid.scale.ndim == grid.integers.ndim else grid.scale
        context.grids[node.output[0]] = Grid(grid.integers.transpose(order), scale, grid.bits)
    try:
        outs = ReferenceEvaluator(_single(node, values)).run(
            None, {n: v for n, v in zip(node.input, values, strict=True) if n}
        )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CannotLower(
            f"its constant value cannot be computed ({type(error).__name__})", "export the model again"
        ) from None
    context.constants |= dict(zip(node.output, (np.asarray(o) for o in outs), strict=True))


def _single(node: onnx.NodeProto, values: list[np.ndarray | None]) -> onnx.ModelProto:
    make = onnx.helper.make_tensor_value_info
    ins = [
        make(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in dict(zip(node.input, values, strict=True)).items()
        if v is not None
    ]
    outs = [onnx.helper.make_empty_tensor_value_info(n) for n in node.output]
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "fold", ins, outs), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )


def module_of(node: onnx.NodeProto) -> str:
    """The torch module of a node, without the inner parts of Brevitas' quantizers."""
    name = node.name.rsplit("/", 1)[0] if "/" in node.name else node.name
    return re.sub(r"(\.act)?\.act_quant.*$|\.(weight|bias)_quant.*$", "", name)


def lower(model: onnx.ModelProto, top_k: int = 0) -> Lowered:
    """A QONNX file (static batch of 1, per-tensor activation quantizers) as an integer graph.

    top_k: end the (one) output with the numbers of its largest channels. Every refusal is collected; the graph is complete only where `problems` is empty. Raises UserError never: the caller decides.
    """
    from hw.fpga.lower import rules_layer, rules_layout, rules_scalar  # noqa: F401  each announces its rules
    from hw.fpga.lower.ends import finish, start

    context = Context({i.name: numpy_helper.to_array(i) for i in model.graph.initializer})
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.value_info, *model.graph.output)
    }
    problems: list[Problem] = []
    poisoned: set[str] = set()
    start(context, model, problems, poisoned)
    for node in model.graph.node:
        context.label = module_of(node)
        behind = any(n in poisoned for n in node.input)
        try:
            _lower_node(context, node)
            if behind:
                poisoned.update(node.output)
        except CannotLower as error:
            # behind a refusal the graph goes on with stand-ins, so that the other refusals are found too; what a stand-in's
            # numbers would make impossible is no news
            if not behind or node.op_type != "Quant":
                problems.append(Problem(context.label, node.op_type, error.reason, error.remedy))
            poisoned.update(node.output)
            for name in node.output:
                _stand_in(context, name, shapes.get(name, []))
    finish(context, model, problems, poisoned, top_k)
    if not problems and not any(n.kind != "Flatten" for n in context.graph.nodes):
        problems.append(
            Problem("", "model", "nothing in it is left for hardware to compute", "give a model with layers")
        )
    context.graph.prune()
    return Lowered(context.graph, problems)


def _lower_node(context: Context, node: onnx.NodeProto) -> None:
    """Fold a constant or apply the operator's rule. Raises CannotLower."""
    if node.op_type == "Constant":
        context.constants[node.output[0]] = np.asarray(ReferenceEvaluator(_single(node, [])).run(None, {})[0])
        return
    if all(not n or n in context.constants for n in node.input):
        _fold(context, node)
        return
    if node.op_type not in RULES or node.domain not in ("", "ai.onnx", "deploy", *QUANT_DOMAINS):
        raise CannotLower(*_unknown(node))
    missing = [n for n in node.input if n and n not in context.constants and n not in context.states]
    if missing:
        raise CannotLower("it works on a tensor of unknown shape", "remove what is refused in front of it first")
    if node.op_type != "Conv" and any(n in context.samples for n in node.input):
        raise CannotLower("it reads deformable samples", "put the convolution of DeformConv2d between them")
    states = [context.states[n] for n in node.input if n in context.states]
    if any(s.after for s in states) and node.op_type not in ("Softmax", "LogSoftmax", "ArgMax", "TopK", "Identity"):
        raise CannotLower(
            "it follows a function that only the host applies (Softmax)", "end the model at that function"
        )
    RULES[node.op_type](context, node, attributes_of(node))


def _stand_in(context: Context, name: str, shape: list[int]) -> None:
    """Something of the right shape in place of a tensor that could not be lowered."""
    if len(shape) not in (2, 3, 4) or shape[0] != 1 or any(d < 1 for d in shape):
        return
    spatial = {2: (1, 1), 3: (1, shape[-1]), 4: (shape[-2], shape[-1])}[len(shape)]
    tensor = f"standin{len(context.graph.tensors)}"
    context.graph.tensors[tensor] = ir.Tensor((*spatial, shape[1]), -128, 127)
    context.states[name] = State.plain(times(tensor, 1.0), shape[1], spatial, len(shape))


_REMEDIES = {
    "ConvTranspose": (
        "transposed convolution has no hardware block",
        "use nearest upsampling followed by a convolution",
    ),
    "LSTM": ("recurrent layers have no hardware block", "profile this model on a CPU runtime instead"),
    "GRU": ("recurrent layers have no hardware block", "profile this model on a CPU runtime instead"),
    "LayerNormalization": ("layer normalization needs statistics of the data at hand", "use BatchNorm"),
    "InstanceNormalization": ("instance normalization needs statistics of the data at hand", "use BatchNorm"),
    "GroupNormalization": ("group normalization needs statistics of the data at hand", "use BatchNorm"),
    "BipolarQuant": ("one-bit values have no hardware block", "use 2 bits or more"),
    "Trunc": ("truncated average pooling has no hardware block", "use average pooling and a quantizer"),
}


def _unknown(node: onnx.NodeProto) -> tuple[str, str]:
    return _REMEDIES.get(
        node.op_type, ("no hardware block computes this operator", "replace it, or leave this model to a CPU runtime")
    )
