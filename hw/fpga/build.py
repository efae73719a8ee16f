"""`deploy build` as a stage: pre-flight, lowering, folding, RTL, simulation, utilization, bitstream or vendor kit, package."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import boards
from boards.board import Board
from deploy.arch import Preprocess
from deploy.data import Batch, load, top1
from deploy.errors import BoundError, UserError
from deploy.inputs import InputSpec
from deploy.tools import Tool
from export import onnxfile
from export.stage import QONNX, read_record
from hw.fpga import (
    ecp5,
    finn_estimate,
    fold,
    gates,
    ir,
    library,
    package,
    reference,
    simulate,
    synthesize,
    verilator,
    zynq,
)
from hw.fpga.assemble import assemble
from hw.fpga.config import BuildConfig
from hw.fpga.lower import lower
from hw.fpga.lower.problems import refuse
from hw.fpga.netlist import Netlist

log = logging.getLogger(__name__)
RECORD = "build.json"
STATUS = ("rtl_generated", "rtl_verified", "netlist_verified", "bitstream_built", "tested_on_board")


@dataclass(frozen=True)
class Source:
    """A model to build: its QONNX graph, and how to read data for it."""

    model: onnx.ModelProto
    specs: tuple[InputSpec, ...]
    preprocess: Preprocess
    chain: dict[str, str]


def board_of(config: BuildConfig) -> Board:
    """The FPGA board of a configuration. Raises UserError for none, an unknown one, or a host."""
    if not config.board:
        names = [b.name for b in boards.boards().values() if b.kind == "fpga"]
        raise UserError(f"--board is missing; FPGA boards are {', '.join(names)}")
    board = boards.get(config.board)
    if board.kind != "fpga":
        raise UserError(f"{board.name} is no FPGA; use deploy profile for CPU and GPU runtimes")
    return board


def read_source(path: Path) -> Source:
    """An export folder, or a QONNX file. Raises UserError when there is no QONNX graph in it."""
    if path.is_dir():
        record = read_record(path)
        if not (path / QONNX).is_file():
            raise UserError(f"{path} holds a float model only (no {QONNX}); compress it first, then export")
        specs = tuple(InputSpec.from_json(r) for r in record["inputs"])
        files = {name: package.sha256(path / name) for name in (QONNX, "manifest.json") if (path / name).is_file()}
        return Source(
            onnxfile.load(path / QONNX, check=False), specs, Preprocess.from_json(record["preprocess"]), files
        )
    model = onnxfile.load(path, check=False)
    if not any(n.op_type == "Quant" for n in model.graph.node):
        raise UserError(f"{path} is no QONNX file: it has no Quant nodes; give the model.qonnx.onnx of deploy export")
    known = {i.name for i in model.graph.initializer}
    specs = tuple(
        InputSpec(i.name, tuple(d.dim_value for d in i.type.tensor_type.shape.dim))
        for i in model.graph.input
        if i.name not in known
    )
    return Source(model, specs, Preprocess(), {path.name: package.sha256(path)})


def _check_target(config: BuildConfig, board: Board, clock: float, graph: ir.Graph) -> None:
    """What the board's design or the flags rule out, before any work. Raises UserError."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UserError(
            f"a board design has one stream in and one out; this model needs {len(graph.inputs)} and {len(graph.outputs)} "
            "(an input that two quantizers read counts twice); join them, or quantize the input once"
        )
    top = max(board.clocks_mhz)
    if not 1 <= clock <= top:
        raise UserError(f"--clock {clock:g} is outside 1 to {top:g} MHz, the clocks of {board.name}")
    if board.family == "ecp5":
        ecp5.pll(board.oscillator_mhz, clock)
        ecp5.uart_div(clock)
    if config.netlist and board.family == "ultrascale+":
        raise UserError(gates.NO_MODELS)


def _check_tools(config: BuildConfig) -> None:
    """Every tool that this build will run is there. Raises UserError for the first that is not."""
    library.finn_rtl()
    verilator.find().require()
    Tool("g++", get="apt-get install g++").require()
    if config.utilization or config.netlist:
        synthesize.python_tool()
    if config.flow == "finn":
        finn_estimate.require_vendor_tools()


