"""Lookup tables: any function of few bits."""

from __future__ import annotations

import numpy as np

from hw.fpga import ir
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors, memory_bram18, memory_lut
from hw.fpga.netlist import Netlist, Stream


class Table:
    """Table."""

    kinds = ("Table",)

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        op: ir.Table = layer.op  # type: ignore[assignment]
        x, out = layer.ins[0], layer.out
        found = []
        for pe in divisors(out.channels):
            depth = (x.channels // pe if len(op.table) > 1 else 1) << x.bits
            lut = pe * memory_lut(depth, out.bits) + 10
            found.append(
                Fold(
                    pe,
                    pe,
                    cycles=out.pixels * (out.channels // pe),
                    lut=lut,
                    bram18=pe * memory_bram18(depth, out.bits),
                )
            )
        return found

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        op: ir.Table = layer.op  # type: ignore[assignment]
        x, out = layer.ins[0], layer.out
        source = conform(net, inputs[0], fold.pe, x.bits, x.signed)
        folds = x.channels // fold.pe
        by_channel = len(op.table) > 1
        patterns = np.arange(1 << x.bits)
        values = np.where(patterns >= 1 << (x.bits - 1), patterns - (1 << x.bits), patterns) if x.signed else patterns
        inside = np.clip(values - op.start, 0, op.table.shape[1] - 1)
        stem = f"{net.layer}_table"
        for pe in range(fold.pe if by_channel else 1):
            rows = op.table[pe :: fold.pe] if by_channel else op.table
            net.memory(f"{stem}_{pe}.dat", [int(v) for v in rows[:, inside].reshape(-1)], out.bits)
        params: dict[str, int | str] = {
            "PE": fold.pe,
            "CF": folds,
            "IB": x.bits,
            "OB": out.bits,
            "BY_CHANNEL": int(by_channel),
            "CONTENT": stem,
        }
        return net.add(
            "dp_table",
            params,
            [source],
            fold.pe,
            out.bits,
            out.signed,
            out.pixels * folds,
            cycles=fold.cycles,
            tensor=layer.node.output,
        )[0]


BLOCK = Table()
