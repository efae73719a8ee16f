"""The simulation gate: FIFO depths measured, then the very RTL that ships compared with the reference bit for bit, with and
without random stalls; cycles counted; the first diverging or stuck layer named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import BoundError
from hw.fpga import ir, library, memory, reference, verilator, words
from hw.fpga.assemble import assemble
from hw.fpga.blocks.base import Fold, Target
from hw.fpga.netlist import Netlist, axis_width, memory_bram18

STALL = 0.3
SIZING_FRAMES = 4
SIZING_RUNS = 3
SQUEEZE_FRAMES = 8
LEAST_DEPTH = 2


@dataclass(frozen=True)
class Measured:
    """Cycles of the design: from the first input beat to the end of the first frame, and between frames; what was compared."""

    first_frame: int
    interval: float
    predicted: int
    frames: int
    integers: int
    stalled_interval: float
    cycles: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def random_inputs(graph: ir.Graph, count: int, seed: int) -> dict[str, np.ndarray]:
    """Uniform integers over every input's whole range, [N, H, W, C]."""
    rng = np.random.default_rng(seed)
    found = {}
    for source in graph.inputs:
        t = graph.tensors[source.tensor]
        found[source.tensor] = rng.integers(t.low, t.high + 1, (count, *t.shape))
    return found


def _idle(net: Netlist) -> int:
    return 20_000 + 3 * sum(i.cycles for i in net.instances)


def _program(net: Netlist, work: Path, defines: tuple[str, ...]) -> Path:
    files = library.write(net, work / "rtl")
    if "DP_TRACE" in defines:
        tap = work / "rtl" / "tap.sv"
        tap.write_text((library.RTL / "tap.sv").read_text())
        files.insert(0, tap)
    run = work / "run"
    run.mkdir(parents=True, exist_ok=True)
    for name, text in net.files.items():
        (run / name).write_text(text)
    if net.stored:
        (run / "memory.bin").write_bytes(memory.image(net))
    return verilator.compile_sources(files, "dataflow", verilator.main_source(net), work, defines=defines)


def _stream_in(program: Path, net: Netlist, values: Mapping[str, np.ndarray], work: Path, **how: Any) -> verilator.Run:
    """Run frames through a compiled design."""
    count = len(next(iter(values.values())))
    return verilator.simulate(
        program,
        [words.to_words(values[s.tensor], s) for s in net.inputs],
        [axis_width(s) for s in net.inputs],
        [axis_width(s) for s in net.outputs],
        [count * s.beats for s in net.outputs],
        work / "run",
        idle=_idle(net),
        **how,
    )


def predicted(net: Netlist) -> int:
    """Cycles per frame of the slowest instance."""
    return max(i.cycles for i in net.instances)


def size_fifos(graph: ir.Graph, folds: Mapping[str, Fold], target: Target, work: Path, seed: int = 0) -> dict[str, int]:
    """Depth of every FIFO: what it holds at most when frames arrive at the predicted interval and no FIFO is ever full."""
    net = assemble(graph, folds, target)
    roomy = assemble(graph, folds, target, {i.name: 2 * i.outputs[0].beats + 16 for i in net.fifos()}, False)
    program = _program(roomy, work, ("DP_PROFILE",))
    first = roomy.inputs[0]
    interval, frames = float(predicted(roomy)), SIZING_FRAMES
    for _ in range(SIZING_RUNS):
        pace = max(1.0, interval / first.beats)
        run = _stream_in(program, roomy, random_inputs(graph, frames, seed), work, pace=pace, seed=seed)
        if run.stuck:
            _explain(
                graph, roomy, random_inputs(graph, 2, seed), work / "stuck", "the design stops even with large FIFOs"
            )
        # a pipeline several frames deep needs as many frames to fill; one slower than predicted must not be pressed
        needed = SIZING_FRAMES + int(run.first_frame / interval) - 1
        if needed <= frames and run.interval <= 1.01 * interval:
            break
        interval, frames = max(interval, run.interval), max(needed, frames)
    return {name: max(LEAST_DEPTH, most) for name, most in run.fifo.items()}


def fifo_blocks(net: Netlist) -> float:
    """18-kilobit blocks of all FIFOs, estimated."""
    widths = ((i.params, int(i.params["DEPTH"]) - int(i.params.get("TAIL", 0))) for i in net.fifos())
    return sum(memory_bram18(depth, int(params["WIDTH"])) for params, depth in widths)


