"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from deploy.errors import ToolError
from hw.runtime.base import LayerTime
from hw.runtime.lower import lower
from hw.runtime.lower.dft import wrong_in_ort

FAILURES = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
)
MAPPED = 32 << 20  # bytes of a model from which its weights are mapped
_CPU = ("CPUExecutionProvider",)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class OrtProgram:
    """One session; the serialized model, or the file that it is in, is kept for profiling sessions."""

    def __init__(self, data: bytes | str, threads: int, work: Path, providers: Sequence[str] = _CPU) -> None:
        self._data, self._threads, self._work, self._wanted = data, threads, work, list(providers)
        try:
            self._session = ort.InferenceSession(data, _options(threads), providers=self._wanted)
        except FAILURES as error:
            raise ToolError(
                f"ONNX Runtime {ort.__version__} refuses the model: {str(error).splitlines()[0][:200]}", str(error)
            ) from error
        self.providers = self._session.get_providers()
        self._names = [i.name for i in self._session.get_inputs()]

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return list(self._session.run(None, dict(zip(self._names, values, strict=True))))
        except FAILURES as error:
            raise ToolError(
                f"ONNX Runtime {ort.__version__} failed while running: {str(error).splitlines()[0][:200]}", str(error)
            ) from error

    def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
        options = _options(self._threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._work / "ort")
        session = ort.InferenceSession(self._data, options, providers=self._wanted)
        feed = dict(zip(self._names, values, strict=True))
        for _ in range(repeats + 3):
            session.run(None, feed)
        file = Path(session.end_profiling())
        times: dict[str, list[float]] = {}
        ops: dict[str, str] = {}
        for event in json.loads(file.read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times.setdefault(name, []).append(float(event["dur"]))
                ops[name] = event["args"]["op_name"]
        file.unlink()
        return [LayerTime(n, ops[n], float(np.median(t[3:]))) for n, t in times.items()]


def mapped(model: onnx.ModelProto, work: Path) -> str:
    """A file in `work` whose weights are beside it: ONNX Runtime maps them into memory instead of copying them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = Path(tempfile.mkdtemp(dir=work)) / "mapped.onnx"  # never the file that another session has mapped
    onnx.save_model(copy, path, save_as_external_data=True, location="mapped.bin", size_threshold=4096)
    return str(path)


class OrtRuntime:
    name = "onnxruntime"

    def missing(self) -> str:
        return ""

    def load(self, model: onnx.ModelProto, threads: int, work: Path) -> OrtProgram:
        if any(wrong_in_ort(n) for n in model.graph.node):
            model = lower(model, ("DFT",))
        return OrtProgram(
            mapped(model, work) if model.ByteSize() > MAPPED else model.SerializeToString(), threads, work
        )


RUNTIME = OrtRuntime()
