"""Resize: along each axis an output is a weighted sum of a few inputs; which ones and how much, ONNX Runtime says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from deploy.errors import ToolError
from hw.runtime.tvm.value import Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node

_KEPT = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")


def weights(node: Node, size: int, scale: float | None, out: int | None, opset: int) -> np.ndarray:
    """[size, out]: what each output along an axis of `size` takes of each input, read off the resized unit vectors. scale or out is given."""
    from hw.runtime.tvm.graph import evaluate

    kept = {k: node.attributes[k] for k in _KEPT if k in node.attributes}
    names = ["x", "", "", "sizes"] if scale is None else ["x", "", "scales"]
    one = helper.make_node("Resize", names, ["y"], **kept)
    wanted = np.asarray([1, 1, size, out], np.int64) if scale is None else np.asarray([1, 1, 1, scale], np.float32)
    found = evaluate(
        one, {"x": np.eye(size, dtype=np.float32)[None, None], names[-1]: wanted}, ["y"], max(opset, 11)
    )  # fmt: skip
    if not found:
        raise ToolError(f"TVM: the Resize node {node.name!r} has a form that ONNX Runtime refuses as well")
    return found[0][0, 0]


def along(g: Graph, x: Value, axis: int, table: np.ndarray) -> Value:
    """x with one axis replaced by table's sums: as many reads as the widest sum has terms."""
    terms = int((table != 0).sum(0).max())
    order = np.argsort(table == 0, axis=0, kind="stable")[:terms]
    share = np.take_along_axis(table, order, 0)
    op, place = g.relax.op, x.perm.index(axis)
    stored = [1] * len(x.shape)
    stored[place] = table.shape[1]
    total = None
    for index, factor in zip(order, share, strict=True):
        row = op.take(g.expr(x), g.const(index.astype(np.int64)), place, mode="clip")
        if terms > 1 or (factor != 1).any():
            row = op.multiply(g.builder.emit(row), g.const(factor.astype(np.float32).reshape(stored)))
        row = g.builder.emit(row)
        total = row if total is None else g.builder.emit(op.add(total, row))
    return g.emit(total, [table.shape[1] if i == axis else s for i, s in enumerate(x.shape)], x.perm)


def resize(g: Graph, node: Node) -> Value:
    x = g.float(node[0])
    upsample = node.op == "Upsample" or g.opset < 11
    if (
        node.get("coordinate_transformation_mode", "") == "tf_crop_and_resize"
        or node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
        or x.dtype != "float32"
    ):
        raise ToolError(
            f"TVM: the Resize node {node.name!r} crops, keeps proportions or is not of floats; use onnxruntime"
        )
    scales = node.array(1 if upsample else 2) if len(node.inputs) > (1 if upsample else 2) else None
    scales = None if scales is None or scales.size == 0 else scales
    sizes = node.array(3) if scales is None and len(node.inputs) > 3 else None
    if scales is None and sizes is None:
        raise ToolError(f"TVM: the Resize node {node.name!r} takes a size that is computed; use onnxruntime")
    if upsample:  # before opset 11 places were those of `asymmetric`, rounded down
        node.attributes |= {"coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
    rank = len(x.shape)
    axes = [int(a) % rank for a in node.get("axes", range(rank))]
    for index, axis in enumerate(axes):
        scale = None if scales is None else float(scales[index])
        out = None if sizes is None else int(sizes[index])
        if scale == 1 or out == x.shape[axis]:
            continue
        x = along(g, x, axis, weights(node, x.shape[axis], scale, out, g.opset))
    return x


OPS = {"Resize": resize, "Upsample": resize}
