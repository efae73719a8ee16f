"""Blocks that only move values: concatenation, gathering, upsampling, flattening."""

from __future__ import annotations

from math import gcd

from hw.fpga import ir
from hw.fpga.blocks import window as windows
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors
from hw.fpga.netlist import Netlist, Stream


class Layout:
    """Concat, Flatten, Gather, Upsample."""

    kinds = ("Concat", "Flatten", "Gather", "Upsample")

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        x, out, op = layer.ins[0], layer.out, layer.op
        if isinstance(op, ir.Gather):
            # a beat is a whole pixel; converters around it move `simd` channels in and `pe` out per cycle
            return [
                Fold(
                    out.channels // f,
                    x.channels // g,
                    cycles=x.pixels * max(f, g),
                    lut=1.5 * x.bits * (x.channels + out.channels),
                )
                for f in divisors(out.channels)
                for g in divisors(x.channels)
                if f == 1 or g == min((d for d in divisors(x.channels) if d >= f), default=x.channels)
            ]
        if isinstance(op, ir.Upsample):
            return [
                Fold(pe, pe, cycles=out.pixels * (x.channels // pe), lut=windows.cost(_up_window(x), x.shape, pe * x.bits, x.channels // pe)[0],
                     bram18=windows.cost(_up_window(x), x.shape, pe * x.bits, x.channels // pe)[1])
                for pe in divisors(x.channels)
            ]  # fmt: skip
        common = gcd(*(t.channels for t in layer.ins)) if isinstance(op, ir.Concat) else x.channels
        return [
            Fold(pe, pe, cycles=out.pixels * (out.channels // pe), lut=10 + pe * out.bits) for pe in divisors(common)
        ]

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        x, out, op = layer.ins[0], layer.out, layer.op
        name = layer.node.output
        if isinstance(op, ir.Flatten):
            s = inputs[0]
            return Stream(s.name, s.par, s.bits, s.signed, s.beats, name)
        if isinstance(op, ir.Gather):
            source = net.convert(conform(net, inputs[0], fold.simd, x.bits, x.signed), x.channels)
            index = sum(i << (16 * k) for k, i in enumerate(op.index))
            params: dict[str, int | str] = {
                "WIDTH": x.bits,
                "N_IN": x.channels,
                "N_OUT": out.channels,
                "INDEX": f"{16 * out.channels}'h{index:x}",
            }
            whole = net.add(
                "dp_gather",
                params,
                [source],
                out.channels,
                out.bits,
                out.signed,
                out.pixels,
                cycles=out.pixels,
                tensor=name,
            )[0]
            return net.convert(whole, fold.pe)
        if isinstance(op, ir.Upsample):
            source = conform(net, inputs[0], fold.pe, x.bits, x.signed)
            return windows.build(net, source, x.shape, _up_window(x), up=op.factor)
        sources = [conform(net, s, fold.pe, out.bits, out.signed) for s in inputs]
        joined, channels = sources[0], layer.ins[0].channels
        for source, tensor in zip(sources[1:], layer.ins[1:], strict=True):
            params = {"WIDTH": fold.pe * out.bits, "BEATS0": channels // fold.pe, "BEATS1": tensor.channels // fold.pe}
            channels += tensor.channels
            beats = out.pixels * channels // fold.pe
            joined = net.add(
                "dp_concat", params, [joined, source], fold.pe, out.bits, out.signed, beats, cycles=beats, tensor=name
            )[0]
        return joined


def _up_window(x: ir.Tensor) -> ir.Window:
    return ir.Window()


BLOCK = Layout()
