"""dp_rom in look-up tables (what Yosys maps for AMD parts) holds the same words as its memory file, over sizes."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from hw.fpga import library, verilator
from hw.fpga.blocks.base import MOST_PLANES, Target, places, rom
from hw.fpga.netlist import Netlist

SIZES = [(16, 3), (17, 1), (64, 65), (65, 4), (127, 3), (128, 2), (192, 2), (200, 1), (256, 1), (257, 5), (384, 3), (513, 7), (1000, 3), (2000, 1)]  # fmt: skip
MODELS = """
module LUT6 #(parameter logic [63:0] INIT = '0) (output logic O, input logic I0, I1, I2, I3, I4, I5); assign O = INIT[{I5, I4, I3, I2, I1, I0}]; endmodule
module MUXF7 (output logic O, input logic I0, I1, S); assign O = S ? I1 : I0; endmodule
module MUXF8 (output logic O, input logic I0, I1, S); assign O = S ? I1 : I0; endmodule
"""
MAIN = """#include "Vtop.h"
#include <cstdlib>
int main() { Vtop t; for (int i = 0; i < 6000; i++) { t.clk = 0; t.en = rand() % 4 != 0; t.eval(); t.clk = 1; t.eval(); } t.final(); }
"""


def _wrong(work: Path, flip: int) -> tuple[int, int]:
    """(reads, differing reads) of all sizes, both forms side by side; flip: a bit of the first ROM's tables to turn over."""
    text = (library.RTL / "rom.sv").read_text()
    tables = text.split("`ifdef DP_LUT6\n(* blackbox")[0].replace("module dp_rom", "module rom_tables")
    (work / "tables.sv").write_text("`define DP_LUT6\n" + tables + "`undef DP_LUT6\n" + MODELS)
    (work / "rom.sv").write_text(text)
    rng, net, body = random.Random(1), Netlist(), []
    for n, (depth, width) in enumerate(SIZES):
        words = [rng.getrandbits(width) if rng.random() < 0.8 else 0 for _ in range(depth)]
        planes = str(rom(net, f"m{n}.mem", words, width, "lut")["PLANES"])
        if n == 0 and flip >= 0:
            size, digits = planes.split("'h")
            planes = f"{size}'h{int(digits, 16) ^ 1 << flip:x}"
        at = max(1, (depth - 1).bit_length())
        params = f'.DEPTH({depth}), .WIDTH({width}), .FILE("m{n}.mem"), .STYLE("lut"), .PLANES({planes})'
        body.append(
            f"wire [{width - 1}:0] a{n}, b{n}; wire [{at - 1}:0] at{n} = {at}'(i % {depth}); dp_rom #({params}) x{n} (.clk, .en, .at(at{n}), .q(a{n})); "
            f"rom_tables #({params}) y{n} (.clk, .en, .at(at{n}), .q(b{n})); always_ff @(posedge clk) if (i > 2 && a{n} !== b{n}) bad[{n}] <= bad[{n}] + 1;"
        )
    for name, content in net.files.items():
        (work / name).write_text(content)
    (work / "bench.sv").write_text(
        f"module bench (input logic clk, en); int i = 0; int bad [{len(SIZES)}]; int sum;\n"
        + "\n".join(body)
        + '\nalways_ff @(posedge clk) if (en) i <= i + 1;\nfinal begin sum = 0; foreach (bad[k]) sum += bad[k]; $display("reads %0d wrong %0d", i, sum); end endmodule\n'
    )
    program = verilator.compile_sources([work / "rom.sv", work / "tables.sv", work / "bench.sv"], "bench", MAIN, work)
    said = subprocess.run([str(program)], cwd=work, capture_output=True, text=True, check=True).stdout.split()
    return int(said[said.index("reads") + 1]), int(said[said.index("wrong") + 1])


@pytest.mark.parametrize("flip", [-1, 5])
def test_tables_hold_the_file(tmp_path: Path, flip: int) -> None:
    reads, wrong = _wrong(tmp_path, flip)
    assert reads > 4000 and (wrong == 0 if flip < 0 else wrong > 0)


def test_wide_words_are_no_literals() -> None:
    """A literal of a million bits stops Verilator; such a ROM stays a file."""
    for depth, width in ((64, 2048), (16, 4096)):
        assert depth and all(kept != "lut" for kept, *_ in places(depth, width, Target()))
    assert ("lut", 49, 0) in places(58, 49, Target()) and MOST_PLANES > 64 * 49
