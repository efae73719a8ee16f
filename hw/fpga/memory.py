"""Constants that stand in memory off the chip: their image, and the module that reads it through one AXI4 port.

A channel's region is a whole number of bursts; within it words follow each other, each in a power of two of bits. Every region is
read over and over from its beginning, whatever the frames do: what a layer takes from it is known beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hw.fpga.netlist import Netlist

MODULE = "stored"
USES = ("dp_reader", "dp_words")
BURST = 8  # beats
PATIENCE = 512  # cycles that memory may take to answer when every channel asks
BASE = 0x1000  # address of the image in simulation; any multiple of `align` serves


@dataclass(frozen=True)
class Region:
    """Of one channel: its first burst, how many there are, and words in all of them (those that fill up included)."""

    first: int
    bursts: int
    total: int


def align(net: Netlist) -> int:
    """Bytes of a burst; the image begins at a multiple."""
    return BURST * net.port_bits // 8


def regions(net: Netlist) -> list[Region]:
    """Where the words of every stored stream stand."""
    found, first = [], 0
    for stored in net.stored:
        bits = len(stored.words) * stored.word_bits
        bursts = -(-bits // (BURST * net.port_bits))
        found.append(Region(first, bursts, bursts * BURST * net.port_bits // stored.word_bits))
        first += bursts
    return found


def slots(net: Netlist, rate: float) -> int:
    """Bursts that a channel of `rate` bits a cycle has in hand: what it takes in PATIENCE cycles."""
    need = PATIENCE * rate / (BURST * net.port_bits)
    return max(2, 1 << (math.ceil(need) - 1).bit_length())


def image(net: Netlist) -> bytes:
    """What must stand in memory, region after region."""
    made = b""
    for stored, region in zip(net.stored, regions(net), strict=True):
        size = stored.word_bits // 8
        words = b"".join(w.to_bytes(size, "little") for w in stored.words)
        made += words.ljust(region.bursts * align(net), b"\0")
    return made


def ports(net: Netlist) -> list[str]:
    """Ports of the top module: the read channels, the address of the image, and whether it is known."""
    if not net.stored:
        return []
    return [
        "  input  logic [39:0] base, input logic go,",
        "  output logic [39:0] m_axi_araddr, output logic [7:0] m_axi_arlen, output logic m_axi_arvalid, input logic m_axi_arready,",
        f"  input  logic [{net.port_bits - 1}:0] m_axi_rdata, input logic m_axi_rlast, m_axi_rvalid, output logic m_axi_rready,",
    ]


def instance(net: Netlist) -> list[str]:
    """The module's instance in the top module."""
    if not net.stored:
        return []
    streams = ", ".join(f".{s.stream.name}{e}" for s in net.stored for e in ("_d", "_v", "_r"))
    bus = ", ".join(
        f".m_axi_{n}" for n in ("araddr", "arlen", "arvalid", "arready", "rdata", "rlast", "rvalid", "rready")
    )
    return [f"  {MODULE} stored_i (.clk, .rst, .base, .go, {bus}, {streams});"]


def verilog(net: Netlist) -> str:
    """The module: one reader, and for every channel what makes words of beats."""
    n, where = len(net.stored), regions(net)
    channels = sorted(range(n), key=lambda i: -slots(net, net.stored[i].rate))  # those that want most come first
    count = [slots(net, net.stored[i].rate) for i in channels]
    first, bursts = (
        "{" + ", ".join(f"24'd{getattr(where[i], k)}" for i in reversed(channels)) + "}" for k in ("first", "bursts")
    )
    each = ", ".join(f"8'd{c}" for c in reversed(count))
    held = f".DEPTH({1 << (sum(count) - 1).bit_length()}), .MOST_SLOTS({count[0]}), .SLOTS({{{each}}})"
    head = [f"module {MODULE} (", "  input  logic clk, rst,", *ports(net)]
    for s in net.stored:
        w = s.stream
        head.append(f"  output logic [{w.width - 1}:0] {w.name}_d, output logic {w.name}_v, input logic {w.name}_r,")
    bus = ", ".join(
        f".m_axi_{k}" for k in ("araddr", "arlen", "arvalid", "arready", "rdata", "rlast", "rvalid", "rready")
    )
    body = [
        f"  wire [{net.port_bits - 1}:0] beat; wire [{n - 1}:0] load, want;",
        f"  dp_reader #(.N({n}), .PORT({net.port_bits}), .BURST({BURST}), .FIRST({first}), .BURSTS({bursts}), {held}) reader (.clk, .rst, .base, .go, {bus}, .beat, .load, .want);",
    ]
    for i, channel in enumerate(channels):
        s, r = net.stored[channel], where[channel]
        w = s.stream
        body.append(
            f"  wire [{s.word_bits - 1}:0] word_{i}; assign {w.name}_d = word_{i}[{w.width - 1}:0];\n"
            f"  dp_words #(.PORT({net.port_bits}), .BITS({s.word_bits}), .WORDS({len(s.words)}), .TOTAL({r.total})) words_{i} (.clk, .rst, .beat, "
            f".load(load[{i}]), .want(want[{i}]), .m_data(word_{i}), .m_valid({w.name}_v), .m_ready({w.name}_r));"
        )
    return "\n".join(head)[:-1] + "\n);\n" + "\n".join(body) + "\nendmodule\n"
