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
    """[size, out]: what each output along an axis of `size` takes of each input, read off resized unit vectors. scale or out is given.

    The unit vectors are channels of an image one pixel high that grows to two: ONNX Runtime copies what does not change its shape.
    """
    from hw.runtime.tvm.graph import evaluate

    kept = {k: node.attributes[k] for k in _KEPT if k in node.attributes}
    places = ["", "sizes"] if scale is None else ["scales"]
    names = (
        ["x", *places] if opset < 11 else ["x", "", *places]
    )  # without the region of interest that opsets 11 and 12 name in vain
    one = helper.make_node(node.op, names, ["y"], **kept)
    wanted = np.asarray([1, size, 2, out], np.int64) if scale is None else np.asarray([1, 1, 2, scale], np.float32)
    vectors = np.eye(size, dtype=np.float32)[None, :, None]
    found = evaluate(one, {"x": vectors, names[-1]: wanted}, ["y"], opset if opset < 11 else max(opset, 13))
    if not found:
        raise ToolError(
            f"TVM: the {node.op} node {node.name!r} has a form that ONNX Runtime refuses as well; use onnxruntime"
        )
    return found[0][0, :, 0]


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
    nearest = node.get("mode", "nearest") == "nearest"
    if (
        node.get("coordinate_transformation_mode", "") == "tf_crop_and_resize"
        or node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
        or (x.dtype != "float32" and not nearest)
    ):
        raise ToolError(
            f"TVM: the Resize node {node.name!r} crops, keeps proportions or is not of floats; use onnxruntime"
        )
    rank = len(x.shape)
    axes = [int(a) % rank for a in node.get("axes", range(rank))]
    place = 1 if g.opset < 11 else 2
    scales = node.array(place) if len(node.inputs) > place else node.get("scales")
    scales = None if scales is None or len(scales) == 0 else scales
    sizes = node.array(3) if scales is None and len(node.inputs) > 3 else None
    if scales is not None:
        wanted = {a: int(x.shape[a] * scales[i]) for i, a in enumerate(axes)}
    elif sizes is not None:
        wanted = {a: int(sizes[i]) for i, a in enumerate(axes)}
    else:
        raise ToolError(f"TVM: the Resize node {node.name!r} takes a size that is computed; use onnxruntime")
    if all(x.shape[a] == size for a, size in wanted.items()):
        return x  # ONNX Runtime copies it then, whatever the scales
    for index, axis in enumerate(axes):
        scale = None if scales is None else float(scales[index])
        if scale == 1 or (scale is None and wanted[axis] == x.shape[axis]):
            continue
        x = along(g, x, axis, weights(node, x.shape[axis], scale, wanted[axis], g.opset))
    return x


OPS = {"Resize": resize, "Upsample": resize}
