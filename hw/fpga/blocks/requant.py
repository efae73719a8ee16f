"""From accumulators to activations, and requantized additions: multiply, add, shift, clip; or a table."""

from __future__ import annotations

import numpy as np

from hw.fpga import ir
from hw.fpga.blocks.base import Fold, Layer, Target, conform, divisors, pack, places, rom, signed_bits
from hw.fpga.netlist import Netlist, Stream

MOST_DIGIT = 4  # bits of a multiplier that the serial unit takes a cycle


def _widths(op: ir.Scale | ir.Add) -> tuple[np.ndarray, int, int]:
    """(multipliers [inputs, C or 1], bits of a multiplier, bits of an offset)."""
    m = np.atleast_2d(op.multiplier if isinstance(op, ir.Scale) else op.multipliers)
    return m, signed_bits(int(m.min()), int(m.max())), signed_bits(int(op.offset.min()), int(op.offset.max()))


def _wide(v: int) -> str:
    """A 64-bit literal: plain Verilog numbers have 32."""
    return f"{'-' if v < 0 else ''}64'sd{abs(v)}"


def _blocks(xb: int, mb: int, target: Target) -> int:
    """Multiplier blocks of one product of signed numbers."""
    long, short = max(xb, mb), min(xb, mb)
    if long <= target.wide and short <= target.narrow:
        return 1
    return -(-long // (target.wide - 1)) * -(-short // (target.narrow - 1))


def _serial_sizes(op: ir.Scale) -> tuple[int, int]:
    """(bits of a multiplier, of an offset) in the serial unit, whose multipliers have no sign."""
    return max(1, int(op.multiplier.max()).bit_length()), signed_bits(int(op.offset.min()), int(op.offset.max()))


def _serial_folds(op: ir.Scale, layer: Layer, target: Target) -> list[Fold]:
    """Some bits of the multiplier (`simd`) a cycle: for streams slow enough, no multiplier at all."""
    m, b = _serial_sizes(op)
    if op.multiplier.min() < 0:
        return []
    found, rows = [], max(len(op.multiplier), len(op.offset))
    for digit in range(1, MOST_DIGIT + 1):
        steps = -(-m // digit)
        if steps * digit > op.shift:
            continue
        total = max(b, layer.ins[0].bits + 1 + digit) + 1
        lut = 75 + m + (1 + digit) * total + layer.out.bits
        cycles = layer.out.size * max(1 if rows == 1 else 2, steps)
        for kept, tables, memory in [("", 0.0, 0.0)] if rows == 1 else places(2 * rows, max(m, b), target):
            found.append(Fold(1, digit, False, cycles, lut + tables, 0, memory, "serial", kept))
    return found


def _build_serial(net: Netlist, layer: Layer, op: ir.Scale, fold: Fold, stream: Stream) -> Stream:
    x, out = layer.ins[0], layer.out
    m, b = _serial_sizes(op)
    rows = max(len(op.multiplier), len(op.offset))
    pairs = np.stack([np.broadcast_to(op.multiplier, (rows,)), np.broadcast_to(op.offset, (rows,))], 1)
    params: dict[str, int | str] = {
        "CF": out.channels, "IB": x.bits, "I_SIGNED": int(x.signed), "M": m, "B": b, "SHIFT": op.shift, "D": fold.simd,
        "OB": out.bits, "LOW": _wide(op.low), "HIGH": _wide(op.high), "SHARED": int(rows == 1),
    }  # fmt: skip
    if rows == 1:
        params["CONSTANT"] = f"{m + b}'h{pack(pairs[0, :1], m) | pack(pairs[0, 1:], b) << m:x}"
    else:
        width = max(m, b)
        params |= rom(net, f"{net.layer}_constants.mem", [pack([v], width) for v in pairs.reshape(-1)], width, fold.rom)
    source = conform(net, stream, 1, x.bits, x.signed)
    steps = max(1 if rows == 1 else 2, -(-m // fold.simd))
    return net.add(
        "dp_scale_serial",
        params,
        [source],
        1,
        out.bits,
        out.signed,
        out.size,
        cycles=out.size * steps,
        tensor=layer.node.output,
    )[0]


class Requant:
    """Scale and Add."""

    kinds = ("Add", "Scale")

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        op: ir.Scale | ir.Add = layer.op  # type: ignore[assignment]
        m, mb, bb = _widths(op)
        ib = max(t.bits for t in layer.ins)
        rows = max(m.shape[1], len(op.offset))
        found = _serial_folds(op, layer, target) if isinstance(op, ir.Scale) else []
        for pe in divisors(layer.out.channels):
            folds = layer.out.channels // pe
            word = pe * (len(m) * mb + bb)
            dsp = mb * ib > 40
            products = pe * len(m)
            lut = 60 + pe * (bb + layer.out.bits) + (0 if dsp else products * 0.8 * ib * mb)
            dsps = products * _blocks(ib + (not layer.ins[0].signed), mb, target) if dsp else 0
            for kept, tables, memory in [("", 0.0, 0.0)] if rows == 1 else places(folds, word, target):
                found.append(Fold(pe, pe, dsp, layer.out.pixels * folds, lut + tables, dsps, memory, rom=kept))
        return found

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        op: ir.Scale | ir.Add = layer.op  # type: ignore[assignment]
        if fold.form == "serial" and isinstance(op, ir.Scale):
            return _build_serial(net, layer, op, fold, inputs[0])
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
            params |= rom(net, f"{net.layer}_constants.mem", joined, fold.pe * width, fold.rom)
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
