"""The processors that standalone folders are made for: TVM's target, the compiler that links, the emulator that proves."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from deploy.errors import UserError
from deploy.tools import Tool
from hw.runtime.tvm.machine import NEON, Machine, host


@dataclass(frozen=True)
class Processor:
    """boards: the boards that carry it. machines: what `uname -m` says on them. flags: of the C++ compiler. emulator: None where the folder runs here."""

    name: str
    machine: Machine
    compiler: Tool
    boards: tuple[str, ...]
    machines: tuple[str, ...]
    flags: tuple[str, ...] = ()
    emulator: tuple[Tool, tuple[str, ...]] | None = None


def _arm(target: dict[str, object], name: str, fma: bool) -> Machine:
    return Machine(name, NEON.lanes, NEON.tile, NEON.large, "", {"kind": "llvm", "mattr": ["+neon"], **target}, fma=fma)


PROCESSORS = (
    Processor(
        "cortex-a53",
        _arm({"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"}, "cortex-a53", True),
        Tool("aarch64-linux-gnu-g++", get="apt-get install g++-aarch64-linux-gnu"),
        ("ultra96", "ultra96-v2"),
        ("aarch64",),
        (),
        (Tool("qemu-aarch64-static", get="apt-get install qemu-user-static"), ("-cpu", "cortex-a53")),
    ),
    Processor(
        "cortex-a9",
        _arm({"mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a9", "mfloat-abi": "hard"}, "cortex-a9", False),
        Tool("arm-linux-gnueabihf-g++", get="apt-get install g++-arm-linux-gnueabihf"),
        ("pynq-z1", "pynq-z2"),
        ("armv7l",),
        ("-mcpu=cortex-a9", "-mfpu=neon"),
        (Tool("qemu-arm-static", get="apt-get install qemu-user-static"), ("-cpu", "cortex-a9")),
    ),
    Processor("host", host(), Tool("g++", get="apt-get install g++"), ("host-cpu",), (platform.machine(),)),
)


def of_board(board: str) -> Processor:
    """The processor of a board. Raises UserError for boards without one."""
    for processor in PROCESSORS:
        if board in (*processor.boards, processor.name):
            return processor
    known = ", ".join(b for p in PROCESSORS for b in p.boards)
    raise UserError(f"--board {board} has no processor that models are compiled for; choose one of {known}")
