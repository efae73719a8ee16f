"""Yosys: what a design costs in cells of the part, layer by layer out of context and as a whole, and its mapped netlist.

Figures are post-synthesis, not post-route. Layers are cached by content, so that a rebuild synthesizes what changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from boards.board import Board
from deploy.artifact import write_file
from deploy.errors import UserError
from deploy.tools import Tool, run
from hw.fpga import library, memory
from hw.fpga.netlist import Netlist

FAMILIES = {"7-series": "xc7", "ultrascale+": "xcup", "ecp5": "ecp5"}
_BRAM = {"RAMB18E1": 1, "RAMB18E2": 1, "RAMB36E1": 2, "RAMB36E2": 2, "DP16KD": 1}
_DSP = {"DSP48E1": 1, "DSP48E2": 1, "MULT18X18D": 1}
_LUTRAM = {
    "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM64X1S": 1, "RAM32X1S": 1,
    "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "SRL16E": 1, "SRLC32E": 1, "TRELLIS_DPR16X4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Cells of a synthesized module. lut: look-up tables with those used as memory (and as carry on ECP5); lutram: the latter's
    share; bram18 in 18-kilobit blocks."""

    lut: int = 0
    ff: int = 0
    dsp: int = 0
    bram18: int = 0
    lutram: int = 0
    carry: int = 0

    def __add__(self, other: Cells) -> Cells:
        return Cells(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def count(cells: dict[str, int]) -> Cells:
    """Yosys' cell types as resources."""
    lut = sum(n for k, n in cells.items() if k in {"LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "INV", "LUT6_2"})
    ff = sum(n for k, n in cells.items() if k.startswith(("FD", "TRELLIS_FF")))
    lutram = sum(n * _LUTRAM[k] for k, n in cells.items() if k in _LUTRAM)
    carry = sum(n for k, n in cells.items() if k.startswith(("CARRY", "CCU2C")))
    on_ecp5 = 2 * cells.get("CCU2C", 0)  # a carry cell takes the place of two LUT4
    return Cells(
        lut + lutram + on_ecp5,
        ff,
        sum(n * _DSP.get(k, 0) for k, n in cells.items()),
        sum(n * _BRAM.get(k, 0) for k, n in cells.items()),
        lutram,
        carry,
    )


def python_tool() -> Tool:
    """This Python, to run Yosys in. Raises UserError when pyosys is missing."""
    if importlib.util.find_spec("pyosys") is None:
        raise UserError("Yosys is missing (package pyosys); pip install 'deploy-toolchain[fpga]'")
    return Tool("yosys", path=sys.executable)


def yosys_version() -> str:
    try:
        return version("pyosys")
    except PackageNotFoundError:
        return ""


def commands(files: list[str], top: str, family: str, *, flatten: bool = True, gates: bool = False) -> list[str]:
    """Yosys commands up to the mapped netlist. Products marked use_dsp="no" stay out of multiplier blocks. `gates` avoids cells
    that have no simulation model (block RAM; on UltraScale+ and ECP5 multipliers too)."""
    first, middle = ("begin:prepare", "prepare:") if family != "ecp5" else ("begin:coarse", "coarse:")
    synth = (
        f"synth_ecp5 -top {top}" if family == "ecp5" else f"synth_xilinx -family {family} -top {top} -noiopad -noclkbuf"
    )
    if family != "ecp5" and flatten:
        synth += " -flatten"
    if family == "ecp5" and not flatten:
        synth += " -noflatten"
    if gates:
        synth += " -nobram" + (" -nodsp" if family != "xc7" else "")
    tables = "" if family == "ecp5" else " -D DP_LUT6"
    return [
        f"read_slang --top {top} -D SYNTHESIS{tables} {' '.join(files)}",
        *(["setattr -unset ram_style -unset rom_style a:ram_style a:rom_style %u"] if gates else []),
        f"{synth} -run {first}",
        "chtype -set $__soft_mul t:$mul a:use_dsp=no %i",
        f"{synth} -run {middle}",
    ]


def yosys(folder: Path, steps: list[str], name: str, timeout: float = 1800) -> None:
    """Run Yosys commands in a folder. Raises ToolError with the last lines of its log."""
    job = folder / f"{name}.job.json"
    job.write_text(json.dumps({"commands": steps}))
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [env.get("PYTHONPATH", "")])])
    run(
        python_tool(),
        ["-m", "hw.fpga.yosys_worker", str(job)],
        cwd=folder,
        log=folder / f"{name}.log",
        timeout=timeout,
        env=env,
    )


