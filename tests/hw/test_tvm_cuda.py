"""TVM for a GPU, as far as a computer without one can show it: every kernel gets threads, and the CUDA source is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export import onnxfile
from hw.runtime.tvm_cuda import build, target


def _cuda(module: Any) -> Any:
    if module.kind == "cuda":
        return module
    return next((f for f in map(_cuda, module.imports) if f is not None), None)


def test_a_model_becomes_cuda_source(fashion_run: Path) -> None:
    for file in ("float.onnx", "model.onnx"):
        made = build(onnxfile.load(fashion_run / "export" / file), target("sm_80"))
        source = _cuda(made.mod).inspect_source()
        assert source.count('extern "C" __global__ void') >= 8 and "threadIdx.x" in source
