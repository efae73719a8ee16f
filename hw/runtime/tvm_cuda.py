"""TVM on an NVIDIA GPU: this project's import, TVM's own GPU schedules (dlight), CUDA source compiled on the spot.

Compiled here down to CUDA source (tests/hw/test_tvm_cuda.py); never run: there was no GPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.errors import ToolError
from hw.runtime.base import LayerTime
from hw.runtime.tvm.machine import PLAIN


def target(arch: str) -> Any:
    """TVM's target for a compute capability (`sm_80`)."""
    import tvm

    limits = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
    return tvm.target.Target({"kind": "cuda", "arch": arch, **limits}, host={"kind": "llvm"})


def build(model: onnx.ModelProto, wanted: Any) -> Any:
    """The executable of a model for a CUDA target."""
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    from hw.runtime.tvm.graph import Graph
    from hw.runtime.tvm.prepare import prepare

    module = Graph(prepare(model), PLAIN).module()
    rules = (
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )
    with wanted:
        for step in (
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            dlight.ApplyDefaultSchedule(*rules),
        ):
            module = step(module)
        return tvm.compile(module, target=wanted)


class CudaProgram:
    """A model in TVM's virtual machine on the first GPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import tvm

        self._tvm: Any = tvm
        self._device = tvm.cuda(0)
        capability = str(self._device.compute_version).replace(".", "")
        self._machine = tvm.relax.VirtualMachine(build(model, target(f"sm_{capability}")), self._device)

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        rows = [self._tvm.runtime.tensor(np.ascontiguousarray(v), device=self._device) for v in values]
        result = self._machine["main"](*rows)
        return [r.numpy() for r in ([result] if hasattr(result, "numpy") else result)]

    def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
        """None: kernels of a GPU are not timed one by one."""
        return []


class TvmCudaRuntime:
    name = "tvm-cuda"

    def missing(self) -> str:
        if importlib.util.find_spec("tvm") is None:
            return "TVM is not installed; pip install 'deploy-toolchain[tvm]'"
        import tvm

        return "" if tvm.cuda(0).exist else "TVM finds no CUDA device here: it needs an NVIDIA GPU and its driver"

    def load(self, model: onnx.ModelProto, threads: int, work: Path) -> CudaProgram:
        if self.missing():
            raise ToolError(self.missing())
        return CudaProgram(model)


RUNTIME = TvmCudaRuntime()
