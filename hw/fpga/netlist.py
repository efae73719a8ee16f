"""A design as instances of RTL blocks joined by streams, and its one top module.

A stream carries beats of `par` elements of `bits` bits with valid and ready. Between blocks the netlist adapts widths by
itself: a width converter where the number of elements differs, an extension where the bits differ, a FIFO in front of every
block, a fork where several blocks read one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

from hw.fpga import memory


def memory_bram18(depth: int, width: int) -> float:
    """18-kilobit blocks of a memory, 0 where logic cells are the cheaper place (up to 64 words, or under 2 kilobits)."""
    if depth <= 64 or depth * width <= 2048:
        return 0
    best = 1e9
    for words, bits in ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1)):
        best = min(best, -(-depth // words) * -(-width // bits))
    return best


@dataclass(frozen=True)
class Stream:
    """name: prefix of the wires. beats: per frame. tensor: the integer tensor that passes, '' inside a layer."""

    name: str
    par: int
    bits: int
    signed: bool
    beats: int
    tensor: str = ""

    @property
    def width(self) -> int:
        return self.par * self.bits


@dataclass
class Instance:
    """One module instance. layer: name of the graph's node that it belongs to ('' for joints between layers)."""

    name: str
    module: str
    params: dict[str, int | str]
    inputs: list[Stream]
    outputs: list[Stream]
    layer: str
    cycles: int
    clocked: bool = True


@dataclass(frozen=True)
class Stored:
    """A stream of constants from memory off the chip: `words`, then again from the first, without end. See memory.py."""

    stream: Stream
    words: list[int]
    rate: float = 1  # bits a cycle

    @property
    def word_bits(self) -> int:
        """Bits of a word in memory: a power of two, at least a byte."""
        return max(8, 1 << (self.stream.width - 1).bit_length())


