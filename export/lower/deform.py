"""SquareSample becomes rows of a table: the exact integer form that runtimes execute fast.

1. The image, padded by the bound, becomes rows [N H' W', C], one per pixel; Gather reads k^2 rows per place.
2. A row's number is its place plus distance times a constant per tap; distances are clipped to the bound, which changes nothing.
3. Where the image was dequantized from integers, rows are gathered as integers and dequantized behind, so that the convolution
   after it still sees a quantized input; its padding is the zero point.
The bound is that of the quantizer or clamp of the distance, else the image's larger side.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.deform import template
from export.lower.base import Pass, PassError, Result, array_of, attribute, constant, drop_unused, of_type, substitute
from export.square_sample import DOMAIN, NAME


def _bound(value: ir.Value | None, side: int) -> int:
    """The largest distance that can arrive, from the clips and quantizers in front of it."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Clip" and len(node.inputs) > 2 and (top := array_of(node.inputs[2])) is not None:
            return min(side, round(float(top)))
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Round", "Identity"):
            break
        value = node.inputs[0]
    return side


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, distance = node.inputs
    if x is None or distance is None or x.shape is None or not all(isinstance(s, int) for s in list(x.shape)[1:]):
        raise PassError(f"{NAME} {node.name} has an image of unknown size")
    _, c, h, w = (s if isinstance(s, int) else 1 for s in x.shape)
    kernel, name = attribute(node, "kernel", 3), node.outputs[0].name or "sample"
    reach = _bound(distance, max(h, w))
    border = reach * (kernel // 2)
    wide, high = w + 2 * border, h + 2 * border
    made: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value | None], kind: ir.DataType, **attributes: object) -> ir.Value:
        new = ir.node(op, inputs, attributes)  # type: ignore[arg-type]
        new.outputs[0].dtype = kind
        made.append(new)
        return new.outputs[0]

    def ints(label: str, values: object) -> ir.Value:
        return constant(graph, f"{name}_{label}", np.asarray(values, np.int64))

    back = x.producer()
    if back is not None and back.op_type == "DequantizeLinear" and array_of(back.inputs[0]) is None:
        source, kind, pad = back.inputs[0], ir.DataType.UINT8, back.inputs[2]
    else:
        back, source, kind, pad = None, x, ir.DataType.FLOAT, constant(graph, f"{name}_zero", np.zeros((), np.float32))
    long = ir.DataType.INT64
    padded = add("Pad", [source, ints("pads", [0, 0, border, border, 0, 0, border, border]), pad], kind)
    rows = add("Reshape", [add("Transpose", [padded], kind, perm=[0, 2, 3, 1]), ints("rows", [-1, c])], kind)

    taps = template(kernel).numpy().reshape(kernel, kernel, 2)
    step = (taps[..., 0] * wide + taps[..., 1]).reshape(1, 1, kernel, 1, kernel)
    place = (np.arange(h)[:, None] + border) * wide + np.arange(w) + border
    whole = add("Reshape", [add("Cast", [distance], long, to=int(long)), ints("places", [-1, h, 1, w, 1])], long)
    limited = add("Clip", [whole, ints("least", 0), ints("most", reach)], long)
    index = add(
        "Add", [add("Mul", [limited, ints("step", step)], long), ints("place", place.reshape(1, h, 1, w, 1))], long
    )
    if not (isinstance(x.shape[0], int) and x.shape[0] == 1):  # the samples of a batch lie one after the other
        count = add("Shape", [x], long, start=0, end=1)
        numbers = add("Range", [ints("first", 0), add("Squeeze", [count], long), ints("one", 1)], long)
        first = add("Mul", [numbers, ints("sample", wide * high)], long)
        index = add("Add", [index, add("Reshape", [first, ints("samples", [-1, 1, 1, 1, 1])], long)], long)
    read = add("Gather", [rows, add("Reshape", [index, ints("flat", [-1])], long)], kind, axis=0)
    image = add("Reshape", [read, ints("image", [-1, kernel * h, kernel * w, c])], kind)
    out = add("Transpose", [image], kind, perm=[0, 3, 1, 2])
    if back is not None:
        out = add("DequantizeLinear", [out, *back.inputs[1:]], ir.DataType.FLOAT)
    graph.insert_before(node, made)
    substitute(node.outputs[0], out)


def _call(model: ir.Model) -> Result:
    found = of_type(model, NAME)
    for node in found:
        _lower(model.graph, node)
    drop_unused(model)
    model.opset_imports.pop(DOMAIN, None)
    return Result(model, bool(found))


def _none_left(model: ir.Model) -> str:
    left = of_type(model, NAME)
    return f"{len(left)} {NAME} nodes left" if left else ""


PASS = Pass("deform", _call, ensures=_none_left)
