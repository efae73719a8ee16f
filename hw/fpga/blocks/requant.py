"""From accumulators to activations, and requantized additions: multiply, add, shift, clip; or a table."""

from __future__ import annotations

import numpy as np

from hw.fpga import ir
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors, memory_bram18, memory_lut, pack, signed_bits
from hw.fpga.netlist import Netlist, Stream


def _widths(op: ir.Scale | ir.Add) -> tuple[np.ndarray, int, int]:
    """(multipliers [inputs, C or 1], bits of a multiplier, bits of an offset)."""
    m = np.atleast_2d(op.multiplier if isinstance(op, ir.Scale) else op.multipliers)
    return m, signed_bits(int(m.min()), int(m.max())), signed_bits(int(op.offset.min()), int(op.offset.max()))


def _wide(v: int) -> str:
    """A 64-bit literal: plain Verilog numbers have 32."""
    return f"{'-' if v < 0 else ''}64'sd{abs(v)}"


class Requant:
    """Scale and Add."""

    kinds = ("Add", "Scale")

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        op: ir.Scale | ir.Add = layer.op  # type: ignore[assignment]
        m, mb, bb = _widths(op)
        ib = max(t.bits for t in layer.ins)
        rows = max(m.shape[1], len(op.offset))
        found = []
        for pe in divisors(layer.out.channels):
            folds = layer.out.channels // pe
            shared = rows == 1
            word = 0 if shared else pe * (len(m) * mb + bb)
            dsp = mb * ib > 40
            blocks = (
                -(-(ib + 1) // (target.wide - 1)) * -(-mb // (target.narrow - 1))
                if (ib + 1) >= mb
                else -(-mb // (target.wide - 1)) * -(-(ib + 1) // (target.narrow - 1))
            )
            products = pe * len(m)
            lut = (
                110
                + pe * (bb + 2.0 * layer.out.bits + 10)
                + (0 if dsp else products * 0.8 * ib * mb)
                + memory_lut(folds, word)
            )
            found.append(
                Fold(
                    pe,
                    pe,
                    dsp,
                    layer.out.pixels * folds,
                    lut,
                    products * blocks if dsp else 0,
                    memory_bram18(folds, word),
                )
            )
        return found

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        op: ir.Scale | ir.Add = layer.op  # type: ignore[assignment]
        out = layer.out
        m, mb, bb = _widths(op)
        signed = any(t.signed for t in layer.ins)
        ib = max(t.bits + (signed and not t.signed) for t in layer.ins)
        sources = [conform(net, s, fold.pe, ib, signed) for s in inputs]
        folds = out.channels // fold.pe
        shared = m.shape[1] == 1 and len(op.offset) == 1
        params: dict[str, int | str] = {
            "N_IN": len(sources), "PE": fold.pe, "CF": folds, "IB": ib, "I_SIGNED": int(signed), "M": mb, "B": bb,
            "SHIFT": op.shift, "OB": out.bits, "LOW": _wide(op.low), "HIGH": _wide(op.high), "SHARED": int(shared), "DSP": int(fold.dsp),
        }  # fmt: skip
        width = len(m) * mb + bb
        full = np.concatenate(
            [np.broadcast_to(m, (len(m), out.channels)), np.broadcast_to(op.offset, (1, out.channels))]
        )
        words = [
            pack(full[:-1, c], mb) | pack(full[-1:, c], bb) << (len(m) * mb)
            for c in range(1 if shared else out.channels)
        ]
        if shared:
            params["CONSTANT"] = f"{width}'h{words[0]:x}"
        else:
            joined = [pack(words[f * fold.pe : (f + 1) * fold.pe], width) for f in range(folds)]
            params["CONSTANTS"] = net.memory(f"{net.layer}_constants.mem", joined, fold.pe * width)
        return net.add(
            "dp_scale",
            params,
            sources,
            fold.pe,
            out.bits,
            out.signed,
            out.pixels * folds,
            cycles=out.pixels * folds,
            tensor=layer.node.output,
        )[0]


BLOCK = Requant()
