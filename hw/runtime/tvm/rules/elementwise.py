"""Everything without a reduction: one loop over the result, vectors inside, threads outside."""

from __future__ import annotations

from typing import Any

from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules import reduce
from hw.runtime.tvm.rules.tile import names, spatial

ANCHOR = ""


def matches(sch: Any) -> bool:
    return not reduce.matches(sch)


def schedule(sch: Any, machine: Machine) -> None:
    from tvm.s_tir.schedule import ScheduleError

    for name in names(sch)[:-1]:
        try:
            sch.compute_inline(sch.get_sblock(name))
        except ScheduleError:
            continue
    for name in names(sch):
        spatial(sch, sch.get_sblock(name), machine)
