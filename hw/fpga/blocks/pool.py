"""Pooling: windows and their maximum or sum, or the same over a whole image; zero padding on its own."""

from __future__ import annotations

from hw.fpga import ir
from hw.fpga.blocks import window as windows
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors, memory_bram18, memory_lut
from hw.fpga.netlist import Netlist, Stream


class Pool:
    """Pool and GlobalPool."""

    kinds = ("GlobalPool", "Pool")

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        x, out, op = layer.ins[0], layer.out, layer.op
        found = []
        for pe in divisors(x.channels):
            folds = x.channels // pe
            if isinstance(op, ir.Pool):
                lut, bram = windows.cost(op.window, x.shape, pe * x.bits, folds)
                cycles = max(out.pixels * op.window.size * folds, x.pixels * folds)
            else:
                lut, bram, cycles = (
                    memory_lut(folds, pe * out.bits),
                    memory_bram18(folds, pe * out.bits),
                    x.pixels * folds,
                )
            found.append(Fold(pe, pe, cycles=cycles, lut=lut + 20 + 2.5 * pe * out.bits, bram18=bram))
        return found

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        x, out, op = layer.ins[0], layer.out, layer.op
        source = conform(net, inputs[0], fold.pe, x.bits, x.signed)
        total = getattr(op, "kind", "") == "sum"
        beats = out.pixels * (out.channels // fold.pe)
        if isinstance(op, ir.GlobalPool):
            params: dict[str, int | str] = {
                "PE": fold.pe, "CF": x.channels // fold.pe, "PIXELS": x.pixels, "IB": x.bits, "OB": out.bits, "SIGNED": int(x.signed), "SUM": int(total),
            }  # fmt: skip
            return net.add(
                "dp_global_pool",
                params,
                [source],
                fold.pe,
                out.bits,
                out.signed,
                beats,
                cycles=fold.cycles,
                tensor=layer.node.output,
            )[0]
        assert isinstance(op, ir.Pool)
        least = -(1 << (x.bits - 1)) if x.signed else 0
        stream = windows.build(net, source, x.shape, op.window, channel_outer=True, padding=0 if total else least)
        if op.window.size == 1:
            return net.cast(stream, out.bits, out.signed)
        params = {
            "PE": fold.pe,
            "SIZE": op.window.size,
            "IB": x.bits,
            "OB": out.bits,
            "SIGNED": int(x.signed),
            "SUM": int(total),
        }
        return net.add(
            "dp_pool",
            params,
            [stream],
            fold.pe,
            out.bits,
            out.signed,
            beats,
            cycles=fold.cycles,
            tensor=layer.node.output,
        )[0]


BLOCK = Pool()
