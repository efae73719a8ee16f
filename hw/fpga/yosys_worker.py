"""Runs Yosys (pyosys) on one job: `python -m hw.fpga.yosys_worker job.json`. A process of its own, because Yosys ends the
process on an error. Yosys' share folder is overlaid, not edited, where this version has a fault."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

XCU_FAULT = 'option "ABITS" 16 {'  # Yosys 0.70: RAM512X1S is 9 address bits wide; synth_xilinx -family xcup stops on it


def share(source: Path, target: Path) -> None:
    """Links to Yosys' share folder, with its UltraScale+ LUT-RAM description corrected."""
    (target / "xilinx").mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "xilinx":
            (target / path.name).symlink_to(path)
    for path in (source / "xilinx").iterdir():
        if path.name == "lutrams_xcu.txt":
            text = path.read_text()
            if XCU_FAULT in text:
                text = text.replace(XCU_FAULT, 'option "ABITS" 9 {').replace("abits 16;", "abits 9;")
            (target / "xilinx" / path.name).write_text(text)
        else:
            (target / "xilinx" / path.name).symlink_to(path)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import pyosys

    with tempfile.TemporaryDirectory() as made:
        overlay = Path(made) / "share"
        share(Path(pyosys.__file__).parent / "share", overlay)
        sys._pyosys_share_dirname = str(overlay) + os.sep  # type: ignore[attr-defined]
        from pyosys import libyosys

        design = libyosys.Design()
        for command in job["commands"]:
            libyosys.run_pass(command, design)


if __name__ == "__main__":
    main()