def _interval(config: BuildConfig, clock: float) -> int | None:
    if config.target_fps and config.max_fps:
        raise UserError("--target-fps and --max-fps exclude each other; give one")
    return max(1, int(clock * 1e6 / config.target_fps)) if config.target_fps else None


def _check_folding(
    found: fold.Folding, graph: ir.Graph, interval: int | None, board: Board, clock: float, fps: float
) -> None:
    slowest = max(found.folds, key=lambda n: found.folds[n].cycles)
    label = next(n.label or n.name for n in graph.nodes if n.name == slowest)
    if interval is not None and found.interval > interval:
        raise BoundError(
            f"{fps:,.0f} frames/s cannot be reached at {clock:g} MHz: {label} takes at least {found.interval:,} cycles a frame "
            f"({clock * 1e6 / found.interval:,.0f} frames/s); raise --clock or lower --target-fps"
        )
    budget = fold.Budget.of(board)
    over = max(found.lut / budget.lut, found.dsp / budget.dsp, found.bram18 / budget.bram18)
    if over > 2.0:
        worst = max(found.folds, key=lambda n: found.folds[n].lut / budget.lut + found.folds[n].bram18 / budget.bram18)
        costly = next(n.label or n.name for n in graph.nodes if n.name == worst)
        raise BoundError(
            f"the design does not fit {board.name}: even its smallest form is estimated at {over:.1f} times what is there "
            f"({found.lut:,.0f} LUT, {found.dsp} DSP, {found.bram18:,.0f} BRAM18); {costly} costs most"
        )


def check_fit(cells: dict[str, synthesize.Cells], board: Board, labels: dict[str, str]) -> dict[str, float]:
    """Share of the part by resource. Raises BoundError naming the layer that costs most where it is over 1."""
    whole = synthesize.total(cells)
    share = {k: getattr(whole, k) / max(getattr(board, k), 1) for k in ("lut", "ff", "dsp", "bram18")}
    worst = max(share, key=lambda k: share[k])
    if share[worst] > 1:
        layer = max((n for n in cells if n), key=lambda n: getattr(cells[n], worst))
        raise BoundError(
            f"the design does not fit {board.name}: {getattr(whole, worst):,} {worst.upper()} of {getattr(board, worst):,} (post-synthesis, Yosys); "
            f"{labels.get(layer, layer)} costs most with {getattr(cells[layer], worst):,}; lower --target-fps"
        )
    return share


def inputs_of(config: BuildConfig, source: Source, graph: ir.Graph) -> tuple[dict[str, np.ndarray], list[Batch]]:
    """Integer inputs to simulate: those of --eval, then random ones over the whole range."""
    values = simulate.random_inputs(graph, config.random_frames, config.seed)
    if not config.eval:
        return values, []
    batches = load(config.eval, source.specs, source.preprocess, limit=config.frames, flag="--eval", seed=config.seed)
    floats = [np.concatenate([b.inputs[i] for b in batches]) for i in range(len(source.specs))]
    real = reference.quantize(graph, _ordered(graph, source, floats))
    return {k: np.concatenate([real[k], v]) for k, v in values.items()}, batches


def _ordered(graph: ir.Graph, source: Source, floats: list[np.ndarray]) -> list[np.ndarray]:
    """Float inputs in the order in which the graph names them."""
    by_name = dict(zip((s.name for s in source.specs), floats, strict=True))
    return [by_name[n] for n in dict.fromkeys(i.name for i in graph.inputs)]


def _accuracy(
    graph: ir.Graph, batches: list[Batch], outputs: list[np.ndarray], values: dict[str, np.ndarray]
) -> dict[str, float] | None:
    count = sum(map(len, batches))
    if not count:
        return None
    got = reference.dequantize(graph.outputs[0], outputs[0][:count])
    want = reference.dequantize(
        graph.outputs[0], reference.execute(graph, {k: v[:count] for k, v in values.items()})[graph.outputs[0].tensor]
    )
    row = {"samples": float(count)}
    if got.ndim == 2 and all(b.labels is not None for b in batches):
        labels = np.concatenate([b.labels for b in batches if b.labels is not None])
        row |= {
            "rtl_percent": float((top1(got) == labels).mean() * 100),
            "reference_percent": float((top1(want) == labels).mean() * 100),
        }
        return row
    return None


