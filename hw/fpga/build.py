"""`deploy build` as a stage: pre-flight, lowering, folding, RTL, simulation, utilization, bitstream or vendor kit, package."""

from __future__ import annotations

import json
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from boards.board import Board
from deploy.arch import Preprocess
from deploy.data import Batch, load, top1
from deploy.errors import UserError
from deploy.inputs import InputSpec
from export import onnxfile
from export.stage import QONNX, read_record
from hw.fpga import (
    ecp5,
    finn_estimate,
    fold,
    gates,
    ir,
    library,
    memory,
    package,
    reference,
    simulate,
    synthesize,
    zynq,
)
from hw.fpga.assemble import assemble
from hw.fpga.checks import (
    board_of,
    check_fit,
    check_folding,
    check_speed,
    check_target,
    check_tools,
    interval_of,
    shares,
    tightened,
)  # fmt: skip
from hw.fpga.config import BuildConfig
from hw.fpga.lower import lower
from hw.fpga.lower.problems import refuse
from hw.fpga.netlist import Netlist
from hw.fpga.rebuilt import RECORD

log = logging.getLogger(__name__)
SQUEEZE = 0.95  # of the part's block RAM, by estimate, from which FIFOs are made smaller
RETRIES = 2  # further searches where a design does not fit
STATUS = ("rtl_generated", "rtl_verified", "netlist_verified", "bitstream_built", "tested_on_board")


@dataclass(frozen=True)
class Source:
    """A model to build: its QONNX graph, and how to read data for it."""

    model: onnx.ModelProto
    specs: tuple[InputSpec, ...]
    preprocess: Preprocess
    chain: dict[str, str]


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
    chosen = graph.outputs[0].labels
    if got.ndim > 2 or (got.ndim == 1 and not chosen) or any(b.labels is None for b in batches):
        return None
    labels = np.concatenate([b.labels for b in batches if b.labels is not None])
    first = (lambda y: y.reshape(len(y), -1)[:, 0]) if chosen else top1
    return {
        "samples": float(count),
        "rtl_percent": float((first(got) == labels).mean() * 100),
        "reference_percent": float((first(want) == labels).mean() * 100),
    }


def design(
    graph: ir.Graph,
    board: Board,
    folds: dict[str, fold.Fold],
    config: BuildConfig,
    work: Path,
    interval: int | None = None,
) -> Netlist:
    """The netlist with its FIFOs sized; smaller ones, as fast as asked, where block RAM would not suffice."""
    target = fold.target_of(board)
    if config.fifo_depth:
        net = assemble(graph, folds, target)
        return assemble(graph, folds, target, {i.name: config.fifo_depth for i in net.fifos()})
    log.info("build: sizing FIFOs by simulation")
    depths = simulate.size_fifos(graph, folds, target, work / "size", config.seed)
    net = assemble(graph, folds, target, depths)
    # a fold with weights from memory reckons with its FIFOs already, as large as itself
    blocks = sum(f.bram18 / (2 if f.form == "stream" else 1) for f in folds.values()) + simulate.fifo_blocks(net)
    if blocks > SQUEEZE * board.bram18:
        log.info("build: FIFOs with less block RAM")
        limit = max(interval or 0, 1.02 * simulate.predicted(net))
        small = simulate.squeeze_fifos(graph, folds, target, depths, limit, work / "squeeze", config.seed)
        net = assemble(graph, folds, target, small) if small else net
    return net


@dataclass(frozen=True)
class Proved:
    """A design that was simulated and counted. cached: layers whose cells were known."""

    found: fold.Folding
    net: Netlist
    cells: dict[str, synthesize.Cells]
    cached: int
    measured: simulate.Measured
    outputs: list[np.ndarray]