def squeezed(graph: ir.Graph, folds: Mapping[str, Fold], net: Netlist, least: int = 0) -> dict[str, int]:
    """Smaller depths wherever waiting is harmless: in front of layers that read one stream which nobody else reads (those that
    hold a block of pixels keep one block). Where paths part and join again the depth stays. least 0: no block RAM at all;
    else FIFOs of at least so many blocks give up a third."""
    nodes, depths = {n.name: n for n in graph.nodes}, {}
    for fifo in net.fifos():
        depths[fifo.name] = held = int(fifo.params["DEPTH"])
        node = nodes.get(fifo.layer)
        if node is None or len(node.inputs) > 1 or graph.uses(node.inputs[0]) > 1:
            continue
        fold, x = folds[node.name], graph.tensors[node.inputs[0]]
        block = fold.pixels * -(-x.channels // fold.simd) if fold.form == "stream" else 0
        width = int(fifo.params["WIDTH"])
        if not least:
            depths[fifo.name] = min(held, max(64, 2048 // width, block))
        elif memory_bram18(held, width) >= least:
            cut = 2 * held // 3 // 512 * 512
            depths[fifo.name] = min(held, max(cut, block)) if cut else held
    return depths


def squeeze_fifos(
    graph: ir.Graph,
    folds: Mapping[str, Fold],
    target: Target,
    depths: Mapping[str, int],
    limit: float,
    work: Path,
    seed: int = 0,
) -> dict[str, int] | None:
    """Smaller FIFOs, proven by simulation to run at no more than `limit` cycles a frame; None where they do not."""
    for least in (0, 3):
        small = squeezed(graph, folds, assemble(graph, folds, target, depths), least)
        net = assemble(graph, folds, target, small)
        place = work / str(least)
        run = _stream_in(_program(net, place, ()), net, random_inputs(graph, SQUEEZE_FRAMES, seed), place, seed=seed)
        if not run.stuck and run.interval <= limit:
            return small
    return None


def compare(graph: ir.Graph, net: Netlist, run: verilator.Run, want: Mapping[str, np.ndarray]) -> int:
    """Wrong integers in all outputs."""
    wrong = 0
    for spec, stream, got in zip(graph.outputs, net.outputs, run.words, strict=True):
        expected = want[spec.tensor]
        found = words.from_words(got, stream, graph.tensors[spec.tensor].shape)
        wrong += int((found != expected[: len(found)]).sum()) + (len(expected) - len(found)) * expected[0].size
    return wrong


def verify(
    graph: ir.Graph, net: Netlist, values: Mapping[str, np.ndarray], work: Path, seed: int = 0
) -> tuple[Measured, list[np.ndarray]]:
    """Simulate a design on integer inputs; returns the figures and the outputs as integers.

    Raises BoundError when one integer differs from the reference (naming the first layer that diverges) or the design stops
    (naming where), ToolError when an assertion of the RTL fails.
    """
    program = _program(net, work, ())
    want = reference.execute(graph, dict(values))
    count = len(next(iter(values.values())))
    free = _stream_in(program, net, values, work, seed=seed)
    stalled_values = {k: v[: max(2, min(count, 16))] for k, v in values.items()}
    stalled = _stream_in(program, net, stalled_values, work, stall_in=STALL, stall_out=STALL, seed=seed + 1)
    for run, used, how in (
        (free, values, "without stalls"),
        (stalled, stalled_values, f"with {STALL:.0%} random stalls"),
    ):
        if run.stuck:
            _explain(
                graph,
                net,
                used,
                work / "trace",
                f"the design stops {how}",
                stall=STALL if run is stalled else 0.0,
                seed=seed + 1,
            )
        wrong = compare(graph, net, run, {k: v[: len(next(iter(used.values())))] for k, v in want.items()})
        if wrong:
            _explain(
                graph,
                net,
                used,
                work / "trace",
                f"{wrong} integers of the RTL differ from the reference {how}",
                stall=STALL if run is stalled else 0.0,
                seed=seed + 1,
            )
    outputs = [
        words.from_words(w, s, graph.tensors[o.tensor].shape)
        for w, s, o in zip(free.words, net.outputs, graph.outputs, strict=True)
    ]
    integers = sum(o.size for o in outputs)
    return Measured(
        free.first_frame, free.interval, predicted(net), count, integers, stalled.interval, free.cycles
    ), outputs


def _explain(
    graph: ir.Graph,
    net: Netlist,
    values: Mapping[str, np.ndarray],
    work: Path,
    what: str,
    stall: float = 0.0,
    seed: int = 0,
) -> None:
    """Run once more with every stream written out, and raise BoundError with the first that is wrong or short."""
    few = {k: v[:4] for k, v in values.items()}
    program = _program(net, work, ("DP_TRACE",))
    _stream_in(program, net, few, work, stall_in=stall, stall_out=stall, seed=seed)
    want = reference.execute(graph, few)
    labels = {n.output: n.label or n.name for n in graph.nodes}
    held = []
    for stream in (s for i in net.instances for s in i.outputs if s.tensor in want):
        path = work / "run" / f"{stream.name}.tap"
        lines = path.read_text().split() if path.is_file() else []
        got = [int(x, 16) for x in lines if x[:1] not in "#hs" and all(c in "0123456789abcdefABCDEF" for c in x)]
        expected = words.to_words(want[stream.tensor], stream)
        where = f"{labels.get(stream.tensor, stream.tensor)} (stream {stream.name})"
        for at, (a, b) in enumerate(zip(got, expected, strict=False)):
            if a != b:
                raise BoundError(f"{what}: the first that diverges is {where}, beat {at}: {a:x} where {b:x} is right")
        if len(got) < len(expected) and "held" in lines:
            held.append(f"{where} after {len(got)} of {len(expected)} beats")
    if held:
        raise BoundError(
            f"{what}: it is deadlocked, data waits at {'; '.join(held[:3])}; let the FIFOs be sized by simulation (leave out --fifo-depth)"
        )
    raise BoundError(f"{what}, and a traced run shows no layer that diverges; report this model")
