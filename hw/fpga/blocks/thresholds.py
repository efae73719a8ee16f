"""Thresholds: FINN's pipelined binary search (thresholding.sv of the finn-plus wheel) behind a thin adapter."""

from __future__ import annotations

import numpy as np

from hw.fpga import ir
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors, memory_bram18, memory_lut
from hw.fpga.netlist import Netlist, Stream


def stages(thresholds: np.ndarray) -> list[np.ndarray]:
    """Thresholds [C, N], padded at the end to 2^M - 1, as the levels of a search tree: level s holds [C, 2^s]."""
    depth = int(thresholds.shape[1]).bit_length()
    full = np.concatenate(
        [thresholds, np.repeat(thresholds[:, -1:], (1 << depth) - 1 - thresholds.shape[1], axis=1)], axis=1
    )
    return [full[:, (1 << (depth - 1 - s)) - 1 :: 1 << (depth - s)] for s in range(depth)]


class Thresholds:
    """Thresholds."""

    kinds = ("Thresholds",)

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        op: ir.Thresholds = layer.op  # type: ignore[assignment]
        x, out = layer.ins[0], layer.out
        found = []
        for pe in divisors(out.channels):
            lut, bram = 60.0, 0.0
            for s in range(int(op.thresholds.shape[1]).bit_length()):
                depth = out.channels // pe << s
                lut += pe * (memory_lut(depth, x.bits) + 2.2 * x.bits)
                bram += pe * memory_bram18(depth, x.bits)
            found.append(Fold(pe, pe, cycles=out.pixels * (out.channels // pe), lut=lut, bram18=bram))
        return found

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        op: ir.Thresholds = layer.op  # type: ignore[assignment]
        x, out = layer.ins[0], layer.out
        low, high = min(x.low, int(op.thresholds.min())), max(x.high, int(op.thresholds.max()))
        bits, signed = ir.bits_for(low, high)
        source = conform(net, inputs[0], fold.pe, bits, signed)
        folds = out.channels // fold.pe
        rows = np.broadcast_to(op.thresholds, (out.channels, op.thresholds.shape[1]))
        stem = f"{net.layer}_"
        for s, level in enumerate(stages(rows)):
            for pe in range(fold.pe):
                net.memory(f"{stem}threshs_{pe}_{s}.dat", [int(v) for v in level[pe :: fold.pe].reshape(-1)], bits)
        params: dict[str, int | str] = {
            "K": bits, "N": op.thresholds.shape[1], "C": out.channels, "PE": fold.pe, "SIGNED": int(signed), "BIAS": op.low, "OB": out.bits, "PATH": stem,
        }  # fmt: skip
        return net.add(
            "dp_thresholds",
            params,
            [source],
            fold.pe,
            out.bits,
            out.signed,
            out.pixels * folds,
            cycles=fold.cycles,
            tensor=layer.node.output,
        )[0]


BLOCK = Thresholds()
