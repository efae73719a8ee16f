"""The RTL sources of a design: our own blocks, and FINN's from the installed wheel, patched by rules that match exactly."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import ToolError, UserError
from hw.fpga.netlist import Netlist

RTL = Path(__file__).with_name("rtl")
FINN_VERSION = "1.6.1"


@dataclass(frozen=True)
class Patch:
    """One replacement in a file of finn-rtllib: `old` must occur exactly once."""

    file: str
    old: str
    new: str
    reason: str


_LOADS = """\t\t// Compute the count of decendents for all nodes in the reduction trees.
\t\ttypedef int unsigned  leaf_load_t[2*N-1];
\t\tfunction leaf_load_t init_leaf_loads();
\t\t\tautomatic leaf_load_t  res;
\t\t\tfor(int unsigned  i = 2*N-1; i-- > N-1;)  res[i] = 1;
\t\t\tfor(int unsigned  i =   N-1; i-- >   0;)  res[i] = res[2*i+1] + res[2*i+2];
\t\t\treturn  res;
\t\tendfunction : init_leaf_loads
"""
_LEVELS = "\tlocalparam int unsigned  L = $clog2(N);  // Number of levels with reductions\n"
PATCHES = (
    Patch(
        "mvu/add_multi.sv", _LOADS, "", "a constant function inside a generate block, which Verilator and slang refuse"
    ),
    Patch("mvu/add_multi.sv", _LEVELS, _LEVELS + _LOADS, "the same function, where they take it"),
    Patch(
        "mvu/mvu.sv",
        "\t\t\t#100ns;\n\t\t\tDirty <= 0;",
        "\t\t\t#100ns;\n\t\t\tDirty = 0;",
        "read_slang refuses the delayed assignment",
    ),
    Patch(
        "thresholding/hdl/thresholding.sv",
        "p.ptr[M-1:SN+1] < 2**stage - SCOPE_REDUCE",
        "(p.ptr[M-1:0] >> (SN+1)) < 2**stage - SCOPE_REDUCE",
        "read_slang refuses the empty part-select of the first stage",
    ),
    Patch(
        "mvu/mvu_vvu_axi.sv",
        "/* else */    3 + $clog2(SIMD+1) + (SIMD == 1);",
        "/* else */    3 + $clog2(SIMD) + (SIMD == 1) + 3;",
        "the output queue is shorter than the pipeline: data is lost under back-pressure where MW/SIMD = 1",
    ),
)
INSTANCE = re.compile(r"\b(dp_\w+) #\(\.")  # an instance with parameters; a module's own head has a line break there
NEEDS = {"dp_thresholds": ("thresholding/hdl/thresholding.sv",)}


def finn_rtl() -> Path:
    """The folder finn-rtllib of the installed wheel, found without importing FINN. Raises UserError when it is missing."""
    spec = importlib.util.find_spec("finn")
    folder = Path(spec.origin).parent / "finn-rtllib" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise UserError(
            f"FPGA builds take RTL from finn-plus {FINN_VERSION}, which is not installed; pip install 'deploy-toolchain[fpga]'"
        )
    return folder


def patched(name: str, root: Path | None = None) -> str:
    """A file of finn-rtllib with its patches. Raises ToolError when the file is not the one the patches were made for."""
    path = (root or finn_rtl()) / name
    if not path.is_file():
        raise ToolError(f"finn-plus has no {name} any more; install finn-plus=={FINN_VERSION}", "")
    text = path.read_text()
    for patch in PATCHES:
        if patch.file != name:
            continue
        if text.count(patch.old) != 1:
            raise ToolError(
                f"the RTL of finn-plus has changed: {name} does not hold what is to be patched ({patch.reason}); install finn-plus=={FINN_VERSION}",
                patch.old,
            )
        text = text.replace(patch.old, patch.new)
    return text


def module_files(modules: list[str], root: Path | None = None) -> dict[str, str]:
    """File name -> text of every source that these modules need, in compile order."""
    files: dict[str, str] = {}
    for module in modules:
        for name in NEEDS.get(module, ()):
            files[Path(name).name] = patched(name, root)
        text = (RTL / f"{module.removeprefix('dp_')}.sv").read_text()
        used = [m for m in dict.fromkeys(INSTANCE.findall(text)) if m != module]
        files |= module_files(used, root)
        files[f"{module.removeprefix('dp_')}.sv"] = text
    return files


def sources(net: Netlist) -> dict[str, str]:
    """Every Verilog file of a design: blocks, then layers, the top last."""
    return {**module_files(net.modules()), **net.verilog()}


def digest(files: dict[str, str]) -> str:
    return hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in sorted(files.items())).encode()).hexdigest()


def write(net: Netlist, folder: Path) -> list[Path]:
    """Write a design's Verilog and memory files into a folder; returns the Verilog files in compile order."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, text in sources(net).items():
        (folder / name).write_text(text)
        made.append(folder / name)
    for name, text in net.files.items():
        (folder / name).write_text(text)
    return made
