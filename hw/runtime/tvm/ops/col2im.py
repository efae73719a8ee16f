"""Col2Im: every pixel adds the values of the patches that lie over it (at most one per tap)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hw.runtime.tvm.value import Value

if TYPE_CHECKING:
    from hw.runtime.tvm.graph import Graph, Node


def col2im(g: Graph, node: Node) -> Value | None:
    from tvm import te, tirx

    image, block = node.array(1), node.array(2)
    if image is None or block is None or len(image) != 2:
        return None
    height, width = (int(v) for v in image)
    kh, kw = (int(v) for v in block)
    strides, dilations = list(node.get("strides", [1, 1])), list(node.get("dilations", [1, 1]))
    pads = list(node.get("pads", [0] * 4))
    x = g.plain(node[0])
    n, rows, _ = x.shape
    channels = rows // (kh * kw)
    down = (height + pads[0] + pads[2] - dilations[0] * (kh - 1) - 1) // strides[0] + 1
    along = (width + pads[1] + pads[3] - dilations[1] * (kw - 1) - 1) // strides[1] + 1

    def build(v: Any) -> Any:
        def one(b: Any, c: Any, y: Any, z: Any) -> Any:
            total = tirx.const(0, "float32")
            for i in range(kh):
                for j in range(kw):
                    top, left = y + (pads[0] - i * dilations[0]), z + (pads[1] - j * dilations[1])
                    inside = te.all(
                        top >= 0, left >= 0, te.indexmod(top, strides[0]) == 0, te.indexmod(left, strides[1]) == 0,
                        top < down * strides[0], left < along * strides[1],
                    )  # fmt: skip
                    place = te.indexdiv(top, strides[0]) * along + te.indexdiv(left, strides[1])
                    total = total + te.if_then_else(
                        inside, v[b, (c * kh + i) * kw + j, place], tirx.const(0, "float32")
                    )
            return total

        return te.compute((n, channels, height, width), one, "col2im")

    return g.kernel(build, [x.data], (n, channels, height, width), range(4), "col2im", pattern=8)


OPS = {"Col2Im": col2im}
