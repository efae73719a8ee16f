"""Pixels of few channels made into 32-bit numbers: rows to threads, the rest to LLVM."""

from __future__ import annotations

from typing import Any

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules.tile import PARALLEL_WORK, extent

ANCHOR = "pixels"


def schedule(sch: Any, machine: Machine) -> None:
    b, y, x = sch.get_loops(sch.get_sblock(ANCHOR))
    if extent(sch, b) * extent(sch, y) * extent(sch, x) >= PARALLEL_WORK:
        sch.parallel(sch.fuse(b, y))
