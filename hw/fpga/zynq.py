"""Zynq boards: a Vivado build that needs no Vitis HLS (processor system, AXI DMA, the design), and its check without Vivado.

The Tcl is ours. Without Vivado it is executed by tclsh against a stand-in for Vivado's commands that checks every file, cell,
pin, property and connection against the generated design (vivado_standin.tcl beside this file).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from boards.board import Board
from deploy.errors import ToolError, UserError
from deploy.tools import Tool, run
from hw.fpga import library
from hw.fpga.netlist import Netlist, axis_width

STANDIN = Path(__file__).with_name("vivado_standin.tcl")
MOST_DMA_BITS = 1024


def vivado() -> str | None:
    return shutil.which("vivado")


def dma_bits(bits: int) -> int:
    """Width of a DMA stream that holds a beat: a power of two of bytes. Raises UserError beyond what AXI DMA has."""
    width = 8
    while width < bits:
        width *= 2
    if width > MOST_DMA_BITS:
        raise UserError(f"a beat of {bits} bits is wider than an AXI DMA stream ({MOST_DMA_BITS}); lower --target-fps")
    return width


def wrapper(net: Netlist) -> str:
    """accelerator.v: plain Verilog (what Vivado's block designs take), ports named so that AXI-Stream is inferred."""
    if len(net.inputs) != 1 or len(net.outputs) != 1:
        raise UserError(
            "the Zynq design has one DMA in and one out; this model has several inputs or outputs, build it for simulation with --no-bitstream on ulx3s-85f"
        )
    i, o = net.inputs[0], net.outputs[0]
    ports, pins, fixed = _memory_ports(net) if net.stored else ("", "", "")
    bus = "s_axis:m_axis:m_axi" if net.stored else "s_axis:m_axis"
    wi, wo, di, do = axis_width(i), axis_width(o), dma_bits(axis_width(i)), dma_bits(axis_width(o))
    return f"""module accelerator (
  (* X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF {bus}, ASSOCIATED_RESET aresetn" *)
  input  wire aclk,
  input  wire aresetn,
  input  wire [{di - 1}:0] s_axis_tdata,
  input  wire s_axis_tvalid,
  input  wire s_axis_tlast,
  output wire s_axis_tready,
  output wire [{do - 1}:0] m_axis_tdata,
  output wire m_axis_tvalid,
  output wire m_axis_tlast,
  output wire [{do // 8 - 1}:0] m_axis_tkeep,
{ports}  input  wire m_axis_tready
);
  wire [{wi - 1}:0] in_tdata;
  wire [{wo - 1}:0] out_tdata;
  wire in_tvalid, in_tready, out_tvalid, out_tready, out_tlast;
{fixed}  assign m_axis_tkeep = {{{do // 8}{{1'b1}}}};
  dp_frames #(.IN({wi}), .IN_BEATS({i.beats}), .DMA_IN({di}), .OUT({wo}), .DMA_OUT({do})) frames (
    .clk(aclk), .rst_n(aresetn), .s_tdata(s_axis_tdata), .s_tvalid(s_axis_tvalid), .s_tlast(s_axis_tlast), .s_tready(s_axis_tready),
    .in_tdata(in_tdata), .in_tvalid(in_tvalid), .in_tready(in_tready),
    .out_tdata(out_tdata), .out_tvalid(out_tvalid), .out_tlast(out_tlast), .out_tready(out_tready),
    .m_tdata(m_axis_tdata), .m_tvalid(m_axis_tvalid), .m_tlast(m_axis_tlast), .m_tready(m_axis_tready)
  );
  dataflow design_i (
    .clk(aclk), .rst_n(aresetn),{pins}
    .s_axis_0_tdata(in_tdata), .s_axis_0_tvalid(in_tvalid), .s_axis_0_tready(in_tready),
    .m_axis_0_tdata(out_tdata), .m_axis_0_tvalid(out_tvalid), .m_axis_0_tready(out_tready), .m_axis_0_tlast(out_tlast)
  );
endmodule
"""


def _memory_ports(net: Netlist) -> tuple[str, str, str]:
    """(ports of the wrapper, pins of the design, fixed signals) of constants in memory: an AXI4 read port, and a register with
    the address of their image (a multiple of 4,096) whose bit 0 says that it is there."""
    size = (net.port_bits // 8 - 1).bit_length()
    ports = f"""  input  wire [31:0] image,
  output wire [39:0] m_axi_araddr,
  output wire [7:0] m_axi_arlen,
  output wire [2:0] m_axi_arsize,
  output wire [1:0] m_axi_arburst,
  output wire [3:0] m_axi_arcache,
  output wire [2:0] m_axi_arprot,
  output wire m_axi_arvalid,
  input  wire m_axi_arready,
  input  wire [{net.port_bits - 1}:0] m_axi_rdata,
  input  wire [1:0] m_axi_rresp,
  input  wire m_axi_rlast,
  input  wire m_axi_rvalid,
  output wire m_axi_rready,
"""
    names = ("araddr", "arlen", "arvalid", "arready", "rdata", "rlast", "rvalid", "rready")
    bus = ", ".join(f".m_axi_{n}(m_axi_{n})" for n in names)
    fixed = f".base({{8'b0, image[31:12], 12'b0}}), .go(image[0]), {bus},"
    constants = f"  assign m_axi_arsize = 3'd{size}; assign m_axi_arburst = 2'b01; assign m_axi_arcache = 4'b0011; assign m_axi_arprot = 3'b000;\n"
    return ports, f"\n    {fixed}", constants


_PS = {
    "processing_system7": {
        "cell": "processing_system7",
        "config": "CONFIG.PCW_USE_S_AXI_HP0 {1} CONFIG.PCW_USE_M_AXI_GP0 {1} CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ {@CLOCK@} CONFIG.PCW_EN_CLK0_PORT {1} CONFIG.PCW_EN_RST0_PORT {1}",
        "clock": "FCLK_CLK0", "reset": "FCLK_RESET0_N", "master": "M_AXI_GP0", "slave": "S_AXI_HP0",
        "clocked": ("M_AXI_GP0_ACLK", "S_AXI_HP0_ACLK"),
        "second": ("CONFIG.PCW_USE_S_AXI_HP1 {1}", "S_AXI_HP1", "S_AXI_HP1_ACLK"),
        "external": "make_bd_intf_pins_external [get_bd_intf_pins ps/DDR] [get_bd_intf_pins ps/FIXED_IO]",
    },
    "zynq_ultra_ps_e": {
        "cell": "zynq_ultra_ps_e",
        "config": "CONFIG.PSU__USE__M_AXI_GP0 {1} CONFIG.PSU__USE__M_AXI_GP1 {0} CONFIG.PSU__USE__M_AXI_GP2 {0} CONFIG.PSU__USE__S_AXI_GP2 {1} CONFIG.PSU__SAXIGP2__DATA_WIDTH {128} "
        "CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ {@CLOCK@} CONFIG.PSU__FPGA_PL0_ENABLE {1}",
        "clock": "pl_clk0", "reset": "pl_resetn0", "master": "M_AXI_HPM0_FPD", "slave": "S_AXI_HP0_FPD",
        "clocked": ("maxihpm0_fpd_aclk", "saxihp0_fpd_aclk"),
        "second": ("CONFIG.PSU__USE__S_AXI_GP3 {1} CONFIG.PSU__SAXIGP3__DATA_WIDTH {128}", "S_AXI_HP1_FPD", "saxihp1_fpd_aclk"),
        "external": "",
    },
}  # fmt: skip


def build_tcl(net: Netlist, board: Board, clock: float) -> str:
    """The Vivado script: from an empty folder to accelerator.bit and accelerator.hwh beside it."""
    ps: dict[str, Any] = _PS[board.ps]
    di, do = dma_bits(axis_width(net.inputs[0])), dma_bits(axis_width(net.outputs[0]))
    memory = max(32, min(board.port_bits, 1 << (max(di, do) - 1).bit_length()))
    files = list(library.sources(net))
    stored = bool(net.stored)
    extra, slave, clock_pin = ps["second"]
    settings = ps["config"].replace("@CLOCK@", f"{clock:g}") + (f" {extra}" if stored else "")
    lines = [
        f"# Builds accelerator.bit and accelerator.hwh for {board.name} ({board.part}): vivado -mode batch -source build.tcl",
        "set here [file dirname [file normalize [info script]]]",
        f"create_project -force accelerator $here/project -part {board.part}",
        *(f"add_files -norecurse $here/../rtl/{name}" for name in files),
        *(f"add_files -norecurse $here/../rtl/{name}" for name in net.files),
        *(
            f"set_property file_type {{Memory Initialization Files}} [get_files $here/../rtl/{name}]"
            for name in net.files
        ),
        "add_files -norecurse $here/frames.sv",
        "add_files -norecurse $here/accelerator.v",
        "update_compile_order -fileset sources_1",
        "create_bd_design system",
        f"create_bd_cell -type ip -vlnv xilinx.com:ip:{ps['cell']} ps",
        f"set_property -dict [list {settings}] [get_bd_cells ps]",
        *([ps["external"]] if ps["external"] else []),
        "create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dma dma",
        f"set_property -dict [list CONFIG.c_include_sg {{0}} CONFIG.c_sg_length_width {{26}} CONFIG.c_m_axi_mm2s_data_width {{{max(memory, di)}}} CONFIG.c_m_axis_mm2s_tdata_width {{{di}}} "
        f"CONFIG.c_m_axi_s2mm_data_width {{{max(memory, do)}}} CONFIG.c_mm2s_burst_size {{16}} CONFIG.c_s2mm_burst_size {{16}}] [get_bd_cells dma]",
        "create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control",
        f"set_property -dict [list CONFIG.NUM_SI {{1}} CONFIG.NUM_MI {{{1 + stored}}}] [get_bd_cells control]",
        "create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect memory",
        "set_property -dict [list CONFIG.NUM_SI {2} CONFIG.NUM_MI {1}] [get_bd_cells memory]",
        "create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset",
        "create_bd_cell -type module -reference accelerator accelerator",
    ]
    if stored:  # constants in memory: a port of their own, and a register with their address
        lines += [
            "create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect constants",
            "set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {1}] [get_bd_cells constants]",
            "create_bd_cell -type ip -vlnv xilinx.com:ip:axi_gpio image",
            "set_property -dict [list CONFIG.C_GPIO_WIDTH {32} CONFIG.C_ALL_OUTPUTS {1}] [get_bd_cells image]",
        ]
    of_stored = [
        ("control/M01_AXI", "image/S_AXI"),
        ("accelerator/m_axi", "constants/S00_AXI"),
        ("constants/M00_AXI", f"ps/{slave}"),
    ]
    for a, b in (
        (f"ps/{ps['master']}", "control/S00_AXI"), ("control/M00_AXI", "dma/S_AXI_LITE"), ("dma/M_AXI_MM2S", "memory/S00_AXI"),
        ("dma/M_AXI_S2MM", "memory/S01_AXI"), ("memory/M00_AXI", f"ps/{ps['slave']}"),
        ("dma/M_AXIS_MM2S", "accelerator/s_axis"), ("accelerator/m_axis", "dma/S_AXIS_S2MM"), *(of_stored if stored else []),
    ):  # fmt: skip
        lines.append(f"connect_bd_intf_net [get_bd_intf_pins {a}] [get_bd_intf_pins {b}]")
    clocked = [f"ps/{p}" for p in ps["clocked"]]
    clocked += [
        "dma/s_axi_lite_aclk",
        "dma/m_axi_mm2s_aclk",
        "dma/m_axi_s2mm_aclk",
        "control/aclk",
        "memory/aclk",
        "reset/slowest_sync_clk",
        "accelerator/aclk",
    ]
    if stored:
        clocked += [f"ps/{clock_pin}", "constants/aclk", "image/s_axi_aclk"]
        lines.append("connect_bd_net [get_bd_pins image/gpio_io_o] [get_bd_pins accelerator/image]")
    lines += [f"connect_bd_net [get_bd_pins ps/{ps['clock']}] [get_bd_pins {pin}]" for pin in clocked]
    lines.append(f"connect_bd_net [get_bd_pins ps/{ps['reset']}] [get_bd_pins reset/ext_reset_in]")
    lines += [
        f"connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins {pin}]"
        for pin in (
            "dma/axi_resetn",
            "control/aresetn",
            "memory/aresetn",
            "accelerator/aresetn",
            *(("constants/aresetn", "image/s_axi_aresetn") if stored else ()),
        )
    ]
    lines += [
        "assign_bd_address",
        "validate_bd_design",
        "save_bd_design",
        "make_wrapper -files [get_files system.bd] -top -import",
        "set_property top system_wrapper [current_fileset]",
        "update_compile_order -fileset sources_1",
        "launch_runs impl_1 -to_step write_bitstream -jobs 2",
        "wait_on_run impl_1",
        'if {[get_property PROGRESS [get_runs impl_1]] != "100%"} { error "implementation failed" }',
        "open_run impl_1",
        'if {[get_property SLACK [get_timing_paths]] < 0} { error "timing is not met" }',
        "report_utilization -file $here/utilization.rpt",
        "report_timing_summary -file $here/timing.rpt",
        "file copy -force $here/project/accelerator.runs/impl_1/system_wrapper.bit $here/accelerator.bit",
        "file copy -force [lindex [glob $here/project/accelerator.gen/sources_1/bd/system/hw_handoff/system.hwh] 0] $here/accelerator.hwh",
    ]
    return "\n".join(lines) + "\n"


def write_kit(net: Netlist, board: Board, clock: float, folder: Path) -> None:
    """Everything for Vivado beside ../rtl: build.tcl, accelerator.v, frames.sv."""
    folder.mkdir(parents=True)
    (folder / "accelerator.v").write_text(wrapper(net))
    (folder / "frames.sv").write_text((library.RTL / "frames.sv").read_text())
    (folder / "build.tcl").write_text(build_tcl(net, board, clock))


def check_kit(folder: Path, net: Netlist, board: Board) -> None:
    """Execute build.tcl under tclsh against the stand-in. Raises ToolError with what is wrong; does nothing without tclsh."""
    if shutil.which("tclsh") is None:
        return
    di, do = dma_bits(axis_width(net.inputs[0])), dma_bits(axis_width(net.outputs[0]))
    facts = {"part": board.part, "ps": board.ps, "in": di, "out": do, "constants": net.port_bits if net.stored else 0}
    log = folder.parent / "vivado-check.log"
    args = [str(STANDIN), str(folder / "build.tcl"), *(f"{k}={v}" for k, v in facts.items())]
    try:
        run(Tool("tclsh", get="apt-get install tcl"), args, cwd=folder, log=log, timeout=60)
    except ToolError as error:
        raise ToolError("the Vivado script does not match the design", error.log) from None
    log.unlink()


def bitstream(folder: Path, board: Board) -> dict[str, Any]:
    """Run Vivado on the kit. Raises ToolError when it fails or timing is not met."""
    tool = Tool("vivado", ("-version",), get="install AMD Vivado")
    bit, hwh = folder / "accelerator.bit", folder / "accelerator.hwh"
    seconds = run(
        tool,
        ["-mode", "batch", "-source", "build.tcl"],
        cwd=folder,
        log=folder / "vivado.log",
        outputs=(bit, hwh),
        timeout=4 * 3600,
    )
    return {"file": "vivado/accelerator.bit", "bytes": bit.stat().st_size, "seconds": seconds, "tool": "vivado"}
