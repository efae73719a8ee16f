"""FINN's RTL of the installed wheel: the fault of its matrix-vector unit, and the patches that must match exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import one_node, prove

from deploy.errors import ToolError
from hw.fpga import finn_estimate, ir, library, verilator
from hw.fpga.assemble import layer_of
from hw.fpga.blocks import blocks
from hw.fpga.blocks.base import Target
from hw.fpga.netlist import Netlist, Stream

WORDS = 4000
DUT = """module dut (input logic clk, rst_n, input logic [7:0] s_axis_0_tdata, input logic s_axis_0_tvalid, output logic s_axis_0_tready,
  output logic [15:0] m_axis_0_tdata, output logic m_axis_0_tvalid, input logic m_axis_0_tready);
  mvu_vvu_axi #(.IS_MVU(1), .VERSION(1), .PUMPED_COMPUTE(0), .MW(1), .MH(1), .PE(1), .SIMD(1), .ACTIVATION_WIDTH(4), .WEIGHT_WIDTH(4), .ACCU_WIDTH(16),
    .NARROW_WEIGHTS(1), .SIGNED_ACTIVATIONS(0), .SEGMENTLEN(1)) core (
    .ap_clk(clk), .ap_clk2x(clk), .ap_rst_n(rst_n), .s_axis_weights_tdata(8'd3), .s_axis_weights_tvalid(1'b1), .s_axis_weights_tready(),
    .s_axis_input_tdata(s_axis_0_tdata), .s_axis_input_tvalid(s_axis_0_tvalid), .s_axis_input_tready(s_axis_0_tready),
    .m_axis_output_tdata(m_axis_0_tdata), .m_axis_output_tvalid(m_axis_0_tvalid), .m_axis_output_tready(m_axis_0_tready));
endmodule
"""


def _finn_mvu(work: Path, fixed: bool) -> int:
    """Results of FINN's unit (weight 3, one input per result) that are lost or wrong while its reader stalls."""
    work.mkdir()
    files = []
    for name in ("mvu_pkg", "replay_buffer", "add_multi", "mvu", "mvu_vvu_8sx9_dsp58", "mvu_vvu_axi"):
        text = (library.finn_rtl() / "mvu" / f"{name}.sv").read_text()
        text = library.patched(f"mvu/{name}.sv") if fixed or name != "mvu_vvu_axi" else text
        (work / f"{name}.sv").write_text(text)
        files.append(work / f"{name}.sv")
    (work / "dut.sv").write_text(DUT)
    net = Netlist(inputs=[Stream("s", 1, 8, False, WORDS)], outputs=[Stream("m", 1, 16, True, WORDS)])
    program = verilator.compile_sources(
        [*files, work / "dut.sv"], "dut", verilator.main_source(net), work, extra=("--no-assert",)
    )
    values = [int(v) for v in np.random.default_rng(0).integers(0, 16, WORDS)]
    run = verilator.simulate(program, [values], [8], [16], [WORDS], work, stall_out=0.75, seed=4, idle=2000)
    got = run.words[0]
    return WORDS - len(got) + sum(g != 3 * v for g, v in zip(got, values, strict=False))


def test_finn_unit_loses_results_under_back_pressure(tmp_path: Path) -> None:
    assert _finn_mvu(tmp_path / "wheel", fixed=False) > 0
    assert _finn_mvu(tmp_path / "patched", fixed=True) == 0


def test_ours_does_not(tmp_path: Path) -> None:
    """The same form in what we ship: one result per cycle, stalled reader."""
    graph = one_node(ir.Conv(np.full((1, 1, 1, 1), 3), ir.Window(), 1, 4), ir.Tensor((20, 50, 1), 0, 15))
    (fold,) = [f for f in blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), Target()) if not f.dsp]
    prove(graph, {"y": fold}, Target(), tmp_path, frames=4)


def test_changed_wheel_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "finn-rtllib"
    shutil.copytree(library.finn_rtl() / "thresholding", root / "thresholding")
    file = root / "thresholding" / "hdl" / "thresholding.sv"
    file.write_text(file.read_text().replace("SCOPE_REDUCE", "SCOPE_LESS"))
    with pytest.raises(
        ToolError, match=r"RTL of finn-plus has changed: thresholding/hdl/thresholding.sv .*install finn-plus==1.6.1"
    ):
        library.patched("thresholding/hdl/thresholding.sv", root)
    file.unlink()
    with pytest.raises(ToolError, match=r"no thresholding/hdl/thresholding.sv any more"):
        library.patched("thresholding/hdl/thresholding.sv", root)


def test_every_patch_applies() -> None:
    for patch in library.PATCHES:
        assert patch.new in library.patched(patch.file)


def test_finn_estimates_its_own_nodes() -> None:
    x = ir.Tensor((8, 8, 4), 0, 15)
    weight = np.random.default_rng(0).integers(-7, 8, (6, 3, 3, 4))
    graph = one_node(ir.Conv(weight, ir.Window((3, 3), pads=(1, 1, 1, 1)), 1, 4), x)
    fold = next(
        f
        for f in blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), Target())
        if (f.pe, f.simd, f.dsp) == (2, 2, True)
    )
    found = finn_estimate.cycles(graph, {"y": fold})
    assert found["layers"]["y"] == max(64 * 9 * 2 * 3, 0) == fold.cycles
