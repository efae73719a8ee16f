"""Child process: `python -m hw.native.compile MODEL.onnx FOLDER PROCESSOR` writes model.o, plan.txt and weights.bin."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import onnx

from deploy.errors import ToolError
from hw.native import plan
from hw.native.processors import of_board
from hw.runtime.tvm.compile import RECORD, REFUSED, lower

OBJECT, PLAN, WEIGHTS = "model.o", "plan.txt", "weights.bin"


def main(source: str, folder: str, processor: str) -> int:
    import tvm

    place = Path(folder)
    try:
        chosen = of_board(processor)
        module, kernels, said = lower(onnx.load(source), chosen.machine)
        found = plan.make(module)
    except ToolError as error:
        sys.stderr.write(f"{REFUSED}{error}\n")
        return 3
    functions = {
        symbol.name_hint: function.with_attr("global_symbol", symbol.name_hint)
        for symbol, function in module.functions.items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }
    library = tvm.tirx.build(
        tvm.IRModule(functions).with_attrs({"system_lib_prefix": "deploy_"}), target=chosen.machine.tvm_target()
    )
    library.write_to_file(str(place / OBJECT))
    (place / PLAN).write_text(found.text())
    (place / WEIGHTS).write_bytes(bytes(found.weights))
    (place / RECORD).write_text(json.dumps({"kernels": [asdict(k) for k in kernels], **said}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
