"""`deploy native`: what the frame needs to know of this stage. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import UserError
from deploy.stage import Outcome, Requirement, Stage, lazy
from hw.native.config import NativeConfig


def inputs(config: NativeConfig) -> dict[str, Path]:
    if not config.model:
        raise UserError("MODEL is missing: give an export folder, for example: deploy native export --board ultra96-v2")
    return {"model": Path(config.model)}


def plan(config: NativeConfig) -> list[str]:
    return [
        f"compile the kernels of {config.model} for the processor of {config.board}",
        "link them with the runner, lay out weights and arena",
        "run the folder (under qemu where it is for another processor) and compare with this computer's results",
        f"write {config.output}",
    ]


def describe(summary: dict[str, Any], folder: Path) -> Outcome:
    lines = [
        f"{summary['kernels']} kernels, {summary['calls']} calls for {summary['processor']}: program {summary['program_bytes'] / 1e6:.2f} MB, "
        f"weights {summary['weight_bytes'] / 1e6:.2f} MB, arena {summary['arena_bytes'] / 1e6:.2f} MB",
        f"proof ({summary['how']}): {summary['proof']}",
    ]
    return Outcome(tuple(lines), next=f"deploy profile {folder} --remote USER@BOARD")


NATIVE = Stage(
    name="native",
    help="compile a model for a board's processor: a folder that runs there without Python",
    config=NativeConfig,
    inputs=inputs,
    plan=plan,
    run=lazy("hw.native.stage:run_stage"),
    describe=describe,
    section=lazy("hw.native.stage:section"),
    check=lazy("hw.native.stage:check_folder"),
    order=50,
    in_chain=False,
    packages=("onnx", "numpy", "apache-tvm"),
    requirements=(
        Requirement(
            "aarch64-linux-gnu-g++",
            "tool",
            "no folders for Ultra96",
            "apt-get install g++-aarch64-linux-gnu",
            ("--version",),
        ),
        Requirement(
            "arm-linux-gnueabihf-g++",
            "tool",
            "no folders for PYNQ",
            "apt-get install g++-arm-linux-gnueabihf",
            ("--version",),
        ),
        Requirement(
            "qemu-aarch64-static",
            "tool",
            "folders for boards are not proven",
            "apt-get install qemu-user-static",
            ("--version",),
        ),
    ),
)