def design(graph: ir.Graph, board: Board, folds: dict[str, fold.Fold], config: BuildConfig, work: Path) -> Netlist:
    """The netlist with its FIFOs sized."""
    target = fold.target_of(board)
    if config.fifo_depth:
        net = assemble(graph, folds, target)
        return assemble(graph, folds, target, {i.name: config.fifo_depth for i in net.fifos()})
    log.info("build: sizing FIFOs by simulation")
    return assemble(graph, folds, target, simulate.size_fifos(graph, folds, target, work, config.seed))


def run_stage(config: BuildConfig, folder: Path) -> dict[str, Any]:
    """Build `config.model` for `config.board` into `folder`; returns the summary."""
    board = board_of(config)
    source = read_source(Path(config.model))
    clock = config.clock or board.clocks_mhz[0]
    lowered = lower(source.model)
    refuse(lowered.problems, str(config.model))
    graph = lowered.graph
    _check_tools(config)
    _check_target(config, board, clock, graph)
    interval = _interval(config, clock)
    found = fold.search(graph, board, interval)
    _check_folding(found, graph, interval, board, clock, config.target_fps)
    labels = {n.name: n.label or n.name for n in graph.nodes}
    remarks: list[str] = []
    status = dict.fromkeys(STATUS, False)
    with tempfile.TemporaryDirectory(prefix="deploy-build-") as scratch:
        work = Path(scratch)
        (folder / QONNX).write_bytes(source.model.SerializeToString())
        net = design(graph, board, found.folds, config, work / "size")
        library.write(net, folder / "rtl")
        status["rtl_generated"] = True
        values, batches = inputs_of(config, source, graph)
        log.info("build: simulating %d frames", len(next(iter(values.values()))))
        measured, outputs = simulate.verify(graph, net, values, work / "verify", config.seed)
        status["rtl_verified"] = True
        cells: dict[str, synthesize.Cells] = {}
        cached, flat = 0, None
        if config.utilization:
            log.info("build: synthesizing %d layers", len(net.layers()))
            cells, cached = synthesize.by_layer(net, board, work / "synthesis", config.jobs)
            share = check_fit(cells, board, labels)
            if config.flat:
                flat = synthesize.flat(net, board, work / "flat")
        if config.netlist:
            log.info("build: simulating the mapped netlist")
            gate = gates.verify(graph, net, board, values, work / "gates", config.seed)
            status["netlist_verified"] = True
            remarks.append(f"the mapped netlist equals the reference on {gate} integers")
        hash_ = package.design_hash(source.chain, net)
        bit = _bitstream(config, board, net, graph, clock, hash_, folder, work, remarks)
        status["bitstream_built"] = bit is not None
        golden = {k: v[: package.GOLDEN] for k, v in values.items()}
        package.write(
            folder / "package",
            graph,
            net,
            board,
            clock,
            golden,
            reference.execute(graph, golden),
            source.chain,
            hash_,
            bit,
            measured,
            source.preprocess,
        )
    estimate = finn_estimate.cycles(graph, found.folds)
    summary: dict[str, Any] = {
        "board": board.name,
        "part": board.part,
        "clock_mhz": clock,
        "layers": len(graph.nodes),
        "fps": clock * 1e6 / measured.interval,
        "measured": measured.to_json(),
        "finn_estimate": estimate,
        "status": status,
        "cells": asdict(synthesize.total(cells)) if cells else None,
        "share": share if cells else None,
        "accuracy": _accuracy(graph, batches, outputs, values),
        "remarks": remarks,
        "bitstream": bit,
    }
    record = {
        **summary,
        "rows": _rows(graph, net, found, cells, labels),
        "edges": [(t, n.name) for n in graph.nodes for t in n.inputs],
        "cached_layers": cached,
        "flat": asdict(flat) if flat else None,
        "depths": {i.name: i.params["DEPTH"] for i in net.fifos()},
        "folds": {k: asdict(v) for k, v in found.folds.items()},
        "estimate": {"lut": found.lut, "dsp": found.dsp, "bram18": found.bram18},
        "io_bytes": sum(s.beats * s.width / 8 for s in (*net.inputs, *net.outputs)),
        "macs": sum(_macs(graph, n) for n in graph.nodes),
        "chain": source.chain,
        "hash": hash_,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return summary


def _bitstream(
    config: BuildConfig,
    board: Board,
    net: Netlist,
    graph: ir.Graph,
    clock: float,
    hash_: str,
    folder: Path,
    work: Path,
    remarks: list[str],
) -> dict[str, Any] | None:
    """The bitstream (as a record with its file), or None with the reason among the remarks."""
    if board.family == "ecp5":
        if not config.bitstream:
            remarks.append("no bitstream: --no-bitstream")
            return None
        log.info("build: placing and routing")
        return ecp5.bitstream(net, board, clock, hash_, folder / "bitstream", work / "ecp5", config.seed)
    if config.flow == "finn":
        log.info("build: FINN's own flow")
        return finn_estimate.build(folder / QONNX, board, clock, config.target_fps, folder / "finn")
    zynq.write_kit(net, board, clock, folder / "vivado")
    zynq.check_kit(folder / "vivado", net, board)
    if config.bitstream and zynq.vivado() is not None:
        log.info("build: Vivado")
        return zynq.bitstream(folder / "vivado", board)
    remarks.append(
        "no bitstream: Vivado is not on PATH; vivado/build.tcl is ready to run: vivado -mode batch -source build.tcl"
    )
    return None


def _macs(graph: ir.Graph, node: ir.Node) -> int:
    return graph.tensors[node.output].pixels * node.op.weight.size if isinstance(node.op, ir.Conv) else 0


def _rows(
    graph: ir.Graph, net: Netlist, found: fold.Folding, cells: dict[str, synthesize.Cells], labels: dict[str, str]
) -> list[dict[str, Any]]:
    rows = []
    for node in graph.nodes:
        f, t = found.folds[node.name], graph.tensors[node.output]
        cycles = max((i.cycles for i in net.instances if i.layer == node.name), default=0)
        rows.append(
            {
                "name": node.name, "label": labels[node.name], "kind": node.kind, "inputs": list(node.inputs), "shape": list(t.shape), "bits": t.bits,
                "signed": t.signed, "pe": f.pe, "simd": f.simd, "dsp": f.dsp, "cycles": cycles, "macs": _macs(graph, node),
                "cells": asdict(cells[node.name]) if node.name in cells else None,
            }
        )  # fmt: skip
    return rows


def rebuild(folder: Path) -> tuple[ir.Graph, Netlist, dict[str, Any]]:
    """The graph and netlist of a built folder, from its QONNX file and recorded folds. Raises UserError when it is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        folds = {k: fold.Fold(**v) for k, v in record["folds"].items()}
        board = boards.get(record["board"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is no build folder: {RECORD} is missing or damaged; run deploy build again"
        ) from None
    graph = lower(onnxfile.load(folder / QONNX, check=False)).graph
    return graph, assemble(graph, folds, fold.target_of(board), record["depths"]), record


def check_folder(folder: Path, seed: int, arch: str = "") -> list[tuple[str, bool, str]]:
    """Rows for `deploy verify`: the RTL on disk is the design's, and still equals the reference on fresh inputs."""
    graph, net, record = rebuild(folder)
    same = all(
        (folder / "rtl" / n).is_file() and (folder / "rtl" / n).read_text() == t
        for n, t in library.sources(net).items()
    )
    rows = [("RTL on disk is generated from model.qonnx.onnx", same, f"{len(library.sources(net))} files")]
    with tempfile.TemporaryDirectory(prefix="deploy-verify-") as scratch:
        try:
            measured, _ = simulate.verify(graph, net, simulate.random_inputs(graph, 4, seed + 1), Path(scratch), seed)
            rows.append(
                (
                    "RTL equals the integer reference on fresh inputs",
                    True,
                    f"{measured.integers} integers, {measured.interval:.0f} cycles a frame",
                )
            )
        except BoundError as error:
            rows.append(("RTL equals the integer reference on fresh inputs", False, str(error)))
    rows.append(("hash chain of the board package", package.check(folder / "package"), record["hash"]))
    return rows
