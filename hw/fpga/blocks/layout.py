"""Blocks that only move values: concatenation, gathering, upsampling, flattening."""

from __future__ import annotations

from math import gcd

from hw.fpga import ir
from hw.fpga.blocks import window as windows
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors, memory_bram18, memory_lut
from hw.fpga.netlist import Netlist, Stream


class Layout:
    """Concat, Flatten, Gather, Upsample."""

    kinds = ("Concat", "Flatten", "Gather", "Upsample")

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        x, out, op = layer.ins[0], layer.out, layer.op
        if isinstance(op, ir.Gather):
            # whole pixels are wires (and converters around them); else a memory of two pixels takes `simd` channels in and `pe` out per cycle
            found = [Fold(out.channels, x.channels, cycles=x.pixels, lut=1.5 * x.bits * (x.channels + out.channels))]
            for pe in divisors(out.channels, 16):
                for simd in divisors(x.channels, 16):
                    sizes = 2 * x.channels // simd, simd * x.bits
                    lut = 45 + pe * (1.3 * memory_lut(*sizes) + simd * x.bits / 4 + out.channels / pe / 8)
                    cycles = x.pixels * max(out.channels // pe, x.channels // simd)
                    found.append(Fold(pe, simd, cycles=cycles, lut=lut, bram18=pe * memory_bram18(*sizes)))
            return found
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
            source = conform(net, inputs[0], fold.simd, x.bits, x.signed)
            index = sum(i << (16 * k) for k, i in enumerate(op.index))
            params: dict[str, int | str] = {
                "WIDTH": x.bits,
                "N_IN": x.channels,
                "N_OUT": out.channels,
                "INDEX": f"{16 * out.channels}'h{index:x}",
            }
            wires = (fold.pe, fold.simd) == (out.channels, x.channels)
            if not wires:
                params |= {"IN_PAR": fold.simd, "OUT_PAR": fold.pe}
            module, beats = "dp_gather" if wires else "dp_pixel_gather", out.size // fold.pe
            return net.add(
                module, params, [source], fold.pe, out.bits, out.signed, beats, cycles=fold.cycles, tensor=name
            )[0]
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