def _stat(path: Path) -> Cells:
    text = path.read_text()
    return count(json.loads(text[text.index("{") :])["design"].get("num_cells_by_type", {}))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploy" / "synthesis"


def _cached(path: Path) -> Cells | None:
    """A whole entry of the cache, or None."""
    try:
        row = json.loads(path.read_text())
        return Cells(**row) if set(row) == set(asdict(Cells())) else None
    except (OSError, ValueError, TypeError):
        return None


def synthesize_module(
    net: Netlist, files: list[Path], top: str, family: str, work: Path, key_files: dict[str, str]
) -> tuple[Cells, bool]:
    """Cells of one module with what it instantiates; (cells, from the cache)."""
    rules = "".join((Path(__file__).parent / n).read_text() for n in ("synthesize.py", "yosys_worker.py"))
    key = hashlib.sha256(
        json.dumps(
            [yosys_version(), family, top, library.digest(key_files), commands(["x"], top, family), rules]
        ).encode()
    ).hexdigest()
    cached = cache_folder() / f"{key}.json"
    known = _cached(cached)
    if known is not None:
        return known, True
    steps = [*commands([f.name for f in files], top, family), f"tee -q -o {top}.stat stat -json"]
    yosys(work, steps, top)
    cells = _stat(work / f"{top}.stat")
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_file(cached, json.dumps(asdict(cells)).encode())
    return cells, False


def by_layer(net: Netlist, board: Board, work: Path, jobs: int = 2) -> tuple[dict[str, Cells], int]:
    """Cells of every layer out of context, '' being what joins them and reads memory; how many came from the cache."""
    family = FAMILIES[board.family]
    library.write(net, work)
    texts = library.sources(net)
    found: dict[str, Cells] = {}

    def one(layer: str) -> tuple[str, Cells, bool]:
        modules = list(dict.fromkeys(i.module for i in net.instances if i.layer == layer))
        own = library.module_files(modules)
        text = {f"layer_{layer}.sv": texts[f"layer_{layer}.sv"]}
        used = {n: t for n, t in net.files.items() if n.startswith(f"{layer}_")}
        cells, cached = synthesize_module(
            net, [work / n for n in (*own, *text)], f"layer_{layer}", family, work, {**own, **text, **used}
        )
        return layer, cells, cached

    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(one, net.layers()))
    found = {layer: cells for layer, cells, _ in rows}
    found[""] = _joints(net)
    if net.stored:
        own = {**library.module_files(list(memory.USES)), f"{memory.MODULE}.sv": texts[f"{memory.MODULE}.sv"]}
        cells, _ = synthesize_module(net, [work / n for n in own], memory.MODULE, family, work, own)
        found[""] += cells
    return found, sum(cached for *_, cached in rows)


def _joints(net: Netlist) -> Cells:
    """Forks and the FIFOs at the outputs, too small to synthesize on their own: a LUT and a flip-flop for every copy and word bit."""
    joints = [i for i in net.instances if not i.layer]
    lut = sum(4 * len(i.outputs) if i.module == "dp_fork" else 20 + i.outputs[0].width for i in joints)
    ff = sum(len(i.outputs) if i.module == "dp_fork" else 8 + i.outputs[0].width for i in joints)
    return Cells(lut, ff)


def flat(net: Netlist, board: Board, work: Path) -> Cells:
    """Cells of the whole design in one run."""
    files = library.write(net, work)
    return synthesize_module(
        net, files, "dataflow", FAMILIES[board.family], work, {**library.sources(net), **net.files}
    )[0]


def total(cells: dict[str, Cells]) -> Cells:
    return sum(cells.values(), Cells())
