"""Gate level: the netlist that Yosys mapped to the part, simulated with the cells' models, equals the reference bit for bit.

Block RAM has no model that computes (Yosys' are for timing), so it is mapped to logic here; multipliers stay DSP48E1 on
7-series. For small designs: simulating gates is slow.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from boards.board import Board
from deploy.errors import BoundError, UserError
from hw.fpga import ir, library, memory, reference, synthesize, verilator, words
from hw.fpga.netlist import Netlist, axis_width
from hw.fpga.simulate import STALL, compare

FRAMES = 3
MOST_CELLS = 60_000
NO_MODELS = (
    "Yosys has no models of the UltraScale+ multipliers, so its netlists cannot be simulated; leave --netlist out, or use it with "
    "pynq-z2 or ulx3s-85f"
)


def _share() -> Path:
    spec = importlib.util.find_spec("pyosys")
    if spec is None or spec.origin is None:
        raise UserError("Yosys is missing (package pyosys); pip install 'deploy-toolchain[fpga]'")
    return Path(spec.origin).parent / "share"


def _models(family: str) -> str:
    """Verilog models of the cells, without those for timing only."""
    text = (_share() / ("xilinx/cells_sim.v" if family == "xc7" else "lattice/cells_sim_ecp5.v")).read_text()
    for cell in ("RAMB18E1", "RAMB36E1", "DP16KD"):
        text = re.sub(
            rf"\(\*[^)]*\*\)\s*module {cell}\b.*?endmodule|module {cell}\b.*?endmodule", "", text, flags=re.DOTALL
        )
    return text


def verify(
    graph: ir.Graph, net: Netlist, board: Board, values: Mapping[str, np.ndarray], work: Path, seed: int = 0
) -> int:
    """Integers compared. Raises UserError for parts without models, BoundError when one differs or the netlist is too large."""
    family = synthesize.FAMILIES[board.family]
    if family == "xcup":
        raise UserError(NO_MODELS)
    files = library.write(net, work)
    steps = synthesize.commands([f.name for f in files], "dataflow", family, gates=True)
    synthesize.yosys(work, [*steps, "tee -q -o dataflow.stat stat -json", "write_verilog -noattr gates.v"], "gates")
    cells = synthesize._stat(work / "dataflow.stat")
    if cells.lut + cells.ff > MOST_CELLS:
        raise BoundError(
            f"the netlist has {cells.lut + cells.ff:,} cells; --netlist is for designs up to {MOST_CELLS:,}, leave it out"
        )
    (work / "cells.v").write_text(_models(family))
    run = work / "run"
    run.mkdir()
    if net.stored:
        (run / "memory.bin").write_bytes(memory.image(net))
    program = verilator.compile_sources(
        [work / "gates.v", work / "cells.v"],
        "dataflow",
        verilator.main_source(net),
        work,
        extra=("-Wno-SPECIFYIGN", f"-I{_share() / 'lattice'}"),
    )
    few = {k: v[:FRAMES] for k, v in values.items()}
    want = reference.execute(graph, dict(few))
    found = verilator.simulate(
        program, [words.to_words(few[s.tensor], s) for s in net.inputs], [axis_width(s) for s in net.inputs], [axis_width(s) for s in net.outputs],
        [FRAMES * s.beats for s in net.outputs], run, stall_in=STALL, stall_out=STALL, seed=seed, idle=20_000 + 3 * sum(i.cycles for i in net.instances),
    )  # fmt: skip
    wrong = compare(graph, net, found, want)
    if wrong or found.stuck:
        raise BoundError(f"{wrong} integers of the mapped netlist differ from the reference; report this model")
    return sum(want[o.tensor].size for o in graph.outputs)
