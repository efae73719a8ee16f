"""The build stage's part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boards
from deploy.report.sections import Bars, Flow, Scatter, Section, Table
from hw.fpga.rebuilt import RECORD

FORMS = {"lines": "delay lines", "serial": "serial", "stream": "weights from memory"}


def _layers(record: dict[str, Any]) -> Table:
    rows = []
    finn = record["finn_estimate"]["layers"]
    for r in record["rows"]:
        c = r["cells"] or {}
        rows.append(
            (
                r["label"], r["kind"], "x".join(map(str, r["shape"])), f"{'s' if r['signed'] else 'u'}{r['bits']}", f"{r['pe']} x {r['simd']}" + (f", {FORMS[r['form']]}" if r.get("form") else ""),
                f"{r['cycles']:,}", f"{finn.get(r['name'], 0):,}" if finn.get(r["name"]) else "", c.get("lut", ""), c.get("ff", ""), c.get("dsp", ""), c.get("bram18", ""),
            )
        )  # fmt: skip
    worst = max(record["rows"], key=lambda r: r["cycles"])
    note = (
        f"cycles per frame by construction, FINN's estimate beside; cells: post-synthesis, Yosys, each layer out of context with its FIFOs. "
        f"Bottleneck: {worst['label']} with {worst['cycles']:,} cycles"
    )
    if record["flat"]:
        note += f". In one piece: {record['flat']['lut']:,} LUT against {record['cells']['lut']:,} summed"
    return Table(
        "Layers",
        ("layer", "operator", "output", "bits", "PE x SIMD", "cycles", "FINN's", "LUT", "FF", "DSP", "BRAM18"),
        tuple(rows),
        note,
    )


def _flow(record: dict[str, Any]) -> Flow:
    top = max(r["cycles"] for r in record["rows"])
    boxes = []
    for r in record["rows"]:
        cells = f", {r['cells']['lut']:,} LUT" if r["cells"] else ""
        dsp = f", {r['cells']['dsp']} DSP" if r["cells"] and r["cells"]["dsp"] else ""
        boxes.append(
            (r["name"], f"{r['label']}  {r['kind']}\n{r['cycles']:,} cycles{cells}{dsp}", r["cycles"] / max(top, 1))
        )
    makers = {r["name"]: r["name"] for r in record["rows"]}
    arrows = tuple((makers[t], n) for t, n in record["edges"] if t in makers)
    return Flow("Dataflow", tuple(boxes), arrows, "darker: more cycles per frame; the darkest sets the frame rate")


def _roofline(record: dict[str, Any]) -> Scatter:
    """Where the design stands between the multipliers' limit and the memory's."""
    board = boards.get(record["board"])
    clock = record["clock_mhz"] * 1e6
    peak = board.dsp * 2 * clock  # two packed products per block and cycle
    frame_bytes = record["io_bytes"]
    done = record["macs"] * record["fps"]
    intensity = record["macs"] / max(frame_bytes, 1)
    bandwidth = board.memory_gbs * 1e9
    xs = (intensity / 100, peak / bandwidth, intensity * 10)
    return Scatter(
        "Roofline", (intensity,), (done / 1e9,), ("this design",), "multiply-accumulates per byte of input and output", "GMAC/s",
        (
            ("DDR", (xs[0], xs[1]), (xs[0] * bandwidth / 1e9, peak / 1e9)),
            (f"{board.dsp} multipliers, 2 products each, {record['clock_mhz']:g} MHz", (xs[1], max(xs[2], xs[1] * 2)), (peak / 1e9, peak / 1e9)),
        ),
        f"{_weights(record)}; {done / peak:.0%} of the multipliers' limit (products in logic cells count as well)",
    )  # fmt: skip


def _weights(record: dict[str, Any]) -> str:
    m = record.get("memory")  # builds of an earlier version have none
    if not m or not m["channels"]:
        return "weights stay on the chip"
    rate = m["bits_per_cycle"] * record["clock_mhz"] / 8
    return (
        f"weights of {m['channels']} layers come from memory, {m['frame_bytes'] / 1e6:.2f} MB a frame, {rate:,.0f} MB/s, "
        f"{m['bits_per_cycle'] / m['port_bits']:.0%} of the port; simulated with a memory that answers after 50 to 90 cycles"
    )


def section(folder: Path, manifest: dict[str, Any]) -> Section:
    """Status, speed, resources against the board, layers, the dataflow graph, the roofline."""
    record = json.loads((folder / RECORD).read_text())
    m, clock = record["measured"], record["clock_mhz"]
    parts: list[Any] = [
        Table(
            "Cycles", ("figure", "cycles", "time", "where from"),
            (
                ("steady interval", f"{m['interval']:,.0f}", f"{record['fps']:,.0f} frames/s", "simulated, Verilator"),
                ("predicted interval", f"{m['predicted']:,}", "", "folding search"),
                ("FINN's estimated interval", f"{record['finn_estimate']['interval']:,}", "", "finn-plus get_exp_cycles, largest"),
                ("first frame", f"{m['first_frame']:,}", f"{m['first_frame'] / clock:,.1f} us", "simulated, Verilator"),
                ("FINN's estimated latency", f"{record['finn_estimate']['latency']:,}", "", "finn-plus get_exp_cycles, summed"),
                ("interval under random stalls", f"{m['stalled_interval']:,.0f}", "", "simulated, 30 % stalls on both ends"),
            ),
            f"{m['integers']:,} integers of {m['frames']} frames equal the integer reference, with and without stalls",
        ),
        Table("Status", ("step", "done"), tuple((k, "yes" if v else "no") for k, v in record["status"].items())),
    ]  # fmt: skip
    if record["share"]:
        share = record["share"]
        names = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram18": "BRAM18"}
        parts.append(
            Bars(
                f"Share of {record['part']}",
                tuple(f"{v} {record['cells'][k]:,}" for k, v in names.items()),
                tuple(100 * share[k] for k in names),
                "%",
                mark=100.0,
                note="post-synthesis, Yosys",
            )
        )
    rows = sorted(record["rows"], key=lambda r: -r["cycles"])[:24]
    parts.append(
        Bars(
            "Cycles per frame",
            tuple(f"{r['label']} {r['kind']}" for r in rows),
            tuple(float(r["cycles"]) for r in rows),
            "cycles",
            mark=float(m["interval"]),
            note="the line is the simulated interval",
        )
    )
    if record["accuracy"]:
        a = record["accuracy"]
        parts.append(
            Table(
                "Accuracy",
                ("what", "top-1 %", "samples"),
                (
                    ("RTL (Verilator)", f"{a['rtl_percent']:.2f}", int(a["samples"])),
                    ("integer reference", f"{a['reference_percent']:.2f}", int(a["samples"])),
                ),
            )
        )
    parts += [_flow(record), _layers(record), _roofline(record)]
    facts = [
        ("frames/s", f"{record['fps']:,.0f} at {clock:g} MHz (simulated)"),
        ("latency", f"{m['first_frame'] / clock:,.1f} us"),
    ]
    if record["bitstream"]:
        b = record["bitstream"]
        facts.append(("bitstream", f"{b['bytes']:,} bytes" + (f", {b['fmax_mhz']:.1f} MHz" if "fmax_mhz" in b else "")))
    return Section(
        f"FPGA: {record['board']}",
        "",
        tuple(facts),
        tuple(parts),
        tuple(record["remarks"]),
        {"fps": record["fps"], "status": record["status"], "cells": record["cells"]},
    )
