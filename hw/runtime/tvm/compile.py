"""Child process of the TVM runtime: `python -m hw.runtime.tvm.compile MODEL.onnx FOLDER [DATABASE.json]`.

LLVM can take very long over a badly scheduled kernel, or die of it; the parent stops this process then.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from deploy.errors import ToolError
from hw.runtime.tvm.graph import Graph
from hw.runtime.tvm.machine import Machine, host
from hw.runtime.tvm.prepare import prepare
from hw.runtime.tvm.rules.tile import workload
from hw.runtime.tvm.schedule import Kernel, schedule_module
from hw.runtime.tvm.tune import read

REFUSED = "refused: "
PERMIT = Path(__file__).with_name("permit.cpp")
LIBRARY, RECORD = "model.so", "kernels.json"


def lower(model: onnx.ModelProto, machine: Machine) -> tuple[Any, list[Kernel], dict[str, Any]]:
    """The scheduled module, its kernels, and what the import says."""
    from tvm import relax

    graph = Graph(prepare(model), machine)
    module = graph.module()
    with machine.tvm_target():
        for step in (
            relax.transform.FastMathTransform(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.DeadCodeElimination(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ):
            module = step(module)
        module, kernels = schedule_module(module, machine)
    return module, kernels, {"fallbacks": graph.fallbacks}


def pipeline(module: Any) -> Any:
    """What is left of TVM's default pipeline after fusion and scheduling."""
    from tvm import relax, transform

    return transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )(module)


def build(model: onnx.ModelProto, machine: Machine) -> tuple[Any, dict[str, Any]]:
    """The executable and its record."""
    import tvm

    start = time.perf_counter()
    used: set[str] = set()

    def note(kind: str, shapes: tuple[Any, ...], tuned: bool) -> None:
        used.update([workload(kind, shapes)] if tuned else [])

    module, kernels, said = lower(model, replace(machine, asked=note))
    lowered = time.perf_counter()
    executable = tvm.compile(
        module,
        target=machine.tvm_target(),
        relax_pipeline=tvm.transform.module_pass(lambda m, _: pipeline(m), opt_level=0),
    )
    record = {
        "machine": {"name": machine.name, "target": machine.target},
        "tuned_tiles": len(used),
        "kernels": [asdict(k) for k in kernels],
        **said,
        "lower_s": lowered - start,
        "compile_s": time.perf_counter() - lowered,
    }
    return executable, record


def main(source: str, folder: str, database: str = "") -> int:
    machine = host()
    chosen = replace(machine, tiles=read(Path(database), machine)) if database else machine
    try:
        executable, record = build(onnx.load(source), chosen)
    except ToolError as error:
        sys.stderr.write(f"{REFUSED}{error}\n")
        return 3
    executable.export_library(str(Path(folder) / LIBRARY), addons=[str(PERMIT)] if chosen.amx else None)
    (Path(folder) / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
