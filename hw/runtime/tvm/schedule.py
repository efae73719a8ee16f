"""Every kernel of a module through the rule that fits it; what no rule takes is left as plain loops and named."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hw.runtime.tvm import rules
from hw.runtime.tvm.machine import Machine
from hw.runtime.tvm.rules import tile


@dataclass(frozen=True)
class Kernel:
    """One kernel and the rule that scheduled it; `rule` is 'plain loops' where none could, `why` says what stopped the rule."""

    name: str
    rule: str
    why: str = ""


def table() -> tuple[dict[str, ModuleType], list[ModuleType]]:
    """Rules by the block they are for, and those that look at the whole kernel."""
    anchored, shaped = {}, []
    for info in pkgutil.iter_modules(rules.__path__):
        module = importlib.import_module(f"{rules.__name__}.{info.name}")
        if not hasattr(module, "schedule"):
            continue
        if module.ANCHOR:
            anchored[module.ANCHOR] = module
        else:
            shaped.append(module)
    return anchored, shaped


def schedule_kernel(function: Any, machine: Machine) -> tuple[Any, str, str]:
    """The scheduled function, the rule's name and why a rule failed ('' where it did not)."""
    import tvm
    from tvm.s_tir.schedule import ScheduleError

    def fresh() -> Any:
        return tvm.s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))

    anchored, shaped = table()
    try:
        sch = fresh()
        listed = tile.names(sch)
    except (ScheduleError, tvm.error.InternalError, RuntimeError) as error:  # a kernel that is one opaque loop nest
        return function, "plain loops", _line(error)
    found = [anchored[n] for n in listed if n in anchored] + [r for r in shaped if r.matches(sch)]
    why = ""
    for rule in found:
        try:
            sch = fresh()
            rule.schedule(sch, machine)
        except (ScheduleError, tvm.error.InternalError, RuntimeError, IndexError, ValueError) as error:
            why = why or f"{rule.__name__.rsplit('.', 1)[-1]}: {_line(error)}"
            continue
        body = sch.mod["main"]
        return (
            tvm.tirx.PrimFunc(body.params, body.body, body.ret_type, function.attrs),
            rule.__name__.rsplit(".", 1)[-1],
            why,
        )
    return function, "plain loops", why


def _line(error: BaseException) -> str:
    lines = [x for x in str(error).splitlines() if x.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def schedule_module(module: Any, machine: Machine) -> tuple[Any, list[Kernel]]:
    """The module with every PrimFunc scheduled, and the list of what was done."""
    import tvm

    kernels = []
    for symbol, function in list(module.functions.items()):
        if not isinstance(function, tvm.tirx.PrimFunc):
            continue
        made, rule, why = schedule_kernel(function, machine)
        kernels.append(Kernel(symbol.name_hint, rule, why))
        module.update_func(symbol, made)
    return module, kernels
