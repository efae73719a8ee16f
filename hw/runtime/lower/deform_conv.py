"""DeformConv (ONNX operator specification, DeformConv-19; Zhu et al., "Deformable ConvNets v2"): every tap is read at its own place between four pixels; the
readings are laid out as an image of kernel-sized cells, which a plain convolution with the kernel's size as stride takes."""

from __future__ import annotations

import numpy as np
import onnx

from hw.runtime.lower.builder import Builder, attribute


def _deform(b: Builder, node: onnx.NodeProto) -> bool:
    n, c, h, w = b.shape(node, node.input[0])
    weight = b.shape(node, node.input[1])
    kh, kw = weight[2:]
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    pads, groups = attribute(node, "pads", [0] * 4), attribute(node, "offset_group", 1)
    _, _, oh, ow = b.shape(node, node.input[2])
    taps, per = kh * kw, c // groups
    # offsets [N, groups * taps * 2, OH, OW], y before x
    offsets = b.reshape(node.input[2], (n, groups, taps, 2, oh, ow))
    ky, kx = np.meshgrid(np.arange(kh) * dilations[0], np.arange(kw) * dilations[1], indexing="ij")
    base_y = ky.reshape(1, 1, taps, 1, 1) + (np.arange(oh) * strides[0] - pads[0]).reshape(1, 1, 1, oh, 1)
    base_x = kx.reshape(1, 1, taps, 1, 1) + (np.arange(ow) * strides[1] - pads[1]).reshape(1, 1, 1, 1, ow)
    full = (n, groups, taps, oh, ow)
    where = [
        b.add("Add", [b.reshape(b.slice(offsets, 3, i, i + 1), full), b.constant(base.astype(np.float32))])
        for i, base in ((0, base_y), (1, base_x))
    ]
    floors = [b.add("Floor", [v]) for v in where]
    parts = [b.add("Sub", [v, f]) for v, f in zip(where, floors, strict=True)]
    one = b.constant(np.float32(1))
    rests = [b.add("Sub", [one, p]) for p in parts]
    rows = b.reshape(
        b.transpose(b.reshape(node.input[0], (n, groups, per, h * w)), [0, 1, 3, 2]), (n * groups * h * w, per)
    )
    first = (np.arange(n * groups) * h * w).reshape(n, groups, 1, 1, 1).astype(np.float32)
    total = ""
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = (b.add("Add", [f, b.constant(np.float32(d))]) for f, d in zip(floors, (dy, dx), strict=True))
            ky_, kx_ = (
                b.add("Clip", [v, b.constant(np.float32(0)), b.constant(np.float32(size - 1))])
                for v, size in ((y, h), (x, w))
            )
            inside = [
                b.add("Cast", [b.add("Equal", [a, k])], to=onnx.TensorProto.FLOAT) for a, k in ((y, ky_), (x, kx_))
            ]
            share = b.add("Mul", [(rests, parts)[dy][0], (rests, parts)[dx][1]])
            share = b.add("Mul", [share, b.add("Mul", inside)])
            place = b.add("Add", [b.add("Mul", [ky_, b.constant(np.float32(w))]), kx_])
            index = b.add(
                "Add", [b.add("Cast", [place], to=onnx.TensorProto.INT64), b.constant(first.astype(np.int64))]
            )
            read = b.add("Gather", [rows, b.reshape(index, (-1,))], axis=0)
            read = b.reshape(read, (*full, per))
            part = b.add("Mul", [read, b.reshape(share, (*full, 1))])
            total = b.add("Add", [total, part]) if total else part
    if len(node.input) > 4 and node.input[4]:
        total = b.add("Mul", [total, b.reshape(node.input[4], (*full, 1))])
    # [N, G, kh, kw, OH, OW, per] -> [N, G, per, OH, kh, OW, kw]
    cells = b.transpose(b.reshape(total, (n, groups, kh, kw, oh, ow, per)), [0, 1, 6, 4, 2, 5, 3])
    image = b.reshape(cells, (n, c, oh * kh, ow * kw))
    bias = [node.input[3]] if len(node.input) > 3 and node.input[3] else []
    b.add(
        "Conv", [image, node.input[1], *bias], node.output[0], strides=[kh, kw], kernel_shape=[kh, kw],
        group=attribute(node, "group", 1),
    )  # fmt: skip
    return True


OPS = {"DeformConv": _deform}
