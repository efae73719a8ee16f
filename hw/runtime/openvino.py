"""OpenVINO on the CPU, in float32 where the file is in float32: by itself it would run in bfloat16 on CPUs that have it, and quantize activations of
weight-only layers; both are switched off. Its telemetry is switched off too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.errors import ToolError
from hw.runtime.base import LayerTime
from hw.runtime.lower import lower

LACKING = ("DFT", "DeformConv")


def quiet() -> Any:
    """The module, imported so that it sends nothing."""
    if "openvino" not in sys.modules:
        kept = sys.modules.get("openvino_telemetry")
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            if kept is None:
                del sys.modules["openvino_telemetry"]
            else:
                sys.modules["openvino_telemetry"] = kept
    import openvino

    return openvino


def _reason(error: RuntimeError) -> str:
    """The line of OpenVINO's message that says what was wrong (the first names a source file)."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip() and not x.startswith("Exception from")]
    return next((x for x in lines if "No conversion rule" in x), lines[0] if lines else "no reason given")[:200]


class OpenVinoProgram:
    """One compiled model. `infer` runs in the calling thread, so that its CPU time is what one thread needs."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        self._ov = quiet()
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,
        }
        stored = {t.name for t in model.graph.initializer}
        self._names = [i.name for i in model.graph.input if i.name not in stored]
        try:
            self._model = self._ov.Core().read_model(model=lower(model, LACKING).SerializeToString())
            self._request = self._compile({})
        except RuntimeError as error:
            raise ToolError(
                f"OpenVINO {self._ov.__version__.split('-')[0]} refuses the model: {_reason(error)}", str(error)
            ) from error
        compiled = self._request.get_compiled_model()
        self._wanted = {name for port in compiled.inputs for name in port.names}
        self._outputs = len(compiled.outputs)

    def _compile(self, more: dict[str, Any]) -> Any:
        return self._ov.Core().compile_model(self._model, "CPU", {**self._settings, **more}).create_infer_request()

    def _feed(self, values: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {n: v for n, v in zip(self._names, values, strict=True) if n in self._wanted}

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        try:
            result = self._request.infer(self._feed(values), share_inputs=True)
        except RuntimeError as error:
            raise ToolError(f"OpenVINO failed while running: {_reason(error)}", str(error)) from error
        return [np.array(result[i]) for i in range(self._outputs)]

    def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
        request = self._compile({"PERF_COUNT": True})
        feed = self._feed(values)
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(repeats + 3):
            request.infer(feed, share_inputs=True)
            for row in request.profiling_info:
                if row.status == self._ov.ProfilingInfo.Status.EXECUTED:
                    times.setdefault((row.node_name, row.exec_type), []).append(row.real_time.total_seconds() * 1e6)
        return [LayerTime(name, kind, float(np.median(rows[3:]))) for (name, kind), rows in times.items()]


class OpenVinoRuntime:
    name = "openvino"

    def missing(self) -> str:
        found = importlib.util.find_spec("openvino") is not None
        return "" if found else "OpenVINO is not installed; pip install 'deploy-toolchain[openvino]'"

    def load(self, model: onnx.ModelProto, threads: int, work: Path) -> OpenVinoProgram:
        if self.missing():
            raise ToolError(self.missing())
        return OpenVinoProgram(model, threads)


RUNTIME = OpenVinoRuntime()