def _prove(
    graph: ir.Graph, board: Board, found: fold.Folding, interval: int | None, config: BuildConfig, work: Path, values: dict[str, np.ndarray]
) -> Proved:  # fmt: skip
    """The design simulated while Yosys counts its cells. Where it counts more than the part has, the search is run again with
    that much less to spend, at most twice."""
    budget = found.budget
    for again in range(RETRIES + 1):
        net = design(graph, board, found.folds, config, work / f"design{again}", interval)
        with ThreadPoolExecutor(1) as pool:
            counting = None
            if config.utilization:
                log.info("build: synthesizing %d layers", len(net.layers()))
                counting = pool.submit(synthesize.by_layer, net, board, work / f"synthesis{again}", config.jobs)
            log.info("build: simulating %d frames", len(next(iter(values.values()))))
            measured, outputs = simulate.verify(graph, net, values, work / f"verify{again}", config.seed)
            cells, cached = counting.result() if counting else ({}, 0)
        proved = Proved(found, net, cells, cached, measured, outputs)
        tighter = tightened(budget, shares(cells, board)) if cells else None
        if tighter is None or again == RETRIES:
            break
        other = fold.search(graph, board, interval, tighter)
        if other.folds == found.folds:
            break
        log.info("build: more than %s has; folding again", board.name)
        budget, found = tighter, other
    return proved


def run_stage(config: BuildConfig, folder: Path) -> dict[str, Any]:
    """Build `config.model` for `config.board` into `folder`; returns the summary."""
    board = board_of(config)
    source = read_source(Path(config.model))
    clock = config.clock or board.clocks_mhz[0]
    lowered = lower(source.model, config.top_k)
    refuse(lowered.problems, str(config.model))
    graph = lowered.graph
    check_tools(config)
    check_target(config, board, clock, graph)
    interval = interval_of(config, clock)
    found = fold.search(graph, board, interval)
    check_folding(found, graph, interval, board, clock, config.target_fps)
    labels = {n.name: n.label or n.name for n in graph.nodes}
    remarks: list[str] = []
    status = dict.fromkeys(STATUS, False)
    with tempfile.TemporaryDirectory(prefix="deploy-build-") as scratch:
        work = Path(scratch)
        (folder / QONNX).write_bytes(source.model.SerializeToString())
        values, batches = inputs_of(config, source, graph)
        with ThreadPoolExecutor(1) as pool:
            counting = pool.submit(finn_estimate.cycles, graph, found.folds)
            proved = _prove(graph, board, found, interval, config, work, values)
            estimate = counting.result() if proved.found is found else finn_estimate.cycles(graph, proved.found.folds)
        found, net, cells, measured = proved.found, proved.net, proved.cells, proved.measured
        check_speed(measured.interval, interval, clock)
        share = check_fit(cells, board, labels) if cells else None
        library.write(net, folder / "rtl")
        status["rtl_generated"] = status["rtl_verified"] = True
        flat = synthesize.flat(net, board, work / "flat") if config.utilization and config.flat else None
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
        "share": share,
        "accuracy": _accuracy(graph, batches, proved.outputs, values),
        "remarks": remarks,
        "bitstream": bit,
    }
    record = {
        **summary,
        "rows": _rows(graph, net, found, cells, labels),
        "edges": [(t, n.name) for n in graph.nodes for t in n.inputs],
        "cached_layers": proved.cached,
        "flat": asdict(flat) if flat else None,
        "depths": {i.name: i.params["DEPTH"] for i in net.fifos()},
        "folds": {k: asdict(v) for k, v in found.folds.items()},
        "estimate": {"lut": found.lut, "dsp": found.dsp, "bram18": found.bram18},
        "io_bytes": sum(s.beats * s.width / 8 for s in (*net.inputs, *net.outputs))
        + _memory(net, measured)["frame_bytes"],
        "memory": _memory(net, measured),
        "macs": sum(_macs(graph, n) for n in graph.nodes),
        "top_k": config.top_k,
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


def _memory(net: Netlist, measured: simulate.Measured) -> dict[str, float]:
    """Constants from memory off the chip: channels, bytes of the image, bytes read a frame, bits a cycle of a port of so many."""
    read = sum(s.stream.beats * s.word_bits / 8 for s in net.stored)
    return {
        "channels": len(net.stored), "image_bytes": len(memory.image(net)), "frame_bytes": read,
        "bits_per_cycle": 8 * read / measured.interval, "port_bits": net.port_bits if net.stored else 0,
    }  # fmt: skip


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
                "signed": t.signed, "pe": f.pe, "simd": f.simd, "dsp": f.dsp, "form": f.form, "cycles": cycles, "macs": _macs(graph, node),
                "cells": asdict(cells[node.name]) if node.name in cells else None,
            }
        )  # fmt: skip
    return rows
