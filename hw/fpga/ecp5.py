"""ULX3S and other ECP5 boards: the design with its serial link through Yosys, nextpnr and ecppack to a real bitstream."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from boards.board import Board
from deploy.errors import BoundError, UserError
from deploy.tools import Tool, run
from hw.fpga import library, synthesize
from hw.fpga.netlist import Netlist, axis_width

BAUD = 1_000_000


def tool(name: str) -> Tool:
    """A YoWASP program beside this Python, or on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / f"yowasp-{name}"
    found = str(beside) if beside.is_file() else shutil.which(f"yowasp-{name}") or shutil.which(name) or name
    return Tool(name, get="pip install 'deploy-toolchain[fpga]'", path=found)


def pll(oscillator: float, clock: float) -> tuple[int, int, int]:
    """(CLKI_DIV, CLKFB_DIV, CLKOP_DIV) for a clock. Raises UserError where the PLL cannot make it to 0.1 %."""
    best: tuple[float, tuple[int, int, int]] | None = None
    for div in range(1, 9):
        for feedback in range(1, 81):
            made = oscillator / div * feedback
            if abs(made - clock) > clock * 1e-3:
                continue
            for out in range(2, 129):
                if 400 <= made * out <= 800 and oscillator / div >= 3.125:
                    row = (abs(made - clock) + abs(made * out - 600) * 1e-6, (div, feedback, out))
                    best = min(best, row) if best else row
    if best is None:
        raise UserError(f"the PLL cannot make {clock:g} MHz of {oscillator:g}; take one of 25, 50, 62.5, 100")
    return best[1]


def uart_div(clock: float) -> int:
    """Clock cycles of a serial bit. Raises UserError where that misses the baud rate by more than 2 %."""
    exact = clock * 1e6 / BAUD
    if abs(round(exact) - exact) > 0.02 * exact:
        raise UserError(f"{clock:g} MHz is no multiple of the serial link's {BAUD:,} baud; give --clock in whole MHz")
    return round(exact)


def lpf(board: Board, clock: float) -> str:
    """Pins and clocks in Lattice's form."""
    rows = [
        "BLOCK RESETPATHS;",
        "BLOCK ASYNCPATHS;",
        f'FREQUENCY PORT "clk_25mhz" {board.oscillator_mhz:g} MHZ;',
        f'FREQUENCY NET "clk" {clock:g} MHZ;',
    ]
    for port, site, attributes in board.pins:
        rows += [f'LOCATE COMP "{port}" SITE "{site}";', f'IOBUF PORT "{port}" {attributes};']
    return "\n".join(rows) + "\n"


def top_files(net: Netlist, hash_: str, clock: float, clocking: str) -> tuple[dict[str, str], dict[str, int | str]]:
    """Sources of the board's top (the design is added by the caller) and the top's parameters. clocking: ecp5 or none."""
    if len(net.inputs) != 1 or len(net.outputs) != 1:
        raise UserError("the serial link has one stream in and one out; this model has several inputs or outputs")
    names = (f"clock_{clocking}", "uart", "link", "ulx3s")
    files = {f"{n}.sv": (library.RTL / f"{n}.sv").read_text() for n in names}
    params: dict[str, int | str] = {
        "IN_BYTES": axis_width(net.inputs[0]) // 8,
        "OUT_BYTES": axis_width(net.outputs[0]) // 8,
        "HASH": f"64'h{hash_[:16]}",
        "UART_DIV": uart_div(clock),
    }
    return files, params


def bitstream(
    net: Netlist, board: Board, clock: float, hash_: str, folder: Path, work: Path, seed: int = 0
) -> dict[str, Any]:
    """Synthesize, place, route, pack; returns the record. Raises BoundError when the clock is missed, ToolError when a tool fails."""
    folder.mkdir(parents=True)
    files = [p.name for p in library.write(net, work)]
    extra, params = top_files(net, hash_, clock, "ecp5")
    div, feedback, out = pll(board.oscillator_mhz, clock)
    extra["clock_ecp5.sv"] = extra["clock_ecp5.sv"].replace(
        "CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 24", f"CLKI_DIV = {div}, CLKFB_DIV = {feedback}, CLKOP_DIV = {out}"
    )
    for name, text in extra.items():
        (work / name).write_text(text)
    (work / "board.lpf").write_text(lpf(board, clock))
    steps = synthesize.commands([*extra, *files], "ulx3s", "ecp5")
    generics = " ".join(f"-G {k}={v}" for k, v in params.items())
    steps[0] = steps[0].replace("--top ulx3s", f"--top ulx3s {generics}")
    synthesize.yosys(work, [*steps, "write_json ulx3s.json"], "ulx3s")
    args = ["--" + board.size, "--package", board.package, "--speed", board.speed, "--json", "ulx3s.json", "--lpf", "board.lpf", "--textcfg", "ulx3s.cfg",
            "--report", "report.json", "--seed", str(seed + 1), "--timing-allow-fail"]  # fmt: skip
    seconds = run(
        tool("nextpnr-ecp5"), args, cwd=work, log=folder / "nextpnr.log", outputs=(work / "ulx3s.cfg",), timeout=3600
    )
    report = json.loads((work / "report.json").read_text())
    achieved = min((v["achieved"] for k, v in report["fmax"].items() if v["constraint"] >= clock * 0.99), default=0.0)
    used = {k: v["used"] for k, v in report["utilization"].items() if v["used"]}
    if achieved < clock:
        raise BoundError(
            f"the placed design reaches {achieved:.1f} MHz, not {clock:g} MHz (nextpnr-ecp5); give --clock {int(achieved // 5 * 5)}"
        )
    made, bit = work / "ulx3s.bit", folder / "accelerator.bit"  # the WebAssembly programs see their own folder only
    run(
        tool("ecppack"),
        ["--compress", "--freq", "62.0", "ulx3s.cfg", made.name],
        cwd=work,
        log=folder / "ecppack.log",
        outputs=(made,),
        timeout=600,
    )
    shutil.copy(made, bit)
    (folder / "report.json").write_text(
        json.dumps({"fmax_mhz": achieved, "clock_mhz": clock, "used": used}, indent=1) + "\n"
    )
    return {
        "file": "bitstream/accelerator.bit",
        "bytes": bit.stat().st_size,
        "fmax_mhz": achieved,
        "used": used,
        "seconds": seconds,
        "tool": "nextpnr-ecp5",
    }
