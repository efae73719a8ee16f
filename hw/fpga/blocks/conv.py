"""Convolutions and linear layers: window, then matrix-vector or (depthwise) vector-vector unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hw.fpga import ir
from hw.fpga.blocks import window as windows
from hw.fpga.blocks.base import (
    Fold,
    Layer,
    Target,
    conform,
    divisors,
    memory_bram18,
    memory_lut,
    nearby,
    pack_rows,
    padded,
    places,
    rom,
    signed_bits,
)
from hw.fpga.netlist import Netlist, Stream

UNIT_LUT = 70  # of a matrix-vector or vector-vector unit beside products and accumulators
LEAST_STREAM_BITS = 16_384  # of weights that are worth a stream from memory
MOST_STREAM_WORD = 512  # bits
MOST_STREAM_SHARE = (
    4  # part of the port for one channel: its bursts in hand then last longer than memory takes to answer
)
STREAM_LUT = 180  # of a channel of the block that reads memory (dp_reader)
MOST_WIDTH = 4096  # bits of a weight word, beyond which memories and routing stop making sense


def weight_bits(weight: np.ndarray) -> int:
    return max(2, signed_bits(int(weight.min()), int(weight.max())))


def packing(wb: int, ab: int, simd: int, target: Target) -> tuple[int, int] | None:
    """(K, group): how far two packed weights stand apart, and how many packed products may be added before they are taken
    apart. None where two products do not fit one multiplier. The inputs are ab + 1 bits with their sign."""
    k = target.wide - wb
    product = wb + ab  # bits of one signed product
    if ab + 1 > target.narrow or k < product:
        return None
    return k, min(simd, 1 << (k - product))


def _acc_bits(layer: Layer) -> int:
    return signed_bits(layer.out.low, layer.out.high)


class Conv:
    """Conv, dense or depthwise."""

    kinds = ("Conv",)

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        op: ir.Conv = layer.op  # type: ignore[assignment]
        x, out = layer.ins[0], layer.out
        wb, found = weight_bits(op.weight), []
        window_lut = {}
        if op.depthwise:
            return _deform_folds(op, x, out, target) if op.bound else _depthwise_folds(op, x, out, target)
        for simd in nearby(x.channels, MOST_WIDTH // x.bits):
            channels = padded(x.channels, simd)
            sizes = x.shape, simd * x.bits, channels // simd
            window_lut[simd] = windows.deform_cost(op, *sizes, 1) if op.bound else windows.cost(op.window, *sizes)
            for pe in nearby(out.channels, MOST_WIDTH // (wb * simd)):
                sf, nf = op.window.size * channels // simd, -(-out.channels // pe)
                cycles = max(out.pixels * sf * nf, x.pixels * channels // simd)
                cycles += windows.deform_stall(op, x.shape) * (channels // simd) if op.bound else 0
                extra = 0.0
                if channels != x.channels:
                    cycles, extra = max(cycles, x.pixels * channels), 25 + simd * x.bits * 0.6
                if nf * pe != out.channels:
                    cycles, extra = max(cycles, out.pixels * nf * pe), extra + 25 + pe * out.bits
                packed = packing(wb, x.bits, simd, target) if pe % 2 == 0 else None
                for dsp in (False, True) if packed or _fills_dsp(wb, x.bits, target) else (False,):
                    lut, bram = window_lut[simd]
                    lut += UNIT_LUT + pe * _acc_bits(layer) * 1.2 + extra
                    dsps = (pe * simd // 2 if packed else pe * simd) if dsp else 0
                    lut += (
                        _sum_lut(pe, simd, wb, x.bits, packed, target) if dsp else pe * simd * _product_lut(wb, x.bits)
                    )
                    for kept, tables, memory in places(sf * nf, pe * simd * wb, target):
                        found.append(Fold(pe, simd, dsp, cycles, lut + tables, dsps, bram + memory, rom=kept))
                    if target.memory and windows.is_pointwise(op.window) and not op.bound:
                        plain = Fold(pe, simd, dsp, cycles, lut - window_lut[simd][0], dsps)
                        found += _stream_folds(layer, plain, wb, sf, nf, target)
        return found

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        op: ir.Conv = layer.op  # type: ignore[assignment]
        x = layer.ins[0]
        if op.depthwise:
            return self._depthwise(net, layer, op, fold, inputs)
        channels, made = padded(x.channels, fold.simd), padded(layer.out.channels, fold.pe)
        source = inputs[0]
        if channels != x.channels:
            source = net.resize(source, "dp_pad", x.channels, channels)
        if fold.form == "stream":  # the FIFO holds a block of pixels in the beats in which they are loaded
            source = net.buffer(net.cast(net.convert(source, fold.simd), x.bits, x.signed))
        else:
            source = conform(net, source, fold.simd, x.bits, x.signed)
        nf, sf = made // fold.pe, op.window.size * channels // fold.simd
        shape = (*x.shape[:2], channels)
        if op.bound:
            stream = windows.build_deform(net, source, _distance(net, inputs[1], op), shape, op, 1, nf)
        elif fold.form == "stream":
            stream = source
        else:
            stream = windows.build(net, source, shape, op.window, repeat=nf)
        wb = weight_bits(op.weight)
        found = packing(wb, x.bits, fold.simd, target) if fold.dsp and fold.pe % 2 == 0 else None
        # [nf, pe, sf, simd]
        full = np.zeros((made, *op.weight.shape[1:3], channels), op.weight.dtype)
        full[: len(op.weight), ..., : x.channels] = op.weight
        weight = full.reshape(nf, fold.pe, sf, fold.simd)
        if found:
            shifted = weight.copy()
            shifted[:, 1::2] -= weight[:, 0::2] < 0
            if weight_bits(shifted) > wb:  # the full range, -8 at 4 bits: one bit more
                wb = weight_bits(shifted)
                found = packing(wb, x.bits, fold.simd, target)
            weight = shifted if found else weight
        words = weight.transpose(0, 2, 1, 3).reshape(nf * sf, fold.pe * fold.simd)
        params: dict[str, int | str] = {
            "PE": fold.pe, "SIMD": fold.simd, "SF": sf, "NF": nf, "WB": wb, "AB": x.bits, "A_SIGNED": int(x.signed),
            "ACC": layer.out.bits, "PACK": int(found is not None), "K": found[0] if found else 1,
            "GROUP": found[1] if found else 1, "DSP": int(fold.dsp),
        }  # fmt: skip
        out, exact = layer.out, made == layer.out.channels
        name, cycles = layer.node.output if exact else "", layer.out.pixels * sf * nf
        width, module, streams = fold.pe * fold.simd * wb, "dp_mvu", [stream]
        if fold.form == "stream":
            blocks = out.pixels // fold.pixels
            module, params = "dp_mvu_stream", {**params, "PIXELS": fold.pixels}
            streams.append(net.store(f"{net.layer}_weights", pack_rows(words, wb), width, blocks, fold.stream))
            cycles = _stream_cycles(out.pixels, fold.pixels, sf, nf, fold.pe)
        else:
            params |= rom(net, f"{net.layer}_weights.mem", pack_rows(words, wb), width, fold.rom)
        product = net.add(
            module, params, streams, fold.pe, out.bits, out.signed, out.pixels * nf, cycles=cycles, tensor=name
        )[0]
        if exact:
            return product
        return replace(net.resize(product, "dp_trim", made, out.channels), tensor=layer.node.output)

    def _depthwise(self, net: Netlist, layer: Layer, op: ir.Conv, fold: Fold, inputs: list[Stream]) -> Stream:
        x, out = layer.ins[0], layer.out
        source = conform(net, inputs[0], fold.pe, x.bits, x.signed)
        taps = fold.simd
        cf, sf = x.channels // fold.pe, op.window.size // taps
        if op.bound:
            stream = windows.build_deform(net, source, _distance(net, inputs[1], op), x.shape, op, taps)
        elif fold.form != "lines":
            stream = windows.build(net, source, x.shape, op.window, channel_outer=True)
        else:
            stream = net.convert(windows.build_parallel(net, source, x.shape, op.window), taps * fold.pe)
        wb = weight_bits(op.weight)
        words = op.weight[..., 0].reshape(cf, fold.pe, sf * taps).transpose(0, 2, 1).reshape(cf * sf, taps * fold.pe)
        params: dict[str, int | str] = {
            "PE": fold.pe, "TAPS": taps, "SF": sf, "CF": cf, "WB": wb, "AB": x.bits, "ACC": out.bits,
            "A_SIGNED": int(x.signed), "DSP": int(fold.dsp),
            **rom(net, f"{net.layer}_weights.mem", pack_rows(words, wb), taps * fold.pe * wb, fold.rom),
        }  # fmt: skip
        return net.add(
            "dp_vvu",
            params,
            [stream],
            fold.pe,
            out.bits,
            out.signed,
            out.pixels * cf,
            cycles=out.pixels * cf * sf,
            tensor=layer.node.output,
        )[0]


def _stream_cycles(pixels: int, block: int, sf: int, nf: int, pe: int) -> int:
    """Cycles a frame of dp_mvu_stream: a block is computed, then sent while the next one is loaded. What reads it may take one
    element a cycle."""
    return pixels // block * (block * sf * nf + block * max(sf, nf * pe) + 8)


def _stream_folds(layer: Layer, plain: Fold, wb: int, sf: int, nf: int, target: Target) -> list[Fold]:
    """The same products with weights from memory off the chip. plain: without a window and without weights."""
    found, out, x = [], layer.out, layer.ins[0]
    if plain.dsp and plain.pe % 2 == 0 and int(layer.op.weight.min()) == -(1 << (wb - 1)):  # type: ignore[union-attr]
        wb += 1  # two packed weights may need a bit more, see build
    word = plain.pe * plain.simd * wb
    if sf * nf * word < LEAST_STREAM_BITS or word > MOST_STREAM_WORD:
        return []
    for block in (b for b in (4, 8, 16, 32, 64) if out.pixels % b == 0):
        rate = max(8, 1 << (word - 1).bit_length()) / block
        if rate > target.memory / MOST_STREAM_SHARE:
            continue
        bram, lut = 0.0, plain.lut + 40 + STREAM_LUT
        for sizes in ((block * sf, plain.simd * x.bits), (block * nf, plain.pe * signed_bits(out.low, out.high))):
            # as much again in FIFOs: the next block comes, and the last one goes, while this one is computed
            bram, lut = bram + 2 * memory_bram18(*sizes), lut + 2 * memory_lut(*sizes)
        cycles = max(plain.cycles, _stream_cycles(out.pixels, block, sf, nf, plain.pe))
        found.append(replace(plain, cycles=cycles, lut=lut, bram18=bram, form="stream", pixels=block, stream=rate))
    return found


def _distance(net: Netlist, stream: Stream, op: ir.Conv) -> Stream:
    """The distances of a deformable convolution, one per pixel."""
    return net.cast(net.convert(stream, 1), ir.bits_for(0, op.bound)[0], False)


def _deform_folds(op: ir.Conv, x: ir.Tensor, out: ir.Tensor, target: Target) -> list[Fold]:
    """One tap of `pe` channels per beat, a row of taps, or all of them, from as many copies of the buffer."""
    wb, found = weight_bits(op.weight), []
    acc = signed_bits(out.low, out.high)
    for pe in divisors(x.channels, MOST_WIDTH // max(wb, x.bits)):
        cf = x.channels // pe
        for taps in (n for n in (1, op.window.kernel[0], op.window.size) if n * pe * max(wb, x.bits) <= MOST_WIDTH):
            cycles = (max(out.pixels * op.window.size // taps, x.pixels) + windows.deform_stall(op, x.shape)) * cf
            lut, bram = windows.deform_cost(op, x.shape, pe * x.bits, cf, taps)
            weights = cf * op.window.size // taps, taps * pe * wb
            lut += UNIT_LUT + pe * 1.2 * acc
            for dsp in (False, True) if _fills_dsp(wb, x.bits, target) else (False,):
                products = 0 if dsp else taps * pe * _product_lut(wb, x.bits)
                for kept, tables, memory in places(*weights, target):
                    found.append(
                        Fold(
                            pe,
                            taps,
                            dsp,
                            cycles,
                            lut + products + tables,
                            taps * pe if dsp else 0,
                            bram + memory,
                            rom=kept,
                        )
                    )
    return found


def _depthwise_folds(op: ir.Conv, x: ir.Tensor, out: ir.Tensor, target: Target) -> list[Fold]:
    """One window element of `pe` channels per beat, or (parallel window) several elements, in order of the kernel."""
    wb, found = weight_bits(op.weight), []
    frame = windows.scan(op.window, x.shape)
    acc = signed_bits(out.low, out.high)
    for pe in divisors(x.channels, MOST_WIDTH // max(wb, x.bits)):
        cf = x.channels // pe
        for taps in divisors(op.window.size, MOST_WIDTH // (max(wb, x.bits) * pe)):
            forms = [] if frame is None else ["lines"]
            if taps == 1:
                forms.append("")
            for form in forms:
                cycles = out.pixels * op.window.size // taps * cf
                if form == "lines":
                    lut, bram = windows.parallel_cost(op.window, x.shape, pe * x.bits, cf)
                    lut += 0 if taps == op.window.size else op.window.size * pe * x.bits / 2
                    # the window stands still while its elements go out in parts, and only then
                    cycles += ((frame or 0) - out.pixels) * cf
                else:
                    lut, bram = windows.cost(op.window, x.shape, pe * x.bits, cf)
                    cycles = max(cycles, x.pixels * cf)
                weights = cf * op.window.size // taps, taps * pe * wb
                lut += UNIT_LUT + pe * 1.2 * acc
                products = taps * pe
                # products and their sum; weights that never change are wired in
                share = 1.0 if taps == 1 else 0.35 if weights[0] == 1 else 0.7
                logic = lut + products * share * _product_lut(wb, x.bits)
                for kept, tables, memory in places(*weights, target):
                    found.append(Fold(pe, taps, False, cycles, logic + tables, 0, bram + memory, form, kept))
                    if _fills_dsp(wb, x.bits, target):
                        blocks = lut + pe * (taps - 1) * (wb + x.bits) + tables
                        found.append(Fold(pe, taps, True, cycles, blocks, products, bram + memory, form, kept))
    return found


def _fills_dsp(wb: int, ab: int, target: Target) -> bool:
    """Whether Yosys puts a lone product into a multiplier block: on AMD's parts not one of under nine bits."""
    return target.wide == 18 or wb + ab >= 9


def _product_lut(wb: int, ab: int) -> float:
    """Six-input LUTs of one product and its share of the adder tree, in logic (fitted to what Yosys counts)."""
    return 1.75 * wb * ab + wb + ab


def _sum_lut(pe: int, simd: int, wb: int, ab: int, packed: tuple[int, int] | None, target: Target) -> float:
    """LUTs that multiplier blocks leave: taking packed sums apart, and on parts where Yosys does not chain them, adding them."""
    total = wb + ab + simd.bit_length()
    dsps = pe * simd / (2 if packed else 1)
    left = 0.0 if target.wide == 25 else 46 * dsps
    return left + (pe * -(-simd // packed[1]) * 2.2 * total if packed else pe * 1.1 * total)


BLOCK = Conv()
