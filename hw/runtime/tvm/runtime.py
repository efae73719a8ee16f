"""The runtime: a child process compiles, with a time limit; this process loads the library and runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.errors import ToolError, UserError
from deploy.tools import Tool, run
from hw.runtime.base import LayerTime
from hw.runtime.tvm.machine import AMX, tiles_granted

COMPILE_SECONDS = 300
TUNE_GRACE = 120  # import, and the kernel that is being timed when the time is up
_PYTHON = Tool(sys.executable)


def fixed(model: onnx.ModelProto, shapes: list[tuple[int, ...]]) -> onnx.ModelProto:
    """A copy whose inputs have these shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value, shape in zip(_inputs(copy), shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise UserError(f"the model's input {value.name!r} has {len(dims)} axes, the data {len(shape)}")
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = size
    del copy.graph.value_info[:]
    return copy


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in stored]


def open_shapes(model: onnx.ModelProto) -> bool:
    """Whether an input has a dimension without a number. Raises UserError where even the number of dimensions is open."""
    for value in _inputs(model):
        if not value.type.tensor_type.HasField("shape"):
            raise UserError(f"TVM: the model's input {value.name!r} has no shape; give it one")
    return any(d.dim_value < 1 for i in _inputs(model) for d in i.type.tensor_type.shape.dim)


def compile_library(model: onnx.ModelProto, work: Path, database: str = "") -> tuple[Path, dict[str, Any]]:
    """The library of a model for this machine, and the record of its kernels. Raises ToolError with the child's last lines."""
    from hw.runtime.tvm.compile import LIBRARY, RECORD, REFUSED

    if not any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if c):
        raise ToolError("TVM needs a C++ compiler to link what it compiled; apt-get install g++")
    source, log = work / "tvm.onnx", work / "tvm.log"
    source.write_bytes(model.SerializeToString())
    try:
        run(
            _PYTHON,
            ["-m", "hw.runtime.tvm.compile", str(source), str(work), *([database] if database else [])],
            cwd=work,
            log=log,
            outputs=(work / LIBRARY, work / RECORD),
            timeout=COMPILE_SECONDS,
        )
    except ToolError as error:
        said = [x.removeprefix(REFUSED) for x in error.log.splitlines() if x.startswith(REFUSED)]
        raise ToolError(said[-1] if said else f"TVM could not compile the model: {error}", error.log) from error
    return work / LIBRARY, json.loads((work / RECORD).read_text())


_THREADS = [0]


def use_threads(count: int) -> None:
    """Threads of TVM's pool, which belongs to the process: programs with different numbers of threads take turns."""
    import tvm

    if _THREADS[0] != count:
        tvm.get_global_func("runtime.config_threadpool")(1, count)
        _THREADS[0] = count


