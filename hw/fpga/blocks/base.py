"""What a block is, and helpers that blocks share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hw.fpga import ir
from hw.fpga.netlist import Netlist, Stream, memory_bram18

MOST_PLANES = 1 << 16  # bits of one literal in Verilog
MOST_TABLE_BITS = 1 << 14  # of a ROM in tables where block RAM is the alternative


@dataclass(frozen=True)
class Fold:
    """How much of a layer is computed at once. pe: output channels per beat; simd: input channels per beat
    (depthwise: window elements of each channel per beat); where they do not divide the channels, zeros fill up the last beat.
    dsp: products in multiplier blocks, not logic. A frame takes `cycles`. form: which of several ways to build it, '' the usual
    one. pixels: how many in a row share a weight that comes from memory off the chip (form "stream"). rom: where its constants stand (see `places`). stream: bits a cycle that it reads from memory off the chip."""

    pe: int = 1
    simd: int = 1
    dsp: bool = False
    cycles: int = 0
    lut: float = 0
    dsps: int = 0
    bram18: float = 0
    form: str = ""
    rom: str = ""
    pixels: int = 1
    stream: float = 0


@dataclass(frozen=True)
class Layer:
    """A node with the tensors around it."""

    node: ir.Node
    ins: tuple[ir.Tensor, ...]
    out: ir.Tensor

    @property
    def op(self) -> ir.Op:
        return self.node.op


@dataclass(frozen=True)
class Target:
    """What a block needs to know of the part: the two factors of a multiplier block, in bits (signed); bits of the port to
    memory off the chip, 0 where weights may not come from there."""

    wide: int = 25
    narrow: int = 18
    memory: int = 0

    @property
    def lut6(self) -> bool:
        """Whether its tables have six inputs (AMD) and so hold 64 bits of a ROM."""
        return self.wide != 18


class Block(Protocol):
    """Builds some kinds of operators."""

    kinds: tuple[str, ...]

    def folds(self, layer: Layer, target: Target) -> list[Fold]:
        """Every way to build the layer, with cycles per frame and estimated cost."""
        ...

    def build(self, net: Netlist, layer: Layer, fold: Fold, inputs: list[Stream], target: Target) -> Stream:
        """Append instances to the netlist; returns the stream of the result."""
        ...


def divisors(n: int, most: int = 1 << 30) -> list[int]:
    return [d for d in range(1, min(n, most) + 1) if n % d == 0]


def nearby(n: int, most: int = 1 << 30) -> list[int]:
    """Numbers of parallel elements up to `most` for n channels: its divisors, and what wastes at most a tenth in the last beat."""
    return [d for d in range(1, min(n, most) + 1) if n % d == 0 or (d <= 32 and -(-n // d) * d <= 1.1 * n)]


def padded(n: int, par: int) -> int:
    """n channels rounded up to whole beats."""
    return -(-n // par) * par


def pack(values: Iterable[int], bits: int) -> int:
    """Elements into one word, the first in the low bits."""
    word, mask = 0, (1 << bits) - 1
    for i, v in enumerate(values):
        word |= (int(v) & mask) << (i * bits)
    return word


def pack_rows(rows: np.ndarray, bits: int) -> list[int]:
    """[words, elements] -> words."""
    return [pack(row, bits) for row in rows.tolist()]


def signed_bits(low: int, high: int) -> int:
    """Bits of a two's complement number that holds low..high."""
    return ir.bits_for(min(low, -1), high)[0]


def memory_lut(depth: int, width: int) -> float:
    """Logic cells of a memory that is not in block RAM (six-input LUTs, 64 bits of ROM or RAM each)."""
    return 0 if memory_bram18(depth, width) else -(-depth // 64) * width


def places(depth: int, width: int, target: Target) -> list[tuple[str, float, float]]:
    """(rom, LUT, BRAM18) of every sensible place of a ROM: block RAM, tables instantiated one by one, or as the tool likes."""
    groups = -(-depth // 64)
    tables = width * (groups if groups <= 4 else 1.15 * groups)
    blocks = memory_bram18(depth, width)
    if not blocks:
        listed = target.lut6 and depth >= 16 and 64 * groups * width <= MOST_PLANES
        return [("lut", tables, 0) if listed else ("auto", memory_lut(depth, width), 0)]
    small = target.lut6 and depth * width <= MOST_TABLE_BITS
    return [("block", 0, blocks), *([("lut", tables, 0)] if small else [])]


def rom(net: Netlist, name: str, words: list[int], width: int, style: str) -> dict[str, int | str]:
    """Parameters FILE, STYLE and PLANES of a module that holds `words` in a dp_rom; '' is where block RAM or logic is reckoned with."""
    style = style or ("block" if memory_bram18(len(words), width) else "auto")
    params: dict[str, int | str] = {"FILE": net.memory(name, words, width), "STYLE": style}
    if style == "lut":
        groups = -(-len(words) // 64)
        bits = ((np.array(words, object)[:, None] >> np.arange(width).astype(object)) & 1).astype(np.uint8)
        planes = np.zeros((width, 64 * groups), np.uint8)
        planes[:, : len(words)] = bits.T
        value = int.from_bytes(np.packbits(planes.reshape(-1), bitorder="little").tobytes(), "little")
        params["PLANES"] = f"{planes.size}'h{value:x}"
    return params


def conform(net: Netlist, stream: Stream, par: int, bits: int, signed: bool) -> Stream:
    """The stream with the width that a block wants, behind a FIFO, which stands where the stream is narrow."""
    kept = net.convert(net.buffer(stream), par) if par > stream.par else net.buffer(net.convert(stream, par))
    return net.cast(kept, bits, signed)
