"""Rewrites of a QDQ graph that compute the same integers through other kernels of ONNX Runtime. Whether they are faster depends
on the CPU, so they are candidates for measurement, never defaults.

1. `matrix`: weight w, zero point 0 -> weight w - 1, zero point -1. Exact, because narrow-range weights leave the least integer
   free. A non-zero zero point takes a convolution off the direct kernel (VNNI) and onto im2col + matrix product, which uses AMX
   where the CPU has it. Layers are chosen one by one from two profiled runs.
2. `stem`: a convolution of stride 2 on at most 4 channels becomes SpaceToDepth(2) and a convolution of stride 1 with four times
   the channels and half the kernel: the same products, in an order with fewer and longer copies.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

STEM_CHANNELS = 4


class _Index:
    """Initializers and producers by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.init = {i.name: i for i in model.graph.initializer}
        self.producer = {o: n for n in model.graph.node for o in n.output}
        self.uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1

    def weight(self, conv: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.TensorProto] | None:
        """The DequantizeLinear of a convolution's weight and its stored integers, through the 4-bit Cast."""
        dequantize = self.producer.get(conv.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(dequantize.input) < 3:
            return None
        name = dequantize.input[0]
        if name in self.producer and self.producer[name].op_type == "Cast":
            name = self.producer[name].input[0]
        return (dequantize, self.init[name]) if name in self.init and self.uses.get(name) == 1 else None


def _store(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    """Replace the integers of an initializer, keeping its name and type (INT8 or INT4)."""
    kind = tensor.data_type
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))


def convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that `matrix` can rewrite: integer weights in narrow range, more than one channel per group."""
    index = _Index(model)
    names = []
    for node in model.graph.node:
        found = index.weight(node) if node.op_type == "Conv" else None
        if found is None:
            continue
        values = numpy_helper.to_array(found[1]).astype(np.int16)
        least = -8 if found[1].data_type == onnx.TensorProto.INT4 else -128
        if values.shape[1] > 1 and values.min() - 1 >= least:
            names.append(node.name)
    return names


def matrix(model: onnx.ModelProto, layers: Iterable[str]) -> onnx.ModelProto:
    """Rule 1 for the named convolutions; a copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = _Index(copy)
    chosen = set(layers)
    for node in copy.graph.node:
        found = index.weight(node) if node.op_type == "Conv" and node.name in chosen else None
        if found is None:
            continue
        dequantize, tensor = found
        zero = index.init[dequantize.input[2]]
        shape = numpy_helper.to_array(zero).shape
        _store(tensor, numpy_helper.to_array(tensor).astype(np.int16) - 1)
        shifted = f"{zero.name}_shifted"
        copy.graph.initializer.append(numpy_helper.from_array(np.full(shape, -1, np.int8), shifted))
        dequantize.input[2] = shifted
    return copy


def _ints(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), default)


def stem(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Rule 2 for the convolution at the model's input; a copy, or None where there is no such convolution.

    Wanted: input [N, C<=4, H, W] with even H and W -> QuantizeLinear -> DequantizeLinear -> Conv, stride 2, one group.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = _Index(copy)
    if len(copy.graph.input) != 1:
        return None
    source = copy.graph.input[0]
    dims = [d.dim_value for d in source.type.tensor_type.shape.dim]
    if (
        len(dims) != 4
        or not 0 < dims[1] <= STEM_CHANNELS
        or dims[2] % 2
        or dims[3] % 2
        or index.uses.get(source.name) != 1
    ):
        return None
    quantize = next(n for n in copy.graph.node if source.name in n.input)
    if quantize.op_type != "QuantizeLinear" or index.uses.get(quantize.output[0]) != 1:
        return None
    dequantize = next(n for n in copy.graph.node if quantize.output[0] in n.input)
    if index.uses.get(dequantize.output[0]) != 1:
        return None
    conv = next(n for n in copy.graph.node if dequantize.output[0] in n.input)
    found = index.weight(conv) if conv.op_type == "Conv" else None
    attributes = {a.name: a for a in conv.attribute}
    if found is None or _ints(conv, "strides", [1, 1]) != [2, 2] or _ints(conv, "dilations", [1, 1]) != [1, 1]:
        return None
    if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"", b"NOTSET"):
        return None
    tensor = found[1]
    values = numpy_helper.to_array(tensor).astype(np.int8)
    out, channels, kh, kw = values.shape
    pads = _ints(conv, "pads", [0, 0, 0, 0])
    if channels != dims[1]:
        return None
    sizes, starts, ends = [], [], []
    for axis, kernel in ((0, kh), (1, kw)):
        lead = pads[axis] % 2
        half = (kernel + lead + 1) // 2
        low = (pads[axis] + lead) // 2
        produced = (dims[2 + axis] + pads[axis] + pads[2 + axis] - kernel) // 2 + 1
        high = produced + half - 1 - dims[2 + axis] // 2 - low
        if high < 0:
            return None
        sizes.append((lead, half))
        starts.append(low)
        ends.append(high)
    (top, hh), (left, hw) = sizes
    grown = np.zeros((out, channels, 2 * hh, 2 * hw), np.int8)
    grown[:, :, top : top + kh, left : left + kw] = values
    split = grown.reshape(out, channels, hh, 2, hw, 2).transpose(0, 3, 5, 1, 2, 4).reshape(out, 4 * channels, hh, hw)
    _store(tensor, np.ascontiguousarray(split))
    quantize.input[0] = f"{source.name}_blocks"
    copy.graph.node.insert(
        0, helper.make_node("SpaceToDepth", [source.name], [f"{source.name}_blocks"], "stem/SpaceToDepth", blocksize=2)
    )
    for name in ("strides", "pads", "kernel_shape"):
        if name in attributes:
            conv.attribute.remove(attributes[name])
    conv.attribute.extend(
        [
            helper.make_attribute("strides", [1, 1]),
            helper.make_attribute("pads", [*starts, *ends]),
            helper.make_attribute("kernel_shape", [hh, hw]),
        ]
    )
    del copy.graph.value_info[:]
    return copy


def choose_layers(
    names: Iterable[str], direct: dict[str, float], product: dict[str, float], margin: float = 0.95
) -> list[str]:
    """The convolutions that the matrix kernel runs in at most `margin` of the direct kernel's time; times by layer name."""
    return [n for n in names if n in direct and n in product and product[n] < margin * direct[n]]