@dataclass
class Netlist:
    """Instances in order; `files` are the memory contents by file name; depths are those of the FIFOs by name; `stored` are the
    streams that come from memory off the chip, through a port of `port_bits`; split: FIFOs may consist of two."""

    instances: list[Instance] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    inputs: list[Stream] = field(default_factory=list)
    outputs: list[Stream] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    port_bits: int = 0
    split: bool = True
    layer: str = ""
    default_depth: int = 2

    def add(
        self,
        module: str,
        params: dict[str, int | str],
        inputs: list[Stream],
        par: int,
        bits: int,
        signed: bool,
        beats: int,
        *,
        cycles: int,
        tensor: str = "",
        name: str = "",
        copies: int = 1,
        clocked: bool = True,
    ) -> list[Stream]:
        """One instance; returns its output streams (several only for forks)."""
        name = name or f"{self.layer or 'joint'}_{module.removeprefix('dp_')}"
        while any(i.name == name for i in self.instances):
            name += "_"
        outs = [Stream(name if copies == 1 else f"{name}_{k}", par, bits, signed, beats, tensor) for k in range(copies)]
        self.instances.append(Instance(name, module, params, inputs, outs, self.layer, cycles, clocked))
        return list(outs)

    def convert(self, stream: Stream, par: int) -> Stream:
        """The stream with `par` elements per beat."""
        if stream.par == par:
            return stream
        total = stream.beats * stream.par
        if stream.par % par and par % stream.par:
            both = stream.par * par // gcd(stream.par, par)
            stream = self.convert(stream, both if total % both == 0 else gcd(stream.par, par))
        params: dict[str, int | str] = {"WIDTH": stream.bits, "N_IN": stream.par, "N_OUT": par}
        beats = total // par
        return self.add(
            "dp_dwc",
            params,
            [stream],
            par,
            stream.bits,
            stream.signed,
            beats,
            cycles=max(beats, stream.beats),
            tensor=stream.tensor,
        )[0]

    def resize(self, stream: Stream, module: str, channels: int, other: int) -> Stream:
        """dp_pad or dp_trim: pixels of `channels` elements with `other` elements, one a beat."""
        stream = self.convert(stream, 1)
        n, padded = sorted((channels, other))
        params: dict[str, int | str] = {"WIDTH": stream.bits, "N": n, "PADDED": padded}
        beats = stream.beats // channels * other
        cycles = stream.beats // channels * padded
        return self.add(module, params, [stream], 1, stream.bits, stream.signed, beats, cycles=cycles)[0]

    def cast(self, stream: Stream, bits: int, signed: bool) -> Stream:
        """The stream with elements of another width; the values stay what they are."""
        if stream.bits == bits:
            return stream
        params: dict[str, int | str] = {"N": stream.par, "FROM": stream.bits, "SIGNED": int(stream.signed), "TO": bits}
        return self.add(
            "dp_cast",
            params,
            [stream],
            stream.par,
            bits,
            signed,
            stream.beats,
            cycles=0,
            tensor=stream.tensor,
            clocked=False,
        )[0]

    def buffer(self, stream: Stream, name: str = "", least: int = 0) -> Stream:
        """The stream behind a FIFO, whose depth is looked up by its name; `least` where the design needs it whatever was seen."""
        name = name or f"{stream.name}_fifo"
        while any(i.name == name for i in self.instances):
            name += "_"
        depth = max(self.depths.get(name, self.default_depth), least)
        params: dict[str, int | str] = {"WIDTH": stream.width, "DEPTH": depth}
        tail = _tail(depth, stream.width) if self.split else 0
        if tail:
            params["TAIL"] = tail
        return self.add(
            "dp_fifo_split" if tail else "dp_fifo",
            params,
            [stream],
            stream.par,
            stream.bits,
            stream.signed,
            stream.beats,
            cycles=stream.beats,
            tensor=stream.tensor,
            name=name,
        )[0]

    def fork(self, stream: Stream, copies: int) -> list[Stream]:
        """The stream once for each reader."""
        if copies == 1:
            return [stream]
        params: dict[str, int | str] = {"WIDTH": stream.width, "N": copies}
        return self.add(
            "dp_fork",
            params,
            [stream],
            stream.par,
            stream.bits,
            stream.signed,
            stream.beats,
            cycles=stream.beats,
            tensor=stream.tensor,
            name=f"{stream.name}_fork",
            copies=copies,
        )

    def memory(self, name: str, words: list[int], width: int) -> str:
        """A memory file of hexadecimal words; returns its name."""
        digits = -(-width // 4)
        mask = (1 << width) - 1
        self.files[name] = "".join(f"{w & mask:0{digits}x}\n" for w in words)
        return name

    def store(self, name: str, words: list[int], width: int, per_frame: int, rate: float) -> Stream:
        """A stream of words from memory off the chip, all of them `per_frame` times a frame, `rate` bits a cycle."""
        stream = Stream(name, 1, width, False, len(words) * per_frame)
        self.stored.append(Stored(stream, words, rate))
        return stream

    # ------------------------------------------------------------------ Verilog

    def fifos(self) -> list[Instance]:
        return [i for i in self.instances if i.module in ("dp_fifo", "dp_fifo_split")]

    def modules(self) -> list[str]:
        """Names of the modules used, each once, in order."""
        return list(dict.fromkeys([*(i.module for i in self.instances), *(memory.USES if self.stored else ())]))

    def layers(self) -> list[str]:
        """Names of the layers that have instances, in order."""
        return list(dict.fromkeys(i.layer for i in self.instances if i.layer))

    def ports(self, layer: str) -> tuple[list[Stream], list[Stream]]:
        """Streams into and out of a layer."""
        own = [i for i in self.instances if i.layer == layer]
        made = {s.name: s for i in own for s in i.outputs}
        read = {s.name: s for i in own for s in i.inputs}
        outside = {s.name for i in self.instances if i.layer != layer for s in i.inputs} | {
            s.name for s in self.outputs
        }
        return [s for n, s in read.items() if n not in made], [s for n, s in made.items() if n in outside]

    def layer_verilog(self, layer: str) -> str:
        """One layer as a module with a stream on every side."""
        own = [i for i in self.instances if i.layer == layer]
        ins, outs = self.ports(layer)
        ports = ["  input logic clk, rst,"]
        ports += [
            f"  input logic [{s.width - 1}:0] {s.name}_d, input logic {s.name}_v, output logic {s.name}_r," for s in ins
        ]
        ports += [
            f"  output logic [{s.width - 1}:0] {s.name}_d, output logic {s.name}_v, input logic {s.name}_r,"
            for s in outs
        ]
        shown = {s.name for s in (*ins, *outs)}
        inner = [s for i in own for s in i.outputs if s.name not in shown]
        body = [_wires(s) for s in inner] + [_instantiate(i) for i in own] + _taps([s for i in own for s in i.outputs])
        return f"module layer_{layer} (\n" + "\n".join(ports)[:-1] + "\n);\n" + "\n".join(body) + "\nendmodule\n"

    def top_verilog(self, top: str = "dataflow") -> str:
        """The top module: plain AXI streams s_axis_<i> and m_axis_<i>, element 0 in the low bits, unused high bits zero; and,
        where constants come from memory, an AXI4 read port with the address of their image."""
        ports = ["  input  logic clk,", "  input  logic rst_n,"]
        for i, s in enumerate(self.inputs):
            ports.append(
                f"  input  logic [{axis_width(s) - 1}:0] s_axis_{i}_tdata, input logic s_axis_{i}_tvalid, output logic s_axis_{i}_tready,"
            )
        ports += memory.ports(self)
        for i, s in enumerate(self.outputs):
            ports.append(
                f"  output logic [{axis_width(s) - 1}:0] m_axis_{i}_tdata, output logic m_axis_{i}_tvalid, input logic m_axis_{i}_tready, output logic m_axis_{i}_tlast,"
            )
        body = ["  logic rst;", "  always_ff @(posedge clk) rst <= !rst_n;"]
        joints = [i for i in self.instances if not i.layer]
        crossing = {s.name: s for s in (*self.inputs, *(c.stream for c in self.stored))} | {
            s.name: s for i in joints for s in i.outputs
        }
        for layer in self.layers():
            crossing |= {s.name: s for s in self.ports(layer)[1]}
        body += [_wires(s) for s in crossing.values()]
        for i, s in enumerate(self.inputs):
            body.append(
                f"  assign {s.name}_d = s_axis_{i}_tdata[{s.width - 1}:0]; assign {s.name}_v = s_axis_{i}_tvalid && !rst; assign s_axis_{i}_tready = {s.name}_r && !rst;"
            )
        body += memory.instance(self)
        done: set[str] = set()
        for instance in self.instances:
            if not instance.layer:
                body.append(_instantiate(instance))
            elif instance.layer not in done:
                done.add(instance.layer)
                wires = [
                    f".{s.name}{end}" for side in self.ports(instance.layer) for s in side for end in ("_d", "_v", "_r")
                ]
                body.append(f"  layer_{instance.layer} {instance.layer}_l (.clk, .rst, {', '.join(wires)});")
        for i, s in enumerate(self.outputs):
            rest = axis_width(s) - s.width
            data = f"{{{rest}'b0, {s.name}_d}}" if rest else f"{s.name}_d"
            body.append(
                f"  assign m_axis_{i}_tdata = {data}; assign m_axis_{i}_tvalid = {s.name}_v; assign {s.name}_r = m_axis_{i}_tready;"
            )
            body.append(_last(i, s))
        body += _taps([*self.inputs, *(s for i in joints for s in i.outputs)])
        return f"module {top} (\n" + "\n".join(ports)[:-1] + "\n);\n" + "\n".join(body) + "\nendmodule\n"

    def verilog(self) -> dict[str, str]:
        """File name -> text of every generated module; the top is dataflow.sv."""
        files = {f"layer_{name}.sv": self.layer_verilog(name) for name in self.layers()}
        if self.stored:
            files[f"{memory.MODULE}.sv"] = memory.verilog(self)
        return {**files, "dataflow.sv": self.top_verilog()}


def _tail(depth: int, width: int) -> int:
    """Words of a FIFO that stand in logic, where a few of them would take further block RAM."""
    for words in (2048, 1024, 512):
        rest = depth % words
        if (
            1 < rest < depth
            and not memory_bram18(rest, width)
            and memory_bram18(depth - rest, width) < memory_bram18(depth, width)
        ):
            return rest
    return 0


def _wires(s: Stream) -> str:
    return f"  wire [{s.width - 1}:0] {s.name}_d; wire {s.name}_v, {s.name}_r;"


def _taps(streams: list[Stream]) -> list[str]:
    rows = [
        f'  dp_tap #(.WIDTH({s.width}), .FILE("{s.name}.tap")) {s.name}_t (.clk, .rst, .data({s.name}_d), .valid({s.name}_v), .ready({s.name}_r));'
        for s in streams
        if s.tensor
    ]
    return ["`ifdef DP_TRACE", *rows, "`endif"] if rows else []


def axis_width(stream: Stream) -> int:
    """Width of a port in bits: whole bytes."""
    return -(-stream.width // 8) * 8


def _last(i: int, s: Stream) -> str:
    bits = max(1, (s.beats - 1).bit_length())
    return (
        f"  logic [{bits - 1}:0] beat_{i};\n"
        f"  assign m_axis_{i}_tlast = beat_{i} == {bits}'d{s.beats - 1};\n"
        f"  always_ff @(posedge clk) if (rst) beat_{i} <= '0; else if (m_axis_{i}_tvalid && m_axis_{i}_tready) beat_{i} <= m_axis_{i}_tlast ? '0 : beat_{i} + 1'b1;"
    )


def literal(value: int | str) -> str:
    """A parameter value in Verilog: numbers as they are, strings quoted unless they are sized literals."""
    if isinstance(value, int):
        return str(value)
    return value if "'" in value else f'"{value}"'


def _bundle(streams: list[Stream], suffix: str) -> str:
    names = [f"{s.name}{suffix}" for s in streams]
    return names[0] if len(names) == 1 else "{" + ", ".join(reversed(names)) + "}"


def _instantiate(instance: Instance) -> str:
    params = ", ".join(f".{k}({literal(v)})" for k, v in instance.params.items())
    head = f"  {instance.module} #({params}) {instance.name}_i ("
    s, m = instance.inputs, instance.outputs
    if not instance.clocked:
        wires = f".s_data({s[0].name}_d), .m_data({m[0].name}_d));"
        return f"{head}{wires} assign {m[0].name}_v = {s[0].name}_v; assign {s[0].name}_r = {m[0].name}_r;"
    ports = [".clk, .rst"]
    for side, streams in (("s", s), ("m", m)):
        ports += [
            f".{side}_{long}({_bundle(streams, short)})"
            for long, short in (("data", "_d"), ("valid", "_v"), ("ready", "_r"))
        ]
    return head + ", ".join(ports) + ");"
