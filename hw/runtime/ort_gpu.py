"""ONNX Runtime on a GPU: the CUDA and TensorRT execution providers.

ONNX Runtime itself only warns and runs on the CPU where a provider is missing; here that is refused in one sentence.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from deploy.errors import ToolError
from hw.runtime.ort import OrtProgram


class GpuRuntime:
    """One execution provider."""

    def __init__(self, name: str, provider: str) -> None:
        self.name, self.provider = name, provider

    def missing(self) -> str:
        import onnxruntime as ort

        if self.provider in ort.get_available_providers():
            return ""
        return f"ONNX Runtime here has no {self.provider}: it needs an NVIDIA GPU and pip install onnxruntime-gpu"

    def load(self, model: onnx.ModelProto, threads: int, work: Path) -> OrtProgram:
        if self.missing():
            raise ToolError(self.missing())
        program = OrtProgram(model.SerializeToString(), threads, work, [self.provider, "CPUExecutionProvider"])
        if self.provider not in program.providers:
            raise ToolError(f"ONNX Runtime could not start {self.provider}: there is no usable NVIDIA GPU here")
        return program


RUNTIMES = (GpuRuntime("cuda", "CUDAExecutionProvider"), GpuRuntime("tensorrt", "TensorrtExecutionProvider"))