class TvmProgram:
    """A compiled library in TVM's virtual machine. A model with open dimensions is compiled once for every shape that arrives."""

    def __init__(
        self, model: onnx.ModelProto, threads: int, work: Path, database: str = "", library: Path | None = None
    ) -> None:
        # before TVM's first call: without these it takes half of the cores, and binds this thread to some of them
        os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, len(os.sched_getaffinity(0)))))
        os.environ["TVM_BIND_THREADS"] = "0"
        import tvm

        self._tvm: Any = tvm
        self._threads = threads
        self.library: Path | None = None
        self._model, self._work, self._database, self._made = model, work, database, library
        self._machines: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._lock = threading.Lock()  # the virtual machine is not re-entrant
        self._calls: dict[tuple[tuple[int, ...], ...], tuple[Any, list[Any]]] = {}
        self._types = [
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)) for i in _inputs(model)
        ]
        self.record: dict[str, Any] = {}
        if not open_shapes(model):
            self._machine([tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in _inputs(model)])

    def _machine(self, shapes: list[tuple[int, ...]]) -> Any:
        key = tuple(shapes)
        if key not in self._machines:
            folder = self._work / f"shape{len(self._machines)}"
            folder.mkdir(exist_ok=True)
            if self._made is not None and not self._machines:
                library = self._made
            else:
                library, self.record = compile_library(fixed(self._model, shapes), folder, self._database)
            if self.record.get("machine", {}).get("name") == AMX.name and not tiles_granted():
                raise ToolError(
                    "Linux gives this process no tile registers (a thread has a small signal stack?); use onnxruntime"
                )
            self.library = self.library or library
            self._machines[key] = self._tvm.relax.VirtualMachine(
                self._tvm.runtime.load_module(str(library)), self._tvm.cpu()
            )
        return self._machines[key]

    def _called(self, values: list[np.ndarray]) -> tuple[Any, list[Any]]:
        """The function for these shapes and its arguments, which stay where they are from call to call. Raises UserError for other numbers or types."""
        if [v.dtype for v in values] != self._types:
            wanted = ", ".join(map(str, self._types))
            raise UserError(
                f"the model takes {len(self._types)} inputs ({wanted}), not {', '.join(str(v.dtype) for v in values)}"
            )
        key = tuple(v.shape for v in values)
        if key not in self._calls:
            machine = self._machine(list(key))
            self._calls[key] = machine["main"], [self._tvm.runtime.empty(v.shape, str(v.dtype)) for v in values]
        main, arrays = self._calls[key]
        for array, value in zip(arrays, values, strict=True):
            array.copyfrom(value)
        use_threads(self._threads)
        return main, arrays

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            main, arrays = self._called(values)
            try:
                result = main(*arrays)
            except RuntimeError as error:
                raise ToolError(f"TVM's program failed: {str(error).strip().splitlines()[-1][:200]}") from error
            # copies: an output may be an input, a constant or another output seen under another shape
            return [r.numpy() for r in ([result] if hasattr(result, "numpy") else result)]

    def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
        """Median time of each kernel call, by the kernel's name (fused operators) and place."""
        _, arrays = self._called(values)
        machine = self._machine([v.shape for v in values])
        times: list[list[float]] = []
        names: list[str] = []
        place = 0
        start = 0.0

        def instrument(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> int:
            nonlocal place, start
            if before:
                start = time.perf_counter()
                return 0
            took = time.perf_counter() - start
            if place == len(names):
                names.append(symbol)
                times.append([])
            times[place].append(took)
            place += 1
            return 0

        machine.set_instrument(instrument)
        try:
            for _ in range(repeats + 3):
                place = 0
                machine["main"](*arrays)
        finally:
            machine.set_instrument(lambda *_: 0)
        rules = {k["name"]: k["rule"] for k in self.record["kernels"]}
        return [
            LayerTime(f"{name}#{i}", rules[name], float(np.median(rows[3:]) * 1e6))
            for i, (name, rows) in enumerate(zip(names, times, strict=True))
            if name in rules
        ]


class TvmRuntime:
    name = "tvm"

    def missing(self) -> str:
        return (
            ""
            if importlib.util.find_spec("tvm") is not None
            else "TVM is not installed; pip install 'deploy-toolchain[tvm]'"
        )

    def load(
        self, model: onnx.ModelProto, threads: int, work: Path, database: str = "", library: Path | None = None
    ) -> TvmProgram:
        """database: a file of tuned tiles ('' for the rules alone). library: made of this model before, on such a machine."""
        if self.missing():
            raise ToolError(self.missing())
        return TvmProgram(model, threads, work, database, library)

    def tune(self, model: onnx.ModelProto, database: Path, seconds: float, work: Path) -> dict[str, int]:
        """Tune the tiles of a model into `database` in a child process; returns how many workloads were tried and won.

        Raises ToolError where the child dies or does not end in time.
        """
        source, log = work / "tune.onnx", work / "tune.log"
        source.write_bytes(model.SerializeToString())
        database.parent.mkdir(parents=True, exist_ok=True)
        run(
            _PYTHON,
            ["-m", "hw.runtime.tvm.tune", str(source), str(database), str(seconds)],
            cwd=work,
            log=log,
            timeout=seconds + TUNE_GRACE,
        )
        found: dict[str, int] = json.loads([x for x in log.read_text().splitlines() if x.startswith("{")][-1])
        return found


RUNTIME = TvmRuntime()
