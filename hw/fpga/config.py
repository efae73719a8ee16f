"""Every setting of `deploy build`."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config import argument, option


@dataclass(frozen=True)
class BuildConfig:
    """Settings of an FPGA build."""

    model: str = argument("export folder, or a QONNX file", "")
    output: str = option("build", "folder to write", short="-o", identity=False)
    board: str = option("", "FPGA board (deploy boards lists them)")
    target_fps: float = option(0.0, "frames per second to reach with the least hardware", low=0)
    max_fps: bool = option(False, "the most frames per second that fit the board (default without --target-fps)")
    clock: float = option(0.0, "clock of the design in MHz; default: the board's first", low=0)
    eval: str = option(
        "", "labelled or plain data: real inputs for the simulation (image folder, .npz, pkg.mod:function)"
    )
    frames: int = option(100, "frames of --eval to simulate, at least 2", low=2)
    random_frames: int = option(8, "random frames to simulate as well, over the inputs' whole range", low=2)
    top_k: int = option(
        0, "label select in hardware: send the numbers of the K largest channels, not the scores; 0: scores", low=0
    )
    fifo_depth: int = option(0, "depth of every FIFO; 0: sized by simulation", low=0)
    utilization: bool = option(True, "synthesize with Yosys and check that the design fits")
    flat: bool = option(False, "also synthesize the design in one piece and compare with the sum of its layers")
    netlist: bool = option(False, "also simulate the mapped netlist (small designs on 7-series and ECP5)")
    bitstream: bool = option(
        True, "make the bitstream where a tool for it is found (nextpnr for ECP5, Vivado for Zynq)"
    )
    flow: str = option(
        "rtl", "rtl: this project's; finn: FINN's own build, needs Vivado and Vitis HLS", choices=("rtl", "finn")
    )
    jobs: int = option(2, "processes at once", low=1, identity=False)
    seed: int = option(0, "seed of the random inputs and stalls", low=0, high=2**31)
