"""Apache TVM on the CPU, compiled in a child process with a time limit.

Untuned TVM has no schedules for convolutions here: it is tens of times slower than ONNX Runtime, and the report says so.
4-bit initializers are rewritten to int8 first, which TVM's importer needs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.errors import ToolError
from deploy.tools import Tool, run
from hw.runtime.base import LayerTime

COMPILE_SECONDS = 900
_PYTHON = Tool(sys.executable)


def widen_int4(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which INT4 initializer -> Cast(INT8) is an INT8 initializer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    small = {i.name: i for i in copy.graph.initializer if i.data_type == onnx.TensorProto.INT4}
    renamed: dict[str, str] = {}
    for node in list(copy.graph.node):
        if node.op_type == "Cast" and node.input[0] in small:
            tensor = small[node.input[0]]
            values = numpy_helper.to_array(tensor).astype(np.int8)
            copy.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            renamed[node.output[0]] = node.input[0]
            copy.graph.node.remove(node)
    for name in set(renamed.values()):
        copy.graph.initializer.remove(small[name])
    return copy


class TvmProgram:
    """A compiled library in TVM's virtual machine."""

    def __init__(self, library: Path, threads: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        import tvm
        from tvm import relax

        self._tvm: Any = tvm
        self._vm: Any = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        result = self._vm["main"](*[self._tvm.runtime.tensor(np.ascontiguousarray(v)) for v in values])
        rows = [result] if hasattr(result, "numpy") else list(result)
        return [r.numpy() for r in rows]

    def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
        return []


class TvmRuntime:
    name = "tvm"

    def missing(self) -> str:
        return (
            ""
            if importlib.util.find_spec("tvm") is not None
            else "TVM is not installed; pip install 'deploy-toolchain[tvm]'"
        )

    def load(self, model: onnx.ModelProto, threads: int, work: Path) -> TvmProgram:
        if self.missing():
            raise ToolError(self.missing())
        source, library, log = work / "tvm.onnx", work / "tvm.so", work / "tvm.log"
        source.write_bytes(widen_int4(model).SerializeToString())
        run(
            _PYTHON,
            ["-m", "hw.runtime.tvm_compile", str(source), str(library)],
            cwd=work,
            log=log,
            outputs=(library,),
            timeout=COMPILE_SECONDS,
        )
        return TvmProgram(library, threads)


RUNTIME = TvmRuntime()
