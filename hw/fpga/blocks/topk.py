"""Label select: which channels are the largest."""

from __future__ import annotations

from hw.fpga import ir
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors
from hw.fpga.netlist import Netlist, Stream

MOST_PE = 8  # channels inserted in one clock, one behind the other: the path grows with them


class TopK:
    """TopK."""

    kinds = ("TopK",)

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        x, k = layer.ins[0], layer.out.channels
        return [
            Fold(pe, pe, cycles=x.pixels * (x.channels // pe), lut=20 + pe * k * (1.5 * x.bits + layer.out.bits))
            for pe in divisors(x.channels, MOST_PE)
        ]

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        x, out = layer.ins[0], layer.out
        assert isinstance(layer.op, ir.TopK)
        params: dict[str, int | str] = {
            "PE": fold.pe, "CF": x.channels // fold.pe, "K": layer.op.k, "IB": x.bits, "SIGNED": int(x.signed), "OB": out.bits,
        }  # fmt: skip
        source = conform(net, inputs[0], fold.pe, x.bits, x.signed)
        return net.add(
            "dp_topk",
            params,
            [source],
            layer.op.k,
            out.bits,
            False,
            out.pixels,
            cycles=fold.cycles,
            tensor=layer.node.output,
        )[0]


BLOCK = TopK()
